"""Pods: what speaks for or against one, and in which words a waiting job is told why it has none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from controlplane.domain.placement import SHOWN_RIVALS, Waiting, assign
from controlplane.domain.pods import (
    Choice,
    Live,
    Load,
    Needs,
    Pod,
    explain,
    serves,
    state_shown,
)

IMAGE = Needs(nodes=frozenset({"KSampler"}), models={"checkpoints": ["a.safetensors"]}, labels=frozenset({"image"}))


def pod(name: str, **values: Any) -> Pod:
    base = Pod(
        id=f"pod_{name}",
        project_id="default",
        instance_id=name,
        name=name,
        kind="comfyui",
        address="http://127.0.0.1:1",
        token="t",
        key_hash="h",
        state="ready",
        protocol=1,
        node_classes=("KSampler",),
        models={"checkpoints": ["a.safetensors"]},
        trainers=("sketch",),
        labels=("image",),
        loras=(),
        created_at=0.0,
        last_heartbeat_at=0.0,
    )
    return dataclasses.replace(base, **values)


def load(name: str, running: int = 0, **values: Any) -> dict[str, Load]:
    live = tuple(Live(f"a{n}", f"j{n}", "default", n, "image", 60.0, 0.0) for n in range(running))
    return {f"pod_{name}": Load(f"pod_{name}", live, **values)}


def choose(needs: Needs, pods: Sequence[Pod], loads: Mapping[str, Load], avoid: frozenset[str] = frozenset()) -> Choice:
    """What one job gets: the pod it is assigned, else why it waits."""
    job = Waiting("job", "default", "image", "lane", needs, needs.base_model, needs.lora_sha256, 0, 0.0, 60.0, avoid)
    made = assign([job], pods, loads, now=0.0)
    return made[0].choice if made else explain(needs, pods, loads, avoid)


def test_a_free_pod_that_has_everything_is_chosen() -> None:
    assert choose(IMAGE, [pod("a")], {}).pod_id == "pod_a"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"state": "suspect"}, "is suspect"),
        ({"state": "lost"}, "is lost"),
        ({"state": "joining"}, "is joining"),
        (
            {"state": "joining", "boot": {"phase": "models", "detail": "x", "percent": 6.6}},
            "is joining, fetching its models (7 %)",
        ),
        ({"state": "joining", "boot": {"phase": "probing", "percent": None}}, "is joining, making a probe image"),
        ({"state": "draining", "draining": True}, "is draining"),
        ({"node_classes": ()}, "lacks node class KSampler"),
        ({"models": {}}, "lacks checkpoints/a.safetensors"),
        ({"labels": ("train",)}, "is not labelled image"),
    ],
)
def test_a_pod_that_cannot_do_it_drops_out_and_the_reason_says_why(values: dict[str, Any], words: str) -> None:
    choice = choose(IMAGE, [pod("a", **values)], {})
    assert choice.pod_id is None
    assert f"a {words}" in choice.reason


def test_a_training_never_goes_to_a_picture_pod() -> None:
    assert choose(Needs(labels=frozenset({"train"})), [pod("a")], {}).pod_id is None


def test_a_pod_without_labels_takes_any_work() -> None:
    assert choose(IMAGE, [pod("a", labels=())], {}).pod_id == "pod_a"


def test_a_pod_without_the_trainer_drops_out() -> None:
    needs = Needs(trainer="kohya")
    assert "has no trainer kohya" in choose(needs, [pod("a")], {}).reason


def test_a_busy_pod_is_not_given_a_second_prompt() -> None:
    choice = choose(IMAGE, [pod("a")], load("a", running=1))
    assert (choice.pod_id, choice.reason) == (None, "Every pod that can do this work is busy.")


def test_no_pod_at_all_is_said_plainly() -> None:
    assert choose(IMAGE, [], {}).reason == "No pod is known."


def test_the_pod_where_the_base_model_is_resident_is_preferred() -> None:
    needs = dataclasses.replace(IMAGE, base_model="sketch")
    loads = load("a", base_model="other", idle_since=0.0) | load("b", base_model="sketch", idle_since=9.0)
    assert choose(needs, [pod("a"), pod("b")], loads).pod_id == "pod_b"


def test_among_equal_bases_the_resident_lora_decides() -> None:
    needs = dataclasses.replace(IMAGE, base_model="sketch", lora_sha256="x")
    loads = load("a", base_model="sketch", idle_since=0.0) | load(
        "b", base_model="sketch", lora_sha256="x", idle_since=9.0
    )
    assert choose(needs, [pod("a"), pod("b")], loads).pod_id == "pod_b"


def test_a_lora_on_disk_is_better_than_none() -> None:
    needs = dataclasses.replace(IMAGE, lora_sha256="x")
    assert choose(needs, [pod("a"), pod("b", loras=("x",))], {}).pod_id == "pod_b"


def test_among_equals_the_longest_idle_pod_is_chosen() -> None:
    loads = load("a", idle_since=5.0) | load("b", idle_since=3.0)
    assert choose(IMAGE, [pod("a"), pod("b")], loads).pod_id == "pod_b"


def test_a_free_cold_pod_is_better_than_waiting_for_a_warm_one() -> None:
    needs = dataclasses.replace(IMAGE, base_model="sketch")
    loads = load("a", base_model="sketch", running=1)
    assert choose(needs, [pod("a"), pod("b")], loads).pod_id == "pod_b"


def test_a_pod_whose_trainer_has_an_obstacle_says_which() -> None:
    able = pod("a", trainer_obstacles={"kohya": "SD_SCRIPTS_DIR is not set"}, labels=("image", "train"))
    choice = choose(Needs(trainer="kohya", labels=frozenset({"train:sdxl"})), [able], {})
    assert choice.reason == "No pod can do this work: a cannot train with kohya: SD_SCRIPTS_DIR is not set."


def test_a_pod_that_knows_nothing_of_a_trainer_has_none() -> None:
    assert "a has no trainer kohya" in choose(Needs(trainer="kohya"), [pod("a")], {}).reason


def test_a_pod_where_the_job_failed_before_is_avoided() -> None:
    assert choose(IMAGE, [pod("a"), pod("b")], {}, avoid=frozenset({"pod_a"})).pod_id == "pod_b"


def test_a_job_waits_for_another_pod_rather_than_going_back_to_the_one_where_it_failed() -> None:
    choice = choose(IMAGE, [pod("a"), pod("b")], load("b", running=1), avoid=frozenset({"pod_a"}))
    assert choice.pod_id is None


def test_where_there_is_no_other_pod_the_job_goes_back() -> None:
    assert choose(IMAGE, [pod("a")], {}, avoid=frozenset({"pod_a"})).pod_id == "pod_a"


def test_every_pod_considered_gets_a_verdict() -> None:
    choice = choose(IMAGE, [pod("a"), pod("b", node_classes=())], {})
    assert choice.considered == (
        {"pod": "pod_a", "verdict": "free; nothing is resident"},
        {"pod": "pod_b", "verdict": "lacks node class KSampler"},
    )


def test_a_pods_token_and_key_are_not_printed() -> None:
    secret = pod("a", token="top-secret", key_hash="hash-of-key")
    assert "top-secret" not in repr(secret)
    assert "hash-of-key" not in repr(secret)


def test_a_large_fleet_is_not_listed_pod_by_pod() -> None:
    choice = choose(IMAGE, [pod(str(n)) for n in range(100)], {})
    assert (len(choice.considered), choice.more) == (1 + SHOWN_RIVALS, 99 - SHOWN_RIVALS)


def test_the_pod_that_was_chosen_is_listed_in_any_fleet() -> None:
    needs = dataclasses.replace(IMAGE, lora_sha256="x")
    pods = [*(pod(str(n)) for n in range(50)), pod("warm", loras=("x",))]
    assert {"pod": "pod_warm", "verdict": "free; LoRA is on its disk"} in choose(needs, pods, {}).considered


def test_a_waiting_job_that_a_pod_is_free_for_says_so() -> None:
    assert explain(IMAGE, [pod("a")], {}).reason == "A pod is free for this work and about to take it."


def test_a_job_that_failed_on_the_only_idle_pod_waits_for_the_busy_one() -> None:
    reason = explain(IMAGE, [pod("a"), pod("b")], load("b", running=1), avoid=frozenset({"pod_a"})).reason
    assert reason == "Every pod that can do this work is busy."


@pytest.mark.parametrize(
    ("state", "occupied", "shown"),
    [("ready", True, "busy"), ("ready", False, "ready"), ("draining", True, "draining"), ("suspect", True, "suspect")],
)
def test_a_ready_pod_with_work_in_hand_is_shown_as_busy(state: str, occupied: bool, shown: str) -> None:
    assert state_shown(state, occupied) == shown


def test_pods_of_the_default_project_work_for_every_project_and_others_for_their_own() -> None:
    own = pod("b", project_id="studio")
    assert [serves(pod("a"), "studio"), serves(own, "studio"), serves(own, "other")] == [True, True, False]


def test_the_rest_of_a_pods_work_leaves_out_what_the_running_job_has_had_already() -> None:
    (busy,) = load("a", running=2).values()
    assert busy.rest(now=20.0) == 100.0
