"""Every way in which a training fails, by exit code and log: the captured ones replayed by a real process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from comfy_nodes.training import runner
from comfy_nodes.training.failure import TrainerError, classify
from comfy_nodes.training.runner import Command

HERE = Path(__file__).parent


def replayed(name: str, rc: int, tmp_path: Path) -> runner.Finished:
    job = tmp_path / "job.json"
    job.write_text(f'{{"params": {{"behaviour": "replay", "log": "{HERE}/data/{name}", "rc": {rc}}}}}')
    command = Command([sys.executable, str(HERE / "replay_trainer.py"), "--config", str(job)], tmp_path)
    return runner.run(command, lambda _event: None, lambda: None)


def code_of(returncode: int, *log: str, wrote_file: bool = False) -> str:
    error = classify(returncode, log, wrote_file)
    return "fine" if error is None else error.code


@pytest.mark.parametrize(
    ("name", "rc", "code"),
    [
        ("sd15_bad", 1, "bad_image"),
        ("sd15_empty", 0, "no_data"),
        ("sd15_notok", 1, "missing_tokenizer"),
        ("sd15_telr1", 2, "bad_arguments"),
        ("sdxl_a_killed", -15, "terminated"),
    ],
)
def test_a_captured_failure_is_told_apart(name: str, rc: int, code: str, tmp_path: Path) -> None:
    finished = replayed(name, rc, tmp_path)
    assert finished.returncode == rc
    error = classify(finished.returncode, finished.log, wrote_file=False)
    assert error is not None
    assert error.code == code


@pytest.mark.parametrize("name", ["sdxl_b", "sd15_ep"])
def test_a_captured_success_with_its_file_is_no_failure(name: str, tmp_path: Path) -> None:
    finished = replayed(name, 0, tmp_path)
    assert classify(finished.returncode, finished.log, wrote_file=True) is None


def test_the_captured_run_whose_loss_diverged_is_stopped_although_it_would_end_with_zero(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="loss_diverged"):
        replayed("sd15_nan2", 0, tmp_path)


def test_a_success_without_a_file_is_a_failure(tmp_path: Path) -> None:
    finished = replayed("sdxl_b", 0, tmp_path)
    error = classify(finished.returncode, finished.log, wrote_file=False)
    assert error is not None
    assert error.code == "no_output"


def test_the_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    finished = replayed("sd15_bad", 1, tmp_path)
    error = classify(finished.returncode, finished.log, wrote_file=False)
    assert error is not None
    assert error.detail.endswith("/job/data/bad/009.png")


@pytest.mark.parametrize(
    ("returncode", "line", "code"),
    [
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out_of_memory"),
        (1, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", "out_of_host_memory"),
        (1, "RuntimeError: NaN detected in latents: /job/images/001.png", "nan_in_latents"),
        (1, "RuntimeError: NaN detected in text encoder outputs", "nan_in_captions"),
        (1, "AssertionError: caption file is empty: /job/images/001.txt", "empty_caption"),
        (1, "voluptuous.error.MultipleInvalid: extra keys not allowed @ data['x']", "bad_dataset_config"),
        (1, "AssertionError: bucket_reso_steps is 32. it must be divisible by 64.", "bad_dataset_config"),
        (1, "2026-11-20 19:08:35 INFO     /job/words.toml not found.          train_util.py:4741", "bad_job_file"),
        (1, "ModuleNotFoundError: No module named 'peft'", "missing_package"),
        (1, "DivergedError: the loss is nan after 3 steps", "loss_diverged"),
        (1, "ValueError: unknown recipe parameters: stepz", "bad_recipe"),
        (1, "NoPicturesError: no pictures in /job/images", "no_data"),
        (1, "OSError: [Errno 28] No space left on device", "disk_full"),
        (-9, "steps:  33%|###3      | 1/3 [01:29<02:58, 89.45s/it, avr_loss=1.21]", "killed"),
        (-11, "", "crashed"),
        (1, "ValueError: something nobody thought of", "trainer_failed"),
        (0, "", "no_output"),
    ],
)
def test_a_failure_is_told_apart_by_its_last_words(returncode: int, line: str, code: str) -> None:
    assert code_of(returncode, "Traceback (most recent call last):", line) == code


def test_a_loss_that_is_no_number_makes_the_file_worthless() -> None:
    bar = "steps: 100%|###| 3/3 [01:27<00:00, 29.33s/it, avr_loss=nan]"
    assert code_of(0, bar, wrote_file=True) == "loss_diverged"


def test_an_unknown_failure_ends_with_its_exception() -> None:
    error = classify(1, ["Traceback:", "ValueError: something", "  (a hint)"], wrote_file=False)
    assert error is not None
    assert error.detail.endswith("ValueError: something")


def test_the_error_carries_the_end_of_the_log() -> None:
    error = classify(1, [f"line {number}" for number in range(100)], wrote_file=False)
    assert error is not None
    assert (len(error.log_tail), error.log_tail[-1]) == (40, "line 99")
