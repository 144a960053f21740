"""The rules that keep provider and books alike, without either."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.rentals import Limits, Rental, RentedPod, Step, may_spend, plan, tag, tagged_rental

NOW = 1_000_000.0
LIMITS = Limits(grace=100, asking=600, join=1800, silence=2700)
OURS = "abcd1234"
OLD = NOW - 10_000


def rental(**values: Any) -> Rental:
    given = {
        "id": "rental_1",
        "project_id": "default",
        "provider": "runpod",
        "name": tag(OURS, "rental_1"),
        "gpu": "GPU",
        "state": "booting",
        "request": {},
        "created_at": NOW - 500,
        "updated_at": NOW - 500,
        "provider_id": "pod1",
        "price_per_hour": 0.5,
    }
    return Rental(**{**given, **values})


def pod(**values: Any) -> RentedPod:
    given = {"id": "pod1", "name": tag(OURS, "rental_1"), "status": "running", "told": "RUNNING", "created_at": OLD}
    return RentedPod(**{**given, **values})


def planned(pods: list[RentedPod], books: list[Rental], heard: dict[str, float] | None = None) -> list[Step]:
    return list(plan(pods, books, heard or {}, OURS, NOW, LIMITS))


def kinds(steps: list[Step]) -> list[tuple[str, str | None, str | None]]:
    return [(step.kind, step.pod, step.rental) for step in steps]


def test_a_pod_and_its_rental_are_left_alone() -> None:
    assert planned([pod()], [rental()]) == []


def test_a_pod_that_is_not_in_the_books_is_ended() -> None:
    assert kinds(planned([pod()], [])) == [("end", "pod1", None)]


def test_a_young_pod_that_is_not_in_the_books_is_left_for_now() -> None:
    assert planned([pod(created_at=NOW - 99)], []) == []


@pytest.mark.parametrize("name", ["somebody's", tag("abcd12345", "x"), tag("abcd123", "x"), f"my {tag(OURS, 'x')}", ""])
def test_a_pod_without_our_tag_is_never_touched(name: str) -> None:
    assert planned([pod(name=name)], []) == []


def test_a_rental_of_ours_that_was_given_another_name_there_is_still_ours() -> None:
    assert planned([pod(name="renamed")], [rental()]) == []


def test_the_pod_of_an_unanswered_request_is_adopted_however_young() -> None:
    steps = planned([pod(created_at=NOW)], [rental(state="requested", provider_id=None)])
    assert kinds(steps) == [("adopt", "pod1", "rental_1")]


def test_of_two_pods_of_one_request_one_is_adopted_and_the_other_ended() -> None:
    steps = planned([pod(), pod(id="pod2")], [rental(state="requested", provider_id=None)])
    assert kinds(steps) == [("adopt", "pod1", "rental_1"), ("end", "pod2", None)]


def test_a_second_pod_of_a_rental_is_ended() -> None:
    assert kinds(planned([pod(), pod(id="pod2")], [rental()])) == [("end", "pod2", None)]


def test_a_young_second_pod_is_left_for_now() -> None:
    assert planned([pod(), pod(id="pod2", created_at=NOW)], [rental()]) == []


@pytest.mark.parametrize("state", ["ended", "failed"])
def test_the_pod_of_a_rental_that_is_over_is_ended_at_once(state: str) -> None:
    assert kinds(planned([pod(created_at=NOW)], [rental(state=state)])) == [("end", "pod1", None)]


def test_a_pod_that_came_after_its_rental_was_ended_is_ended() -> None:
    steps = planned([pod(created_at=NOW)], [rental(state="ending", provider_id=None)])
    assert kinds(steps) == [("end", "pod1", "rental_1")]


def test_ending_goes_on_until_the_pod_is_gone() -> None:
    assert kinds(planned([pod()], [rental(state="ending")])) == [("end", "pod1", "rental_1")]


def test_a_rental_whose_pod_is_gone_is_over() -> None:
    assert kinds(planned([], [rental()])) == [("gone", "pod1", "rental_1")]


def test_a_terminated_pod_counts_as_gone() -> None:
    assert kinds(planned([pod(status="gone")], [rental()])) == [("gone", "pod1", "rental_1")]


def test_a_rental_that_was_just_written_may_be_missing_in_the_list() -> None:
    assert planned([], [rental(updated_at=NOW - 99)]) == []


def test_a_request_that_is_under_way_is_left_alone() -> None:
    assert planned([], [rental(state="requested", provider_id=None, updated_at=NOW - 599)]) == []


@pytest.mark.parametrize("state", ["requested", "ending"])
def test_a_request_that_nothing_came_of_is_given_up(state: str) -> None:
    steps = planned([], [rental(state=state, provider_id=None, updated_at=NOW - 600)])
    assert kinds(steps) == [("give_up", None, "rental_1")]


def test_a_stopped_pod_is_ended_because_it_still_costs() -> None:
    steps = planned([pod(status="stopped", told="EXITED")], [rental(state="joined")])
    assert "EXITED, and a stopped pod still costs money" in steps[0].reason


def test_a_pod_that_never_joins_is_ended_with_the_time_it_had() -> None:
    steps = planned([pod()], [rental(created_at=NOW - 1801)])
    assert steps == [Step("end", "it did not join within 30 minutes", "pod1", "rental_1", tag(OURS, "rental_1"))]


def test_a_pod_that_joined_may_be_as_old_as_it_likes() -> None:
    assert planned([pod()], [rental(state="joined", created_at=OLD)]) == []


def test_a_pod_that_reached_its_age_is_ended() -> None:
    steps = planned([pod()], [rental(state="joined", request={"max_hours": 0.1})])
    assert [step.reason for step in steps] == ["its time of 0.1 hours is over"]


def test_a_pod_that_fell_silent_is_ended() -> None:
    steps = planned([pod()], [rental(state="joined")], {"rental_1": NOW - 2701})
    assert [step.reason for step in steps] == ["nothing was heard of it for 45 minutes"]


def test_silence_from_before_this_process_began_is_not_the_pods_fault() -> None:
    just_started = Limits(grace=100, asking=600, join=1800, silence=2700, since=NOW)
    books = [rental(state="joined"), rental(id="rental_2", provider_id="pod2", created_at=OLD)]
    assert plan([pod(), pod(id="pod2")], books, {"rental_1": OLD}, OURS, NOW, just_started) == ()


def test_a_tag_gives_its_rental_back() -> None:
    assert tagged_rental(OURS, tag(OURS, "rental_1")) == "rental_1"


def test_one_pod_too_many_is_refused_in_words() -> None:
    assert may_spend([rental()], 0.1, 1, 10.0) == "1 pods are rented and TROUPE_MAX_PODS is 1"


def test_too_much_money_is_refused_in_words() -> None:
    words = "0.50 dollars per hour are spent already, 0.60 more would exceed TROUPE_MAX_PRICE_PER_HOUR (1.00)"
    assert may_spend([rental()], 0.6, 5, 1.0) == words


def test_the_limit_itself_may_be_reached() -> None:
    assert may_spend([rental()], 0.5, 2, 1.0) == ""


def test_the_cost_grows_until_the_end() -> None:
    assert rental(created_at=0.0, ended_at=7200.0).cost(NOW) == pytest.approx(1.0)


def test_a_request_without_an_answer_has_cost_nothing() -> None:
    assert rental(provider_id=None).cost(NOW) == 0.0
