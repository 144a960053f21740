"""The prompt measure: its grid, its marks, and the views its networks see."""

from __future__ import annotations

import random
from itertools import product

from PIL import Image

from bench import prompt, prompt_judge
from sketch_base import drawing

RIGHT = {"background": "at sunset", "expression": "sad", "colour": "red", "noun": "suit"}


def test_the_grid_is_all_backgrounds_times_expressions_times_clothes():
    found = {(s["background"], s["expression"], (s["colour"], s["noun"])) for s in prompt.grid(1.0)}
    assert found == set(product(drawing.BACKGROUNDS, drawing.EXPRESSIONS, drawing.CLOTHES))


def test_a_share_of_the_grid_is_always_the_same_share():
    assert prompt.grid(0.1) == prompt.grid(0.1)
    assert len(prompt.grid(0.1)) == len(prompt.grid(1.0)) // 10


def test_clothes_count_only_when_colour_and_noun_are_right():
    shares = prompt.grade([RIGHT, RIGHT | {"colour": "blue"}, RIGHT | {"noun": "shirt"}], [RIGHT] * 3)
    assert shares == {"background": 1.0, "expression": 1.0, "clothes": 1 / 3, "all": (1 + 1 + 1 / 3) / 3}


def test_a_prompt_names_every_word_of_its_scene():
    assert prompt.prompt_of("mira woman", RIGHT) == "mira woman, sad, red suit, at sunset"


def test_an_untrained_judge_answers_with_words_of_every_head():
    image = drawing.draw(drawing.random_portrait(random.Random(0)))
    (answer,) = prompt_judge.Judge().answers([image])
    assert answer["background"] in drawing.BACKGROUNDS
    assert (answer["colour"], answer["noun"]) in set(product(drawing.CLOTHES_COLOURS, drawing.CLOTHES_NOUNS))


def test_the_expression_network_does_not_see_the_clothes():
    red, blue = (Image.new("RGB", (128, 128), (9, 9, 9)) for _ in range(2))
    red.paste((255, 0, 0), (0, 100, 128, 128))
    blue.paste((0, 0, 255), (0, 100, 128, 128))
    eye = next(eye for eye in prompt_judge.EYES if eye.name == "expression")
    assert prompt_judge._view(eye, [red]).equal(prompt_judge._view(eye, [blue]))
