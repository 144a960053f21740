"""Jobs: what may follow what, and when a failed attempt is tried again."""

from __future__ import annotations

import re
from typing import Any

import pytest

from controlplane.domain.ids import new_id, new_prompt_id
from controlplane.domain.jobs import (
    CANCELLING,
    FAILED,
    FINAL,
    NEXT,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    Attempt,
    Failure,
    decide_retry,
    failure_of_error,
    is_final,
    may_follow,
    patience_with,
    story,
)

LOST = Failure("lost", "attempt_lost", "gone")


def attempt(number: int, detail: str) -> Attempt:
    error = {"code": "attempt_lost", "detail": detail}
    return Attempt(f"id-{number}", "default", "job_1", number, f"pod_{number}", "c", "lost", 0.0, error=error)


@pytest.mark.parametrize("status", sorted(FINAL))
def test_nothing_follows_a_final_status(status: str) -> None:
    assert NEXT[status] == frozenset()


@pytest.mark.parametrize("status", sorted(set(NEXT) - FINAL))
def test_a_final_status_can_be_reached_from_every_other_one(status: str) -> None:
    reachable, ahead = set(), {status}
    while ahead:
        reachable |= ahead
        ahead = {following for one in ahead for following in NEXT[one]} - reachable
    assert any(is_final(one) for one in reachable)


def test_every_status_that_may_follow_is_a_known_one() -> None:
    assert {following for states in NEXT.values() for following in states} <= set(NEXT)


@pytest.mark.parametrize("status", [RUNNING, SUCCEEDED, QUEUED])
def test_a_cancelling_job_goes_neither_on_nor_back(status: str) -> None:
    assert not may_follow(CANCELLING, status)


def test_a_lost_attempt_is_tried_again() -> None:
    assert decide_retry(LOST, 1, 3).again


def test_the_last_attempt_is_the_last() -> None:
    assert not decide_retry(LOST, 3, 3).again


def test_each_retry_waits_longer() -> None:
    assert decide_retry(LOST, 1, 3).delay < decide_retry(LOST, 2, 3).delay


def test_a_nodes_own_error_would_come_again() -> None:
    assert not decide_retry(failure_of_error({"type": "ValueError", "message": "bad"}), 1, 3).again


@pytest.mark.parametrize(
    "error",
    [
        {"type": "torch.OutOfMemoryError", "message": "Allocation on device"},
        {"type": "RuntimeError", "message": "CUDA error: an illegal memory access was encountered"},
        {"type": "urllib.error.URLError", "message": "timed out"},
    ],
)
def test_what_is_the_pods_fault_is_tried_again(error: dict[str, str]) -> None:
    assert decide_retry(failure_of_error(error), 1, 3).again


TRAINER = "custom_nodes.troupe.training.failure.TrainerError"


def test_a_failed_training_keeps_the_trainers_code_its_sentence_and_what_it_printed() -> None:
    message = "no_data: the trainer found no images\nINFO prepare images.\nERROR No data found."
    failure = failure_of_error({"type": TRAINER, "message": message, "node_type": "TrainLoRA", "log_tail": ["other"]})
    assert (failure.code, failure.detail) == ("no_data", "TrainLoRA failed: the trainer found no images")
    assert failure.log_tail == ("INFO prepare images.", "ERROR No data found.")


@pytest.mark.parametrize(("code", "again"), [("out_of_memory", True), ("killed", True), ("loss_diverged", False)])
def test_a_failed_training_is_tried_elsewhere_where_its_pod_was_too_small(code: str, again: bool) -> None:
    assert decide_retry(failure_of_error({"type": TRAINER, "message": f"{code}: words"}), 1, 3).again is again


def test_a_refusal_by_one_pod_alone_is_tried_elsewhere() -> None:
    assert decide_retry(Failure("refused", "pod_refused", "no such model", pod_specific=True), 1, 3).again


def test_a_refusal_that_every_pod_would_repeat_is_final() -> None:
    assert not decide_retry(Failure("refused", "pod_refused", "bad graph"), 1, 3).again


def test_the_story_tells_every_attempt_in_order() -> None:
    told = story([attempt(2, "second loss"), attempt(1, "first loss")])
    assert told == "attempt 1 on pod_1: first loss; attempt 2 on pod_2: second loss"


def test_an_id_is_a_prefix_and_26_safe_characters() -> None:
    assert re.fullmatch(r"job_[a-z2-7]{26}", new_id("job"))


def test_two_ids_are_never_the_same() -> None:
    assert len({new_id("job") for _ in range(1000)} | {new_prompt_id() for _ in range(1000)}) == 2000


def test_failed_is_final() -> None:
    assert is_final(FAILED)


@pytest.mark.parametrize(
    ("exception", "message", "code"),
    [
        ("torch.OutOfMemoryError", "Allocation on device", "out_of_memory"),
        ("torch.AcceleratorError", "CUDA error: out of memory", "out_of_memory"),
        ("torch.AcceleratorError", "CUDA error: an illegal memory access was encountered", "dead_device"),
        ("RuntimeError", "CUDA error: device-side assert triggered", "dead_device"),
        ("ValueError", "bad", "execution_error"),
    ],
)
def test_what_a_node_said_decides_the_code(exception: str, message: str, code: str) -> None:
    assert failure_of_error({"type": exception, "message": message}).code == code


def test_a_failure_keeps_the_newest_lines_of_the_log_cut_short() -> None:
    failure = failure_of_error({"type": "ValueError", "log_tail": [f"{n} {'x' * 500}" for n in range(50)]})
    assert (len(failure.log_tail), failure.log_tail[0][:3], len(failure.log_tail[0])) == (40, "10 ", 300)


def test_an_error_without_a_log_does_not_mention_one() -> None:
    assert Failure("lost", "died", "gone").as_error() == {"code": "died", "detail": "gone"}


@pytest.mark.parametrize(
    ("kind", "progress", "seconds"),
    [
        ("train", {"step": 10, "total_steps": 110, "eta_seconds": 100.0}, 180.0),
        ("train", {"step": 10, "total_steps": 110, "eta_seconds": 6000.0}, 1200.0),
        ("train", {"step": 110, "total_steps": 110, "eta_seconds": 0.0}, 180.0),
        ("train", {"step": None, "total_steps": None, "eta_seconds": None}, 180.0),
        ("image", {"step": 10, "total_steps": 110, "eta_seconds": 6000.0}, 180.0),
    ],
)
def test_a_training_with_slow_steps_is_given_twenty_of_them(kind: str, progress: Any, seconds: float) -> None:
    assert patience_with(kind, progress, 180.0) == seconds
