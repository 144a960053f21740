"""The drawn portraits: determined by their seed, put in words by a fixed grammar, with a mask that fits."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
import pytest

from sketch_base import drawing, words
from sketch_base.drawing import Portrait, caption, draw, draw_mask, random_portrait


def test_the_same_seed_draws_the_same_pixels() -> None:
    first, second = (draw(random_portrait(random.Random(5))) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_another_seed_draws_another_picture() -> None:
    assert draw(random_portrait(random.Random(5))).tobytes() != draw(random_portrait(random.Random(6))).tobytes()


def test_a_drawing_has_the_asked_size() -> None:
    assert draw(Portrait(), 96).size == (96, 96)


@pytest.mark.parametrize("expression", drawing.EXPRESSIONS[:-1])
def test_an_expression_changes_a_visible_part_of_the_face(expression: str) -> None:
    neutral, other = (np.asarray(draw(Portrait(expression=e)), dtype=int) for e in ("neutral", expression))
    assert (np.abs(neutral - other).max(axis=2) > 60).sum() > 100


@pytest.mark.parametrize("background", drawing.BACKGROUNDS)
def test_the_background_is_drawn_outside_the_mask_only(background: str) -> None:
    plain = Portrait(background="plain white background")
    inside = np.asarray(draw_mask(plain)) == 255
    a, b = (np.asarray(draw(replace(plain, background=name))) for name in ("plain white background", background))
    assert (a[inside] == b[inside]).all()


def test_the_mask_covers_a_sensible_share_of_every_portrait() -> None:
    shares = [np.asarray(draw_mask(random_portrait(random.Random(i)))).mean() / 255 for i in range(20)]
    assert 0.25 < min(shares) <= max(shares) < 0.75


def test_marks_are_painted_over_the_figure_and_enter_the_mask() -> None:
    def flag(canvas: drawing.Canvas, anchors: drawing.Anchors) -> None:
        canvas.box(0, 0, 10, 10, (255, 0, 255), 0)

    assert draw(Portrait(), marks=flag).getpixel((5, 5)) == (255, 0, 255)
    assert draw_mask(Portrait(), marks=flag).getpixel((5, 5)) == 255


def test_the_canonical_caption_names_everything_in_order() -> None:
    portrait = Portrait(accessory="hat", accessory_colour="green")
    assert caption(portrait, trigger="zorbeq") == (
        "zorbeq person, brown short hair, light skin, brown eyes, neutral, blue shirt, green hat, "
        "plain white background"
    )


def test_a_shuffled_caption_keeps_colour_and_noun_together() -> None:
    rng = random.Random(1)
    for _ in range(200):
        portrait = random_portrait(rng)
        said = caption(portrait, rng, "abcdef")
        phrases = said.split(", ")
        assert phrases[0] == f"abcdef {portrait.class_word}"
        clothes = [p for p in phrases if p.split(" ")[-1] in words.CLOTHES_NOUNS]
        assert clothes in ([], [f"{portrait.clothes_colour} {portrait.clothes_noun}"])


def test_phrases_are_left_out_of_some_captions() -> None:
    rng = random.Random(2)
    lengths = {caption(Portrait(), rng).count(",") for _ in range(200)}
    assert len(lengths) >= 4


def test_only_adults_are_ever_named() -> None:
    rng = random.Random(3)
    said = " ".join(caption(random_portrait(rng), rng) for _ in range(500))
    assert not re.search(r"\b(child|kid|girl|boy|teen|baby|young)", said)


def test_no_training_portrait_is_drawn_in_the_hand_that_the_gate_holds_back() -> None:
    styles = [random_portrait(random.Random(i)).style for i in range(500)]
    assert not any(style.angular or style.hatch for style in styles)


def test_the_prompt_gate_has_the_agreed_word_groups() -> None:
    assert len(drawing.BACKGROUNDS) >= 6
    assert len(drawing.EXPRESSIONS) >= 4
    assert len(drawing.CLOTHES) >= 6
    assert all(c in words.CLOTHES_COLOURS and n in words.CLOTHES_NOUNS for c, n in drawing.CLOTHES)
