"""Names, slugs, triggers, prompts, content rules, keys and pages: the pure rules."""

from __future__ import annotations

import re

import pytest

from controlplane.domain import pages
from controlplane.domain.assets import output_key, thumbnail_key, training_key
from controlplane.domain.characters import Character, Version, checked_name, free_slug, slug_of, status_of
from controlplane.domain.content import check_content, denotes_minor
from controlplane.domain.datasets import dataset_digest
from controlplane.domain.prompts import caption_of, compose, training_caption
from controlplane.domain.recipes import Recipe
from controlplane.domain.triggers import COMMON_TOKENS, made_trigger
from controlplane.errors import ContentRefused, Unprocessable

MIRA = Character("default", "mira", "Mira", "woman", "mira", "sketch", 0.0, 0.0)


def version(number: int, status: str) -> Version:
    return Version("default", "mira", number, status, "sketch", "fast", "", "d", "j", 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../../etc/passwd",
        "a" * 500,
        "😀" * 50,
        "\u202eevil",
        "\u200f",
        "CON",
        "-rf /",
        "%2e%2e%2f",
        "İıß",
        "a.b",
        "x\u0301",
    ],
)
def test_a_slug_is_always_plain(name: str) -> None:
    assert re.fullmatch(r"(|[a-z0-9]([a-z0-9-]{0,58}[a-z0-9])?)", slug_of(name))


def test_a_slug_counts_up_until_it_is_free() -> None:
    taken = {"mira", "mira-2", "mira-3"}
    assert free_slug("Mira", taken.__contains__) == "mira-4"


@pytest.mark.parametrize("name", ["é", "שלום", "👩\u200d🚀 Nova", "a\u202eb", "x" * 120])
def test_a_name_keeps_its_text(name: str) -> None:
    assert checked_name(f" {name}\t") == name


@pytest.mark.parametrize("name", ["\u2028x", "a\u0085b", "tab\there"])
def test_separators_and_control_characters_are_no_name(name: str) -> None:
    with pytest.raises(Unprocessable):
        checked_name(f"a{name}b")


@pytest.mark.parametrize("slug", ["", "a", "woman", "the", "captain-nell", "character-0123456789", "x" * 60, "123"])
def test_a_made_trigger_is_valid_uncommon_and_free(slug: str) -> None:
    taken: set[str] = set()
    for _ in range(20):
        trigger = made_trigger(slug, taken)
        assert re.fullmatch(r"[a-z0-9]{4,10}", trigger)
        assert trigger not in COMMON_TOKENS
        assert trigger not in taken
        taken.add(trigger)


def test_a_name_that_is_no_common_word_is_its_own_trigger() -> None:
    assert made_trigger("mira", set()) == "mira"


def test_composing_collapses_white_space_and_adds_the_phrase_once() -> None:
    assert compose(" smiling,\n in  a forest ", MIRA) == "mira woman, smiling, in a forest"
    assert compose(compose("smiling", MIRA), MIRA) == "mira woman, smiling"


def test_a_prompt_without_a_character_is_left_alone() -> None:
    assert compose("a forest", None) == "a forest"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, ""),
        ("smiling", "smiling"),
        ("mira woman, smiling", "smiling"),
        ("MIRA, smiling", "smiling"),
        ("woman, smiling", "smiling"),
        ("woman in a coat", "woman in a coat"),
        ("miracle worker", "miracle worker"),
    ],
)
def test_a_kept_caption_has_no_trigger_phrase(given: str | None, kept: str) -> None:
    assert caption_of(given, MIRA) == kept


def test_a_training_caption_begins_with_trigger_and_class_word() -> None:
    assert training_caption("smiling", MIRA) == "mira woman, smiling"
    assert training_caption("", MIRA) == "mira woman"


@pytest.mark.parametrize(
    ("active", "statuses", "expected"),
    [
        (None, ["training"], "training"),
        (None, ["failed", "training"], "training"),
        (None, ["failed", "cancelled"], "failed"),
        (1, ["ready", "training"], "ready"),
        (1, ["ready", "failed"], "ready"),
    ],
)
def test_a_character_is_ready_while_a_version_is_active(active: int | None, statuses: list[str], expected: str) -> None:
    character = Character("default", "mira", "Mira", "woman", "mira", "sketch", 0.0, 0.0, active_version=active)
    assert status_of(character, [version(n + 1, status) for n, status in enumerate(statuses)]) == expected


@pytest.mark.parametrize(
    "text", ["a girl", "two Kids", "a 12 year old", "16-year-old", "aged 9", "teenager", "loli", "17 yo"]
)
def test_words_and_ages_of_minors_are_seen(text: str) -> None:
    assert denotes_minor(text)


@pytest.mark.parametrize("text", ["a woman", "cowboy", "a 32 year old man", "babylon", "girlish", "18 years old"])
def test_adults_are_not_taken_for_minors(text: str) -> None:
    assert not denotes_minor(text)


@pytest.mark.parametrize("prompt", ["nude", "in a bikini", "seductive pose"])
def test_suggestive_pictures_of_real_people_are_refused_at_any_rating(prompt: str) -> None:
    for rating in ("general", "mature"):
        with pytest.raises(ContentRefused):
            check_content(rating, [prompt], ["woman"], is_real=True)  # type: ignore[arg-type]


def test_a_fictional_adult_may_be_drawn_nude_where_the_request_says_mature() -> None:
    check_content("mature", ["nude, classical statue"], ["woman"], is_real=False)


def test_explicit_content_is_refused_at_every_rating() -> None:
    with pytest.raises(ContentRefused):
        check_content("mature", ["hardcore porn"], ["woman"], is_real=False)


def test_keys_are_clean_and_differ_between_attempts() -> None:
    day = 1_795_000_000.0
    assert output_key("default", "mira", "job_x", 1, 0, "png", day) == "default/mira/2026-11-18/job_x-1.png"
    assert output_key("default", None, "job_x", 2, 1, "png", day) == "default/_/2026-11-18/job_x-a2-2.png"
    assert training_key("default", "mira", "lora", "job_x", 1, 0, "safetensors") == (
        "default/mira/loras/job_x-1.safetensors"
    )
    assert thumbnail_key("a/b/c-1.png") == "a/b/c-1.thumb.webp"


def test_the_dataset_digest_ignores_order_and_sees_captions() -> None:
    assert dataset_digest([("1", "a"), ("2", "b")]) == dataset_digest([("2", "b"), ("1", "a")])
    assert dataset_digest([("1", "a")]) != dataset_digest([("1", "b")])


def test_a_recipe_digest_sees_parameters_and_not_words() -> None:
    recipe = Recipe("sketch", "fast", {"steps": 10, "rank": 8})
    assert recipe.digest == Recipe("sketch", "fast", {"rank": 8, "steps": 10}, title="Fast").digest
    assert recipe.digest != Recipe("sketch", "fast", {"steps": 11, "rank": 8}).digest


def test_a_cursor_comes_back_as_the_position_it_was_made_of() -> None:
    position = pages.Position(1234.5678901234, "job_x")
    assert pages.decode(pages.encode(position)) == position


@pytest.mark.parametrize("cursor", ["x", "%%%", "bm9wZQ", "WzEsMiwzXQ", "é"])
def test_a_cursor_of_somebody_elses_making_is_refused(cursor: str) -> None:
    with pytest.raises(Unprocessable):
        pages.decode(cursor)
