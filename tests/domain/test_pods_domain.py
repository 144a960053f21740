"""Placement: which pod a job goes to, and in which words it is told why there is none."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from controlplane.domain.pods import Load, Needs, Pod, choose

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


def load(name: str, **values: Any) -> dict[str, Load]:
    return {f"pod_{name}": Load(f"pod_{name}", **values)}


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
