"""Characters: drawn the same every time, marked as no base portrait is, and kept as files in the examples folder."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from sketch_base import characters, drawing, other_hand
from sketch_base.marks import PAINTERS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "characters"
HANDS = {"ours": characters, "other": other_hand}


def differs(first, second):
    return ImageChops.difference(first, second).getbbox() is not None


@pytest.fixture(params=characters.EXAMPLES, ids=lambda character: character.slug)
def example(request):
    return request.param


@pytest.fixture(params=sorted(HANDS))
def hand(request):
    return HANDS[request.param]


SCENE = characters.reference_scenes(1, 4)[0]


def test_a_scene_is_drawn_the_same_every_time(example, hand):
    assert not differs(hand.draw_character(example, SCENE, 64), hand.draw_character(example, SCENE, 64))


def test_the_two_hands_draw_differently(example):
    pictures = [hand.draw_character(example, SCENE, 64) for hand in HANDS.values()]
    assert differs(*pictures)


def test_the_mask_covers_the_middle_and_not_the_upper_corners(example, hand):
    mask = hand.character_mask(example, SCENE, 64)
    assert (mask.getpixel((32, 30)), mask.getpixel((0, 0)), mask.getpixel((63, 0))) == (255, 0, 0)


@pytest.mark.parametrize("kind", sorted(PAINTERS))
def test_every_mark_shows(kind):
    plain = characters.EXAMPLES[1]
    unmarked = characters.Character(**{**vars(plain), "marks": ()})
    marked = characters.Character(**{**vars(plain), "marks": (characters.Mark(kind, (250, 0, 250), (0, 250, 0)),)})
    first, second = (characters.draw_character(c, SCENE, 64) for c in (unmarked, marked))
    changed = sum(1 for value in ImageChops.difference(first, second).convert("L").tobytes() if value > 40)
    assert changed >= 20


def test_no_word_of_the_base_names_a_mark():
    rng = random.Random(0)
    captions = " ".join(drawing.caption(drawing.random_portrait(rng), rng) for _ in range(400))
    assert not any(mark in captions for mark in PAINTERS)


def test_reference_scenes_use_every_expression_and_background():
    scenes = characters.reference_scenes(20, 1)
    assert {scene.expression for scene in scenes} == set(drawing.EXPRESSIONS)
    assert {scene.background for scene in scenes} == set(drawing.BACKGROUNDS)


def test_the_same_seed_makes_the_same_character():
    first, second = (characters.random_character(random.Random(3), 0) for _ in range(2))
    assert first == second


def test_a_lookalike_shares_hair_and_differs_in_marks():
    someone = characters.random_character(random.Random(5), 0)
    other = characters.alike(someone, random.Random(6), 1)
    assert other.look.hair_colour == someone.look.hair_colour
    assert not {mark.kind for mark in other.marks} & {mark.kind for mark in someone.marks}


def test_triggers_are_rare_words_of_the_allowed_shape(example):
    assert re.fullmatch(r"[a-z0-9]{4,10}", example.trigger)


def test_the_folder_holds_twenty_captioned_pictures(example):
    folder = EXAMPLES / example.slug
    captions = json.loads((folder / "captions.json").read_text(encoding="utf-8"))
    assert (
        sorted(captions) == [f"{n:03d}.png" for n in range(1, 21)] == sorted(path.name for path in folder.glob("*.png"))
    )


def test_the_folder_holds_what_the_script_draws(example):
    number = characters.EXAMPLES.index(example)
    scene = characters.reference_scenes(20, characters.EXAMPLE_SEED + number)[4]
    with Image.open(EXAMPLES / example.slug / "005.png") as stored:
        drawn = characters.draw_character(example, scene, characters.EXAMPLE_SIZE)
        difference = ImageChops.difference(stored.convert("RGB"), drawn).convert("L").resize((64, 64))
    assert max(difference.tobytes()) <= 24  # another Pillow may place an edge a little differently


def test_the_folder_says_who_it_is(example):
    about = json.loads((EXAMPLES / example.slug / "character.json").read_text(encoding="utf-8"))
    assert (about["name"], about["class_word"], about["subject"]) == (example.name, example.class_word, "fictional")
