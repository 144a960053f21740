"""The reader of trainer output, on the captured logs of real runs and on bytes cut anywhere."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from comfy_nodes.training.progress import (
    Epoch,
    Event,
    LineSplitter,
    Phase,
    SavedSample,
    SavingCheckpoint,
    Step,
    TotalSteps,
    TrainImages,
    events_in,
)

DATA = Path(__file__).with_name("data")


def events(name: str, chunk: int = 4096) -> list[Event]:
    splitter = LineSplitter()
    content = (DATA / name).read_bytes()
    lines = [line for start in range(0, len(content), chunk) for line in splitter.feed(content[start : start + chunk])]
    lines += splitter.feed(b"", last=True)
    return [event for line in lines for event in events_in(line)]


def steps(name: str) -> list[Step]:
    return [event for event in events(name) if isinstance(event, Step)]


def test_every_step_of_a_real_run_is_seen_with_its_loss() -> None:
    seen = {(step.step, step.loss) for step in steps("sdxl_b.stderr")}
    assert {(0, None), (1, None), (1, 1.21), (2, 1.14), (3, 0.817)} <= seen


def test_the_bar_tells_the_time_left_and_per_step() -> None:
    first = next(step for step in steps("sdxl_b.stderr") if step.loss == 1.21)
    assert first == Step(step=1, total=3, eta_seconds=178.0, seconds_per_step=89.45, loss=1.21)


def test_a_log_line_behind_the_bar_does_not_hide_the_step() -> None:
    line = "steps: 100%|██████████| 3/3 [02:58<00:00, 59.58s/it, avr_loss=0.817]2026-11-20 19:18 INFO     model saved."
    assert next(iter(events_in(line))) == Step(3, 3, 0.0, 59.58, 0.817)


def test_a_fast_bar_counts_steps_per_second() -> None:
    (step,) = events_in("steps:  50%|#####     | 5/10 [00:02<00:02,  2.50it/s, avr_loss=0.1]")
    assert isinstance(step, Step)
    assert step.seconds_per_step == pytest.approx(0.4)


def test_hours_are_understood() -> None:
    (step,) = events_in("steps:   1%|          | 5/1000 [01:00<1:02:03, 3.7s/it, avr_loss=0.1]")
    assert isinstance(step, Step)
    assert step.eta_seconds == 3723.0


def test_a_loss_that_is_no_number_is_told_as_such() -> None:
    assert any(step.loss is not None and math.isnan(step.loss) for step in steps("sd15_nan2.stderr"))


def test_other_bars_are_not_taken_for_steps() -> None:
    assert {step.total for step in steps("sd15_ep.stderr")} == {8}


def test_the_start_of_a_run_tells_its_images_and_steps() -> None:
    told = events("sdxl_b.stdout")
    assert TrainImages(4) in told
    assert TotalSteps(3) in told


def test_epochs_and_checkpoints_are_seen_in_order() -> None:
    told = [event for event in events("sd15_ep.stdout") if isinstance(event, Epoch | SavingCheckpoint)]
    assert told == [
        Epoch(1, 2),
        SavingCheckpoint("/job/out/sd15_ep-000001.safetensors"),
        Epoch(2, 2),
        SavingCheckpoint("/job/out/sd15_ep.safetensors"),
    ]


def test_the_phases_of_a_real_run_come_in_order() -> None:
    words = [event.words for event in events("sdxl_b.stderr") if isinstance(event, Phase)]
    assert words[0] == "loading the tokenizer"
    assert words.index("encoding the images") < words.index("encoding the captions") < words.index("creating the LoRA")


RUNS = sorted(path.stem for path in DATA.glob("*.stderr"))
COUNTED = {
    "flux_b": (4, 4),
    "sd15_a": (4, 4),
    "sd15_ep": (8, 8),
    "sd15_nan2": (3, 3),
    "sd15_res": (8, 12),
    "sdxl_b": (3, 3),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_captured_run_is_followed_to_its_last_step(name: str) -> None:
    seen = steps(f"{name}.stderr")
    assert ((seen[-1].step, seen[-1].total) if seen else None) == {**COUNTED, "sdxl_a_killed": (0, 3)}.get(name)


@pytest.mark.parametrize("name", sorted(COUNTED))
def test_every_run_that_trained_tells_its_total(name: str) -> None:
    totals = [event.total for event in events(f"{name}.stdout") if isinstance(event, TotalSteps)]
    assert totals == [COUNTED[name][1]]


@pytest.mark.parametrize("name", sorted(COUNTED))
def test_every_run_that_trained_tells_where_its_lora_is(name: str) -> None:
    saved = [Path(event.path).name for event in events(f"{name}.stdout") if isinstance(event, SavingCheckpoint)]
    assert saved[-1] == f"{name}.safetensors"


@pytest.mark.parametrize("name", sorted({*RUNS} - {"sd15_telr1", "sd15_notok"}))
def test_every_run_that_came_to_its_images_tells_that_it_prepares(name: str) -> None:
    # With a plain log, as `sd15_res` had, everything but the bars goes to stdout.
    files = [path.name for path in DATA.glob(f"{name}.std*")]
    told = [event for file in files for event in events(file)]
    assert "preparing" in [event.phase for event in told if isinstance(event, Phase)]


def test_going_on_from_a_state_is_told() -> None:
    assert "loading the saved state" in [event.words for event in events("sd15_res.stdout") if isinstance(event, Phase)]


def test_sampling_is_a_phase() -> None:
    assert Phase("sampling", "painting samples") in events("sd15_ep.stderr")


def test_a_sample_of_our_own_trainer_is_seen() -> None:
    assert list(events_in("saved sample: /job/out/sample/lora_000100_00.png")) == [
        SavedSample("/job/out/sample/lora_000100_00.png")
    ]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_chunks_cut_anywhere_give_the_same_events(chunk: int) -> None:
    assert events("sdxl_b.stderr", chunk) == events("sdxl_b.stderr")


def test_a_character_cut_in_two_is_put_together() -> None:
    splitter = LineSplitter()
    encoded = "学習\n".encode()
    assert [*splitter.feed(encoded[:4]), *splitter.feed(encoded[4:])] == ["学習"]


def test_bytes_that_are_no_text_do_not_stop_the_reader() -> None:
    assert list(LineSplitter().feed(b"\xff\xfe broken\nsteps\n")) == ["\ufffd\ufffd broken", "steps"]


def test_a_line_without_end_does_not_grow_for_ever() -> None:
    splitter = LineSplitter()
    assert sum(len(line) for _ in range(10) for line in splitter.feed(b"x" * 10_000)) >= 80_000
