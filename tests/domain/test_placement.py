"""Placement: affinity within its age bound, turns between projects, and places behind work that is nearly done."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import pytest

from controlplane.domain.placement import Policy, Waiting, assign, lane_of
from controlplane.domain.pods import Live, Load, Needs, Pod
from tests.domain.test_pods_domain import pod

NEEDS = Needs()


def job(name: str, created_at: float = 0.0, **values: Any) -> Waiting:
    base = Waiting(
        id=name,
        project_id="default",
        kind="image",
        lane="lane",
        needs=NEEDS,
        base_model="base",
        lora_sha256=None,
        priority=0,
        created_at=created_at,
        estimate_seconds=10.0,
    )
    return dataclasses.replace(base, **values)


def live(slot: int = 0, seconds: float = 10.0, **values: Any) -> Live:
    return dataclasses.replace(Live(f"a{slot}", f"j{slot}", "default", slot, "image", seconds, 0.0), **values)


def load(name: str, *running: Live, **values: Any) -> Load:
    return Load(f"pod_{name}", running, **values)


def placed(
    jobs: list[Waiting], pods: list[Pod], *loads: Load, now: float = 0.0, policy: Policy = "switch_cost", **values: Any
) -> dict[str, tuple[str, int]]:
    """Pod and slot by job."""
    made = assign(jobs, pods, {one.pod_id: one for one in loads}, now, policy, **values)
    return {one.job_id: (one.pod_id, one.slot) for one in made}


def taken(*arguments: Any, **values: Any) -> list[str]:
    """The jobs that got a place, in the order in which they were given it."""
    return list(placed(*arguments, **values))


# -- affinity ----------------------------------------------------------------------------------------------------------


def test_a_free_pod_takes_the_job_whose_lora_it_has_resident_before_an_older_one() -> None:
    jobs = [job("older", 0.0, lora_sha256="x"), job("warm", 5.0, lora_sha256="y")]
    assert placed(jobs, [pod("a")], load("a", base_model="base", lora_sha256="y"), now=10.0, limit=1) == {
        "warm": ("pod_a", 0)
    }


def test_a_job_is_not_overtaken_by_one_that_came_the_age_bound_later() -> None:
    jobs = [job("older", 0.0, lora_sha256="x"), job("warm", 61.0, lora_sha256="y")]
    assert taken(jobs, [pod("a")], load("a", base_model="base", lora_sha256="y"), now=70.0, limit=1) == ["older"]


def test_without_a_warm_job_a_pod_loads_what_most_of_the_waiting_jobs_want() -> None:
    jobs = [job("one", 0.0, lora_sha256="x"), job("two", 1.0, lora_sha256="y"), job("three", 2.0, lora_sha256="y")]
    assert taken(jobs, [pod("a")], load("a", base_model="base", lora_sha256="z"), limit=1) == ["two"]


def test_jobs_that_came_too_late_to_be_taken_now_do_not_speak_for_a_lora() -> None:
    late = [job(f"late{n}", 100.0 + n, lora_sha256="y") for n in range(5)]
    jobs = [job("one", 0.0, lora_sha256="y"), job("two", 1.0, lora_sha256="x"), job("three", 2.0, lora_sha256="x")]
    assert taken([*jobs, *late], [pod("a")], load("a", base_model="base", lora_sha256="z"), limit=1) == ["two"]


def test_no_base_model_is_loaded_while_work_for_the_one_that_is_there_waits() -> None:
    jobs = [job(f"other{n}", n, base_model="other", lora_sha256="x") for n in range(3)]
    jobs.append(job("same", 5.0, lora_sha256="y"))
    assert taken(jobs, [pod("a")], load("a", base_model="base", lora_sha256="z"), limit=1) == ["same"]


def test_what_is_resident_on_enough_pods_is_not_loaded_once_more() -> None:
    jobs = [job("one", 0.0, lora_sha256="x"), job("two", 1.0, lora_sha256="y"), job("three", 2.0, lora_sha256="y")]
    busy = load("b", live(seconds=60.0), base_model="base", lora_sha256="y")
    assert taken(jobs, [pod("a"), pod("b")], load("a"), busy, limit=1) == ["one"]


def test_of_two_idle_pods_the_one_whose_lora_nobody_waits_for_loads_another_one() -> None:
    jobs = [job("cold", 0.0, lora_sha256="x"), job("barred", 1.0, lora_sha256="y", tried=frozenset({"pod_a"}))]
    wanted = load("a", base_model="base", lora_sha256="y", idle_since=0.0)
    unwanted = load("b", base_model="base", lora_sha256="z", idle_since=5.0)
    assert placed(jobs[:1] + jobs[1:], [pod("a"), pod("b")], wanted, unwanted, limit=1)["cold"] == ("pod_b", 0)


def test_each_job_goes_to_the_pod_that_is_warm_for_it() -> None:
    jobs = [job("x", 0.0, lora_sha256="x"), job("y", 1.0, lora_sha256="y")]
    loads = [load("a", base_model="base", lora_sha256="y"), load("b", base_model="base", lora_sha256="x")]
    assert placed(jobs, [pod("a"), pod("b")], *loads) == {"x": ("pod_b", 0), "y": ("pod_a", 0)}


def test_switch_cost_needs_less_than_a_third_of_the_lora_loads_of_round_robin() -> None:
    assert lora_loads("switch_cost") < lora_loads("round_robin") / 3


def lora_loads(policy: Policy, pods: int = 8, characters: int = 100, jobs: int = 800, window: int = 128) -> int:
    """LoRA loads of a backlog for Zipf-distributed characters, each job as long as any other."""
    chance = random.Random(4)
    weights = [1 / (rank + 1) for rank in range(characters)]
    wanted = chance.choices(range(characters), weights, k=jobs)
    queue = [job(f"j{n:04}", n / 100, lora_sha256=str(lora)) for n, lora in enumerate(wanted)]
    fleet = [pod(str(n)) for n in range(pods)]
    loads = {one.id: Load(one.id) for one in fleet}
    switched, now = 0, 0.0
    while queue:
        for made in assign(queue[:window], fleet, loads, now, policy, limit=pods):
            done = next(one for one in queue if one.id == made.job_id)
            queue.remove(done)
            switched += loads[made.pod_id].lora_sha256 != done.lora_sha256
            loads[made.pod_id] = Load(made.pod_id, (), "base", done.lora_sha256, now)
        now += 3.0
    return switched


# -- round robin -------------------------------------------------------------------------------------------------------


def test_round_robin_gives_the_oldest_job_to_the_pod_that_is_idle_longest_whatever_it_has_loaded() -> None:
    jobs = [job("older", 0.0, lora_sha256="x"), job("warm", 5.0, lora_sha256="y")]
    loads = [
        load("a", base_model="base", lora_sha256="y", idle_since=3.0),
        load("b", base_model="base", lora_sha256="x", idle_since=9.0),
    ]
    assert placed(jobs, [pod("a"), pod("b")], *loads, policy="round_robin") == {
        "older": ("pod_a", 0),
        "warm": ("pod_b", 0),
    }


# -- turns -------------------------------------------------------------------------------------------------------------


def test_priority_counts_before_age_inside_a_project() -> None:
    assert taken([job("old"), job("urgent", 9.0, priority=5)], [pod("a")], limit=1) == ["urgent"]


def test_affinity_does_not_outweigh_priority() -> None:
    jobs = [job("urgent", 9.0, priority=5, lora_sha256="x"), job("warm", 0.0, lora_sha256="y")]
    assert taken(jobs, [pod("a")], load("a", base_model="base", lora_sha256="y"), limit=1) == ["urgent"]


def test_a_flood_of_one_project_does_not_starve_another() -> None:
    flood = [job(f"flood {n}", n / 1000) for n in range(100)]
    order = taken([*flood, job("small", 50.0, project_id="small")], [pod(str(n)) for n in range(4)], now=60.0)
    assert order.index("small") <= 1


def test_the_project_with_less_running_work_has_the_next_turn() -> None:
    busy = load("b", live(seconds=60.0))
    jobs = [job("mine", 0.0), job("theirs", 9.0, project_id="other")]
    assert taken(jobs, [pod("a"), pod("b")], busy, limit=1) == ["theirs"]


def test_the_priority_of_one_project_does_not_outweigh_anothers_turn() -> None:
    busy = load("b", live(seconds=60.0))
    jobs = [job("mine", 0.0, priority=100), job("theirs", 9.0, project_id="other")]
    assert taken(jobs, [pod("a"), pod("b")], busy, limit=1) == ["theirs"]


def test_turns_go_round_by_the_work_that_each_project_gets() -> None:
    long = [job(f"long {n}", estimate_seconds=30.0) for n in range(10)]
    short = [job(f"short {n}", estimate_seconds=10.0, project_id="short") for n in range(10)]
    order = taken([*long, *short], [pod(str(n)) for n in range(8)], limit=8)
    assert Counter(name.split()[0] for name in order) == {"short": 6, "long": 2}


def test_a_job_that_nothing_can_do_hides_none_behind_it() -> None:
    impossible = job("impossible", 0.0, lane="other", needs=Needs(nodes=frozenset({"Nowhere"})), priority=9)
    assert taken([impossible, job("possible", 1.0)], [pod("a")]) == ["possible"]


def test_labels_keep_trainings_off_picture_pods() -> None:
    training = job("t", kind="train", lane="train", needs=Needs(labels=frozenset({"train"})))
    assert placed([training], [pod("a"), pod("b", labels=("train",))]) == {"t": ("pod_b", 0)}


def test_a_job_avoids_the_pod_where_it_failed_while_another_one_could_do_it() -> None:
    tried = job("again", tried=frozenset({"pod_a"}))
    assert placed([tried], [pod("a")], load("b", live(seconds=60.0)), known=[pod("a"), pod("b")]) == {}
    assert placed([tried], [pod("a")]) == {"again": ("pod_a", 0)}


# -- places behind running work ----------------------------------------------------------------------------------------


def test_one_prompt_may_wait_behind_work_that_is_nearly_done() -> None:
    assert placed([job("a"), job("b")], [pod("a")], load("a", live())) == {"a": ("pod_a", 1)}


def test_an_idle_pod_is_preferred_to_a_place_behind_a_warm_one() -> None:
    warm = load("a", live(), base_model="base", lora_sha256="x")
    assert placed([job("j", lora_sha256="x")], [pod("a"), pod("b")], warm) == {"j": ("pod_b", 0)}


def test_a_pod_that_was_idle_gets_the_next_prompt_as_well() -> None:
    assert placed([job("a"), job("b", 1.0)], [pod("a")]) == {"a": ("pod_a", 0), "b": ("pod_a", 1)}


def test_nothing_waits_behind_work_that_takes_half_a_minute() -> None:
    assert placed([job("j")], [pod("a")], load("a", live(seconds=30.0))) == {}


def test_the_time_that_running_work_has_had_already_counts() -> None:
    assert placed([job("j")], [pod("a")], load("a", live(seconds=30.0)), now=5.0) == {"j": ("pod_a", 1)}


def test_nothing_waits_behind_a_training() -> None:
    assert placed([job("j")], [pod("a")], load("a", live(seconds=1.0, kind="train"))) == {}


def test_no_training_waits_behind_anything() -> None:
    assert placed([job("t", kind="train")], [pod("a")], load("a", live(seconds=1.0))) == {}


@pytest.mark.parametrize(("seconds", "places"), [(10.0, 1), (0.3, 3), (0.02, 8)])
def test_more_than_one_prompt_waits_only_while_all_of_them_are_over_in_a_moment(seconds: float, places: int) -> None:
    jobs = [job(str(n), estimate_seconds=seconds) for n in range(10)]
    made = placed(jobs, [pod("a")], load("a", live(seconds=seconds)))
    assert sorted(slot for _, slot in made.values()) == list(range(1, 1 + places))


def test_a_place_that_came_free_below_a_waiting_prompt_is_used_again() -> None:
    assert placed([job("j")], [pod("a")], load("a", live(slot=1))) == {"j": ("pod_a", 0)}


def test_of_two_busy_pods_the_one_that_is_free_sooner_gets_the_prompt() -> None:
    loads = [load("a", live(seconds=25.0)), load("b", live(seconds=5.0))]
    assert placed([job("j")], [pod("a"), pod("b")], *loads) == {"j": ("pod_b", 1)}


def test_a_draining_pod_gets_nothing_not_even_a_place_behind_its_work() -> None:
    leaving = pod("a", state="draining", draining=True)
    assert placed([job("j")], [leaving], load("a", live())) == {}


def test_a_waiting_place_is_explained() -> None:
    (made,) = assign([job("j")], [pod("a")], {"pod_a": load("a", live(), base_model="base")}, 4.0)
    assert made.choice.reason == "next behind 1 job with about 6 s left; base model is resident"


def test_at_most_as_many_as_asked_for_are_assigned() -> None:
    assert len(placed([job(str(n)) for n in range(9)], [pod(str(n)) for n in range(9)], limit=3)) == 3


# -- lanes -------------------------------------------------------------------------------------------------------------


def test_jobs_that_differ_in_their_lora_alone_share_a_lane() -> None:
    one, other = ({"nodes": ["K"], "lora_sha256": lora} for lora in ("x", "y"))
    assert lane_of("p", "image", one, "base") == lane_of("p", "image", other, "base")


@pytest.mark.parametrize(
    "other",
    [
        ("q", "image", {"nodes": ["K"]}, "base"),
        ("p", "video", {"nodes": ["K"]}, "base"),
        ("p", "image", {"nodes": ["L"]}, "base"),
        ("p", "image", {"nodes": ["K"]}, None),
    ],
)
def test_whatever_else_a_job_asks_puts_it_into_another_lane(other: tuple[Any, ...]) -> None:
    assert lane_of(*other) != lane_of("p", "image", {"nodes": ["K"]}, "base")
