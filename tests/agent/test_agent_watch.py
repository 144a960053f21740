"""Judging from snapshots alone whether ComfyUI still works."""

from __future__ import annotations

import time

import pytest

from comfy_nodes import state
from comfy_nodes.host import pause, set_host
from pod_images.agent.watch import Limits, Past, Snapshot, Verdict, WorkerState, judge, worker_state

LIMITS = Limits(memory_bytes=1000)


def verdicts(*looks: Snapshot, limits: Limits = LIMITS) -> list[Verdict | None]:
    past, told = Past(looks[0].at), []
    for look in looks:
        past, verdict = judge(past, look, limits)
        told.append(verdict)
    return told


def working(beat_age: float, **more: object) -> Snapshot:
    values = {"prompt_id": "p", "node_id": "3", "node_class": "KSampler", **more}
    return Snapshot(0.0, WorkerState(beat_age_seconds=beat_age, **values), running=("p",))  # type: ignore[arg-type]


def code(verdict: Verdict | None) -> str | None:
    return verdict.code if verdict else None


def test_an_idle_worker_is_left_alone() -> None:
    assert verdicts(*[Snapshot(float(at), WorkerState()) for at in range(0, 10_000, 100)]) == [None] * 100


def test_a_dead_worker_is_a_zombie_at_the_second_look() -> None:
    dead = Snapshot(0.0, WorkerState(worker_alive=False, prompt_id="p"), running=("p",))
    first, second = verdicts(dead, dead)
    assert (first, code(second), second.prompt_id if second else None) == (None, "zombie_worker", "p")


def test_a_worker_that_is_alive_again_was_no_zombie() -> None:
    dead = Snapshot(0.0, WorkerState(worker_alive=False))
    assert verdicts(dead, Snapshot(1.0, WorkerState()), dead) == [None, None, None]


def test_a_sampler_is_hung_after_two_minutes_without_a_beat() -> None:
    assert [code(one) for one in verdicts(working(119.9), working(120.0))] == [None, "hung"]


def test_a_sampler_whose_steps_are_long_gets_twenty_of_them() -> None:
    slow = {"seconds_per_step": 30.0}
    assert [code(one) for one in verdicts(working(599.0, **slow), working(600.0, **slow))] == [None, "hung"]


def test_a_training_that_is_silent_but_beats_is_left_alone() -> None:
    training = {"node_class": "TrainLoRA"}
    assert verdicts(*[working(5.0, **training)] * 500) == [None] * 500


@pytest.mark.parametrize("node_class", ["CheckpointLoaderSimple", "S3Save"])
def test_a_node_that_moves_big_files_gets_five_times_as_long(node_class: str) -> None:
    looks = [working(at, node_class=node_class) for at in (599.0, 600.0)]
    assert [code(one) for one in verdicts(*looks)] == [None, "hung"]


def test_a_node_of_ours_that_waits_for_its_next_try_gives_a_sign_of_life() -> None:
    class Host:
        def raise_if_interrupted(self) -> None:
            return

    set_host(Host())  # type: ignore[arg-type]
    state.running("p")
    try:
        time.sleep(0.2)
        pause(0)
        age = state.snapshot(True, {}, [])["beat_age_seconds"]
    finally:
        state.running(None)
        set_host(None)
    assert age < 0.15


def test_a_server_that_answers_nothing_is_hung_after_ten_minutes() -> None:
    silent = [Snapshot(float(at), None) for at in (0, 300, 599, 600)]
    assert [code(one) for one in verdicts(*silent)] == [None, None, None, "hung"]


def test_an_answer_ends_the_silence() -> None:
    looks = [Snapshot(0.0, None), Snapshot(599.0, WorkerState()), Snapshot(1100.0, None), Snapshot(1199.0, None)]
    assert [code(one) for one in verdicts(*looks)] == [None, None, None, "hung"]


def test_a_prompt_that_the_worker_knows_nothing_of_is_hung_in_the_end() -> None:
    unseen = [Snapshot(float(at), WorkerState(), running=("p",)) for at in (0, 500, 600)]
    assert [code(one) for one in verdicts(*unseen)] == [None, None, "hung"]


def test_prompts_that_the_worker_takes_one_after_the_other_are_not_hung() -> None:
    each = [Snapshot(float(at), WorkerState(), running=(f"p{at}",)) for at in range(0, 3000, 500)]
    assert verdicts(*each) == [None] * 6


def test_a_dead_device_waits_until_the_failed_prompt_could_be_read() -> None:
    broken = WorkerState(device_error="CUDA error: device-side assert triggered")
    told = verdicts(*[Snapshot(float(at), broken) for at in (0, 2, 4)])
    assert [code(one) for one in told] == [None, None, "dead_device"]


def test_a_dead_device_gives_a_running_prompt_ten_seconds() -> None:
    broken = WorkerState(device_error="CUDA error", prompt_id="p", beat_age_seconds=0.0)
    told = verdicts(*[Snapshot(float(at), broken, running=("p",)) for at in (0, 9, 10)])
    assert [code(one) for one in told] == [None, None, "dead_device"]


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        (Snapshot(0.0, WorkerState(rss_bytes=1001)), "memory_limit"),
        (Snapshot(0.0, WorkerState(rss_bytes=1000)), None),
        (Snapshot(0.0, WorkerState(rss_bytes=1001, prompt_id="p", beat_age_seconds=0), running=("p",)), None),
        (Snapshot(0.0, WorkerState(rss_bytes=1001), pending=("p",)), None),
        (Snapshot(0.0, WorkerState(rss_bytes=1001, uploads_pending=1)), None),
    ],
)
def test_memory_past_the_limit_counts_only_while_idle(look: Snapshot, expected: str | None) -> None:
    assert code(verdicts(look)[0]) == expected


def test_without_a_limit_no_memory_is_too_much() -> None:
    assert verdicts(Snapshot(0.0, WorkerState(rss_bytes=1 << 60)), limits=Limits()) == [None]


def test_what_the_node_pack_leaves_out_is_taken_as_healthy() -> None:
    assert worker_state({"worker_alive": None, "beat_age_seconds": "x", "rss_bytes": True}) == WorkerState()
