"""Values from a command line, written into an artist's own graph before it runs."""

import pytest

from controlplane.errors import BadRequest
from controlplane.workflows.graph import parse
from controlplane.workflows.overriding import pictures, settable, with_values

from .exports import FACTS, control_net, node, portrait


def set_in(graph, **values):
    parsed = parse(graph)
    return with_values(parsed, settable(parsed, FACTS), {name.replace("__", "."): one for name, one in values.items()})


def test_an_input_is_set_by_its_name():
    assert set_in(portrait(), prompt="a dog")["6"]["inputs"]["text"] == "a dog"


def test_any_field_is_set_by_its_place():
    graph = with_values(parse(portrait()), {}, {"3.sampler_name": "heun"})
    assert graph["3"]["inputs"]["sampler_name"] == "heun"


def test_a_field_of_a_subgraph_is_set_by_its_place():
    graph = {"12:5": node("X", steps=3)}
    assert with_values(parse(graph), {}, {"12:5.steps": "4"})["12:5"]["inputs"]["steps"] == 4


@pytest.mark.parametrize(("text", "value"), [("5", 5), ("7.5", 7.5), ("1e1", 10.0)])
def test_a_number_stays_a_number(text, value):
    assert set_in(portrait(), cfg=text)["3"]["inputs"]["cfg"] == value


@pytest.mark.parametrize(
    ("name", "text"), [("steps", "many"), ("n.tiled", "perhaps"), ("3.model", "x"), ("9.none", "x")]
)
def test_what_does_not_fit_is_refused(name, text):
    graph = parse({**portrait(), "n": node("X", tiled=True)})
    with pytest.raises(BadRequest):
        with_values(graph, settable(graph, FACTS), {name: text})


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(BadRequest, match="prompt"):
        set_in(portrait(), colour="red")


def test_nothing_else_changes():
    assert set_in(portrait()) == portrait()


def test_the_pictures_of_a_graph_are_found():
    assert [(one.node, one.field, one.name) for one in pictures(control_net(), FACTS)] == [("20", "image", "pose.png")]
