"""Binding: the same values give the same graph; every unacceptable value is named at once."""

from pathlib import Path

import pytest

from controlplane.errors import Unprocessable
from controlplane.workflows import template
from controlplane.workflows.binding import bind

FOLDER = Path(__file__).parents[2] / "workflow_templates"
GIVEN = {"character_id": "nell", "prompt": "smiling", "seed": 7}


@pytest.fixture(scope="module")
def image():
    return template.load(FOLDER / "sketch_image")


@pytest.fixture(scope="module")
def video():
    return template.load(FOLDER / "sketch_video")


def pointers_of(template, values):
    with pytest.raises(Unprocessable) as caught:
        bind(template, values)
    return [error["pointer"] for error in caught.value.errors]


def test_a_value_lands_in_its_field(image):
    assert bind(image, GIVEN).graph["4"]["inputs"]["text"] == "smiling"


def test_links_stay_as_they_are(image):
    assert bind(image, GIVEN).graph["4"]["inputs"]["clip"] == ["2", 1]


def test_count_is_the_batch_size(image):
    assert bind(image, GIVEN | {"count": 3}).graph["5"]["inputs"]["batch_size"] == 3


def test_defaults_are_part_of_the_values_in_force(image):
    assert bind(image, GIVEN).values["steps"] == 20


def test_none_means_not_given(image):
    assert bind(image, GIVEN | {"steps": None}).values["steps"] == 20


def test_one_value_may_go_to_several_nodes(video):
    graph = bind(video, GIVEN).graph
    assert graph["7"]["inputs"]["seed"] == graph["8"]["inputs"]["seed"] == 7


def test_a_text_is_put_together_from_several_values(video):
    graph = bind(video, GIVEN | {"motion": "angry"}).graph
    assert graph["5"]["inputs"]["text"] == "smiling, angry"


def test_braces_in_a_value_are_not_a_placeholder(video):
    graph = bind(video, GIVEN | {"prompt": "{motion}", "motion": "{prompt}"}).graph
    assert graph["5"]["inputs"]["text"] == "{motion}, {prompt}"


def test_binding_does_not_touch_the_template(image):
    before = bind(image, GIVEN).digest
    bind(image, GIVEN | {"prompt": "angry", "width": 256})
    assert bind(image, GIVEN).digest == before


def test_a_whole_float_and_an_integer_make_the_same_graph(image):
    assert bind(image, GIVEN | {"steps": 20.0, "cfg": 4}).digest == bind(image, GIVEN).digest


def test_another_seed_makes_another_graph(image):
    assert bind(image, GIVEN | {"seed": 8}).digest != bind(image, GIVEN).digest


def test_every_unacceptable_value_is_named(image):
    values = GIVEN | {"width": 130, "poem": "x", "prompt": ""}
    assert pointers_of(image, values) == ["/poem", "/prompt", "/width"]


def test_a_size_between_two_steps_is_refused_in_words(image):
    with pytest.raises(Unprocessable, match="width must be a multiple of 8"):
        bind(image, GIVEN | {"width": 130})


def test_a_missing_value_is_named(image):
    assert pointers_of(image, {"prompt": "smiling", "seed": 1}) == ["/character_id"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", True),
        ("steps", 2.5),
        ("steps", "20"),
        ("steps", 0),
        ("steps", float("nan")),
        ("cfg", float("inf")),
        ("cfg", 10**400),
        ("seed", 2**53),
        ("seed", -1),
        ("width", 264),
        ("format", "bmp"),
        ("prompt", 5),
        ("prompt", "x" * 2201),
        ("prompt", "half \ud83d a pair"),
        ("prompt", "nul \0"),
    ],
)
def test_an_unacceptable_value_is_refused(image, name, value):
    assert pointers_of(image, GIVEN | {name: value}) == [f"/{name}"]
