"""Durations: what earlier jobs say of the next one, and a countdown that does not jump."""

from __future__ import annotations

import pytest

from controlplane.domain.durations import Countdown, Took, expected_seconds, waiting_seconds, work_of


def test_without_history_the_template_is_believed() -> None:
    assert expected_seconds([], 10.0, 42.0) == 42.0


def test_a_slow_start_of_one_job_does_not_count() -> None:
    took = [Took(2.0, 1.0)] * 4 + [Took(90.0, 1.0)]
    assert expected_seconds(took, 1.0, 42.0) == 2.0


def test_twice_the_work_takes_twice_as_long() -> None:
    assert expected_seconds([Took(2.0, 10.0)] * 5, 20.0, 42.0) == 4.0


def test_jobs_of_about_the_same_work_are_the_better_witnesses() -> None:
    small, large = [Took(3.0, 1.0)] * 9, [Took(12.0, 16.0)] * 3
    assert expected_seconds([*small, *large], 16.0, 42.0) == 12.0


def test_a_single_job_does_not_outweigh_the_template() -> None:
    assert expected_seconds([Took(3.0, 1.0)], 1.0, 30.0) == pytest.approx(21.0)


def test_work_is_what_the_values_name() -> None:
    values = {"steps": 20, "count": 2, "frames": 5, "width": 1000, "height": 500, "prompt": "a fox"}
    assert work_of({"values": values}) == 100.0


def test_a_trainings_work_is_in_its_parameters() -> None:
    assert work_of({"params": {"steps": 700}}) == 700 * work_of({"params": {"steps": 1}})


def test_a_countdown_begins_at_what_is_expected() -> None:
    assert Countdown.begun(30.0, at=100.0).after(101.0, 1.0, 0.0).left == pytest.approx(29.0)


def test_in_the_end_a_jobs_own_pace_is_what_counts() -> None:
    countdown = Countdown.begun(10.0, at=0.0)
    for second in range(1, 96):  # it takes ten times as long as others did
        countdown = countdown.after(float(second), float(second), second / 100)
    assert countdown.left == pytest.approx(5.0, abs=1.0)


def test_a_countdown_never_jumps_by_more_than_half_of_what_is_new() -> None:
    countdown = Countdown.begun(10.0, at=0.0).after(1.0, 1.0, 0.01)
    thought_by_pace = 99.0
    assert countdown.left < 9.0 + (thought_by_pace - 9.0) / 2


def test_a_job_that_takes_longer_than_others_goes_by_its_own_pace() -> None:
    countdown = Countdown(10.0, left=0.0, at=20.0).after(20.0, 20.0, 0.2)
    assert countdown.left == pytest.approx(40.0)


def test_nobody_waits_for_an_idle_pod() -> None:
    assert waiting_seconds(ahead=0.0, pods=2, busy=30.0, soonest=0.0) == 0.0


def test_work_ahead_is_shared_among_the_pods() -> None:
    assert waiting_seconds(ahead=100.0, pods=4, busy=20.0, soonest=5.0) == 30.0


def test_without_a_pod_nobody_knows() -> None:
    assert waiting_seconds(ahead=0.0, pods=0, busy=0.0, soonest=0.0) is None
