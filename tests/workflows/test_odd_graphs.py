"""Graphs as nobody would draw them: each is either a template that can be bound, or refused in one clear sentence."""

import random
from copy import deepcopy

import pytest

from controlplane.errors import ContentRefused, InvalidTemplate, Unprocessable
from controlplane.workflows import sources
from controlplane.workflows.binding import bind

from .exports import FACTS, control_net, flux, high_resolution, imported, node, portrait, video, with_lora

GRAPHS = [portrait, high_resolution, flux, video, control_net, lambda: with_lora(control_net())]
VALUES = [
    None, True, False, 0, -1, 7, 0.5, 1e300, 2**70, -(2**70), "", "a cat", "x" * 3000, "@prompt", [], {}, [1, 2, 3],
    {"__value__": [1, 2]}, ["4", 0], ["4", 99], ["6", 0], ["none", 0], ["4", -1], ["4"], [4, 0], ["3", 0], ["9", 0],
]  # fmt: skip
TITLES = ["", "@prompt", "@x", "@x.text", "@steps", "@seed.seed", "@negative_prompt", "@model", "@a.b @c.d", "@image"]
CLASSES = ["KSampler", "SaveImage", "Reroute", "CLIPTextEncode", "LoraLoader", "PreviewImage", "NoSuchClass", "S3Save",
           "CharacterLoRALoader", "CheckpointLoaderSimple", "LoadImage", "VHS_VideoCombine", "CreateVideo"]  # fmt: skip


def mutated(graph, dice):
    """The graph with a few things changed as no editor would change them."""
    graph = deepcopy(graph)
    for _ in range(dice.randint(1, 4)):
        if not graph:
            break
        key = dice.choice(sorted(graph))
        one = graph[key]
        match dice.randint(0, 6):
            case 0:
                del graph[key]
            case 1 if one["inputs"]:
                one["inputs"][dice.choice(sorted(one["inputs"]))] = dice.choice(VALUES)
            case 2 if one["inputs"]:
                del one["inputs"][dice.choice(sorted(one["inputs"]))]
            case 3:
                one["_meta"] = {"title": dice.choice(TITLES)}
            case 4:
                one["class_type"] = dice.choice(CLASSES)
            case 5:
                graph[f"{key}:{dice.randint(1, 9)}"] = deepcopy(one)
            case _:
                one["inputs"][dice.choice(["text", "seed", "images", "video", "model", "extra"])] = dice.choice(VALUES)
    return graph


def outcome(graph, dice):
    """Import a graph and bind what came of it; the sentence of the refusal where it was refused."""
    wish = {"insert_character": dice.random() < 0.4, "facts": FACTS if dice.random() < 0.5 else {}}
    try:
        done = imported(sources.api_graph(graph), **wish)
    except (InvalidTemplate, Unprocessable, ContentRefused) as refused:
        return refused.detail
    template = done.template
    values = {"prompt": "a dog"}
    for name, spec in template.inputs.items():
        if spec.required and name != "prompt":
            values[name] = 5 if spec.type == "integer" else "x.png"
    graph = bind(template, values).graph
    assert {output.node for output in template.outputs} <= set(graph)
    return ""


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_changed_the_answer_is_a_template_or_a_sentence(seed):
    dice = random.Random(seed)
    for _ in range(20):
        told = outcome(mutated(dice.choice(GRAPHS)(), dice), dice)
        assert told.isprintable(), told
        assert told == "" or 20 < len(told) < 900, told


def test_enough_of_the_changed_graphs_are_still_templates():
    dice = random.Random(1)
    told = [outcome(mutated(dice.choice(GRAPHS)(), dice), dice) for _ in range(200)]
    assert 30 < told.count("") < 190


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"3": None}, "linked to '3', which is not there"),
        ({"3": node("KSampler", latent_image=["3", 0], positive=["6", 0])}, "runs in a circle"),
        ({"6": node("CLIPTextEncode", clip=["4", 1])}, "@prompt"),
        ({"6": node("CLIPTextEncode", clip=["4", 1], text=["4", 0])}, "@prompt"),
        ({"6": node("CLIPTextEncode", clip=["4", 1], text={"__value__": ["a", "b"]})}, "@prompt"),
        ({"3": node("MysteryPainter", text=["6", 0], size=["5", 0])}, "no sampler"),
    ],
)
def test_what_is_missing_is_told(change, words):
    graph = {**portrait(), **change}
    with pytest.raises(InvalidTemplate, match=words):
        imported({key: one for key, one in graph.items() if one is not None})


def test_an_unknown_sampler_is_followed_like_a_known_one():
    graph = portrait()
    graph["3"]["class_type"] = "KSampler (Efficient)"
    assert imported(graph).template.takes("seed")


def test_a_graph_without_a_sampler_works_by_titles():
    graph = portrait()
    graph["3"] = node("MysteryPainter", "@prompt.words @seed.dice", words="a cat", dice=3, size=["5", 0])
    done = imported(graph)
    assert set(done.template.inputs) == {"prompt", "seed", "format"}


def test_a_seed_beyond_what_json_keeps_is_no_default():
    graph = portrait()
    graph["3"]["inputs"]["seed"] = 2**64 - 1
    assert imported(graph).template.inputs["seed"].max == 2**53 - 1


def test_a_second_seed_beyond_what_json_keeps_is_brought_into_range():
    graph = high_resolution()
    graph["12"]["inputs"]["seed"] = 2**64 - 1
    graph["12"]["_meta"] = {"title": "@second_seed.seed"}
    assert 0 <= imported(graph).template.inputs["second_seed"].default < 2**53


def test_a_long_graph_is_read_in_one_go():
    graph = portrait()
    link = ["3", 0]
    for number in range(400):
        graph[f"n{number}"] = node("Reroute", value=link)
        link = [f"n{number}", 0]
    graph["8"]["inputs"]["samples"] = link
    assert imported(graph, insert_character=True).template.takes("prompt")
