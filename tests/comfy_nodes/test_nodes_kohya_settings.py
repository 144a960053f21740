"""The settings of one run of sd-scripts: exposure, what the pod's memory allows, the ladder after running out of it."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from comfy_nodes.training.failure import TrainerError
from comfy_nodes.training.kohya_settings import Recipe, Settings, differences, easier, exposure, fitting, settings_for

GIB = 2**30
RECIPES = yaml.safe_load((Path(__file__).parents[2] / "workflow_templates" / "recipes.yaml").read_text())["sdxl"]


def recipe(name: str = "standard", **changes: Any) -> Recipe:
    return Recipe.of({**RECIPES[name]["params"], **changes})


def settings(name: str = "standard", gib: float = 23.6, images: int = 20, **changes: Any) -> Settings:
    return settings_for(recipe(name, **changes), images, int(gib * GIB))


def steps(one: Settings, images: int) -> int:
    return math.ceil(math.ceil(images * one.repeats / one.batch_size) / one.accumulation) * one.epochs


def climb(one: Settings, code: str, gib: float) -> list[str]:
    """What is given up, one after the other, until nothing is left."""
    words = []
    while (found := easier(one, code, int(gib * GIB))) is not None:
        one, said = found
        words.append(said)
    return words


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_of_sdxl_is_understood(name: str) -> None:
    assert recipe(name).architecture == "sdxl"


@pytest.mark.parametrize(("name", "expected"), [("fast", 200), ("standard", 1000), ("quality", 1200)])
def test_twenty_images_train_for_the_recipes_steps(name: str, expected: int) -> None:
    assert steps(settings(name), 20) == expected


@pytest.mark.parametrize("images", [5, 7, 20, 33, 60, 100])
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_steps_stay_within_the_recipes_limits(name: str, images: int) -> None:
    one = recipe(name)
    assert one.min_steps <= steps(settings(name, images=images), images) <= one.max_steps


def test_a_dataset_too_large_for_the_limit_is_seen_in_fewer_epochs() -> None:
    assert exposure(recipe(max_steps=100, batch_size=1), 40) == (2, 1)


@pytest.mark.parametrize("gib", [7.8, 11.8, 15.7, 23.6, 47.4, 79.2, 0])
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_trains_for_as_many_steps_on_every_pod(name: str, gib: float) -> None:
    assert steps(settings(name, gib), 20) == steps(settings(name, 79.2), 20)


@pytest.mark.parametrize(
    ("gib", "expected"),
    [
        (7.8, (1, 768, 8, True, "AdamW8bit", True, "", 0)),
        (11.8, (1, 1024, 16, True, "AdamW8bit", False, "", 0)),
        (15.7, (2, 1024, 16, True, "AdamW8bit", False, "", 6)),
        (23.6, (2, 1024, 16, True, "AdamW8bit", False, "lowram", 6)),
        (79.2, (2, 1024, 16, False, "AdamW", False, "highvram", 6)),
        (0, (2, 1024, 16, False, "AdamW", False, "", 6)),
    ],
)
def test_the_memory_of_the_pod_decides_how_a_recipe_is_run(gib: float, expected: tuple[Any, ...]) -> None:
    one = settings(gib=gib)
    assert expected == (
        one.batch_size, one.resolution, one.rank, one.checkpointing, one.optimizer, one.fp8_base, one.placement,
        one.sample_every_epochs,
    )  # fmt: skip


def test_a_lower_rank_keeps_the_strength_of_the_updates() -> None:
    small, large = settings("quality", 7.8), settings("quality", 79.2)
    assert (small.alpha / small.rank, small.rank) == (large.alpha / large.rank, 8)


def test_sd15_needs_less_memory_than_sdxl() -> None:
    assert settings(gib=15.7, architecture="sd15").placement == "highvram"


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"architecture": "sdxl", "stepz": 3}, "stepz"),
        ({}, "sdxl or sd15"),
        ({"architecture": "flux"}, "sdxl or sd15"),
        ({"architecture": "sdxl", "views": "many"}, "views has to be of type int"),
        ({"architecture": "sdxl", "views": True}, "views has to be of type int"),
    ],
)
def test_a_recipe_that_is_not_understood_is_refused_in_words(params: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainerError, match=f"bad_recipe: .*{words}"):
        Recipe.of(params)


def test_out_of_memory_gives_up_one_thing_after_the_other() -> None:
    assert climb(settings("fast", 79.2, resolution=1024), "out_of_memory", 79.2) == [
        "one image at a time, 4 for each step",
        "gradient checkpointing",
        "the 8-bit optimiser",
        "images of 768 pixels",
        "rank 8",
        "the base in 8-bit floats",
    ]


def test_a_gpu_of_24_gb_gives_up_only_what_it_still_has() -> None:
    assert climb(settings(gib=23.6), "out_of_memory", 23.6) == [
        "one image at a time, 2 for each step",
        "images of 768 pixels",
        "rank 8",
        "the base in 8-bit floats",
    ]


def test_what_a_small_gpu_has_given_up_already_is_not_tried_again() -> None:
    assert climb(settings(gib=11.8), "out_of_memory", 11.8) == [
        "images of 768 pixels",
        "rank 8",
        "the base in 8-bit floats",
    ]


def test_the_smallest_gpu_has_nothing_left_to_give_up() -> None:
    assert climb(settings(gib=7.8), "out_of_memory", 7.8) == []


def test_a_lower_rank_on_the_ladder_keeps_the_strength_of_the_updates() -> None:
    one = settings("quality", 79.2)
    while (found := easier(one, "out_of_memory", 80 * GIB)) is not None:
        one = found[0]
    assert (one.rank, one.alpha) == (8, 4.0)


def test_a_host_that_is_out_of_memory_is_spared_by_loading_straight_to_a_large_gpu() -> None:
    assert climb(settings(gib=79.2), "killed", 79.2) == ["the base loaded straight to the GPU"]


@pytest.mark.parametrize("gib", [15.7, 23.6])
def test_a_host_that_is_out_of_memory_is_beyond_help_where_the_gpu_is_small_or_used_already(gib: float) -> None:
    assert climb(settings(gib=gib), "killed", gib) == []


def test_a_cpu_spares_its_memory_too() -> None:
    assert climb(settings(gib=0), "killed", 0) == [
        "every weight in bfloat16",
        "gradient checkpointing",
        "one image at a time, 2 for each step",
    ]


@pytest.mark.parametrize("code", ["loss_diverged", "bad_image", "no_data", "hung", "cancelled", "trainer_failed"])
def test_nothing_else_is_tried_again(code: str) -> None:
    assert climb(settings(), code, 23.6) == []


def test_a_state_fits_the_settings_that_it_was_saved_with() -> None:
    assert differences(settings(), asdict(settings())) == []


def test_a_state_fits_where_only_the_use_of_memory_differs() -> None:
    other = replace(settings(), checkpointing=False, fp8_base=True, placement="highvram")
    assert differences(settings(), asdict(other)) == []


@pytest.mark.parametrize(
    "change", [{"rank": 8}, {"optimizer": "AdamW"}, {"batch_size": 1, "accumulation": 2}, {"epochs": 3}]
)
def test_a_state_of_other_tensors_or_steps_does_not_fit(change: dict[str, Any]) -> None:
    assert differences(settings(), asdict(replace(settings(), **change))) == sorted(change, key=list(change).index)


def test_a_state_saved_down_the_ladder_is_gone_on_from_there() -> None:
    saved = easier(settings(gib=11.8), "out_of_memory", 12 * GIB)
    assert saved is not None
    assert fitting(settings(gib=11.8), asdict(saved[0]), int(11.8 * GIB)) == saved[0]


def test_a_state_of_a_larger_gpu_does_not_fit_a_smaller_one() -> None:
    assert fitting(settings(gib=11.8), asdict(settings(gib=79.2)), int(11.8 * GIB)) is None
