"""Inputs named in titles: any field of any node, with the type and range that the pod gives it."""

import pytest

from controlplane.errors import InvalidTemplate
from controlplane.workflows.titles import titled, without_names

from .exports import FACTS, control_net, high_resolution, imported, node, portrait


def titles(graph, **by_node):
    for node_id, title in by_node.items():
        graph[node_id.lstrip("n")]["_meta"] = {"title": title}
    return graph


def places(graph, name, **wish):
    return [(target.node, target.field) for target in imported(graph, **wish).template.inputs[name].targets]


def refusal(graph):
    with pytest.raises(InvalidTemplate) as caught:
        imported(graph)
    return caught.value.detail


def test_a_title_wins_over_what_was_traced():
    assert places(titles(high_resolution(), n6b="@prompt", n6="@style"), "prompt") == [("6b", "text")]


def test_the_field_stands_behind_a_dot():
    assert places(titles(control_net(), n22="Pose @pose_strength.strength"), "pose_strength") == [("22", "strength")]


def test_one_title_names_several_fields():
    graph = titles(high_resolution(), n12="Refine @fine_steps.steps @fine_cfg.cfg")
    assert [places(graph, name) for name in ("fine_steps", "fine_cfg")] == [[("12", "steps")], [("12", "cfg")]]


def test_several_nodes_share_a_name():
    graph = titles(high_resolution(), n3="@scheduler", n12="@scheduler")
    assert places(graph, "scheduler") == [("3", "scheduler"), ("12", "scheduler")]


def test_a_name_that_is_a_field_means_that_field():
    assert places(titles(high_resolution(), n12="@denoise"), "denoise") == [("12", "denoise")]


def test_a_standard_name_means_what_the_node_calls_it():
    assert places(titles(portrait(), n5="@count"), "count") == [("5", "batch_size")]


def test_a_picture_gets_the_name_of_its_title():
    assert places(titles(control_net(), n20="@pose"), "pose") == [("20", "image")]


def test_names_are_written_small_with_underscores():
    assert places(titles(control_net(), n20="@Body-Pose"), "body_pose") == [("20", "image")]


def test_a_range_comes_from_the_pod():
    spec = imported(titles(control_net(), n22="@pose.strength")).template.inputs["pose"]
    assert (spec.type, spec.min, spec.max, spec.default) == ("number", 0.0, 10.0, 0.9)


def test_a_list_of_choices_comes_from_the_pod():
    spec = imported(titles(portrait(), n3="@sampler.sampler_name")).template.inputs["sampler"]
    assert (spec.type, "dpmpp_2m" in spec.options, spec.default) == ("string", True, "euler")


def test_without_a_pod_the_value_decides_the_type():
    spec = imported(titles(portrait(), n3="@sampler.sampler_name"), facts={}).template.inputs["sampler"]
    assert (spec.type, spec.options) == ("string", ())


def test_a_truth_value_stays_one():
    graph = portrait()
    graph["8"] = node("SomeDecoder", "@tiled", samples=["3", 0], tiled=True)
    assert imported(graph).template.inputs["tiled"].type == "boolean"


def test_the_words_of_a_title_describe_the_input():
    assert imported(titles(control_net(), n22="Hold the pose @pose.strength")).template.inputs["pose"].description == (
        "Hold the pose: strength"
    )


def test_a_field_of_several_needs_to_be_named():
    assert "title it one of @fun.seed, @fun.steps" in refusal(titles(portrait(), n3="@fun"))


def test_a_field_that_is_not_there_is_told_with_those_that_are():
    assert "no field 'step'; title it one of @s.seed" in refusal(titles(portrait(), n3="@s.step"))


def test_a_connected_field_is_told():
    assert "connected to another node" in refusal(titles(portrait(), n3="@p.positive"))


def test_a_node_without_values_is_told():
    assert "no value to set" in refusal(titles(portrait(), n8="@x"))


@pytest.mark.parametrize("name", ["character_id", "model", "workflow", "rating", "metadata", "version"])
def test_a_name_that_means_something_else_in_a_request_is_refused(name):
    assert "choose another name" in refusal(titles(portrait(), n3=f"@{name}.steps"))


def test_two_names_for_one_field_are_refused():
    assert "both name field steps" in refusal(titles(portrait(), n3="@a.steps @b.steps"))


@pytest.mark.parametrize("field", ["character_id", "version", "sha256"])
def test_who_is_painted_cannot_be_titled(field):
    graph = portrait()
    graph["10"] = node(
        "CharacterLoRALoader", f"@who.{field}", model=["4", 0], clip=["4", 1], character_id="nell", version=0,
        strength=-1.0, sha256="",
    )  # fmt: skip
    graph["3"]["inputs"]["model"] = ["10", 0]
    assert f"{field} is set by the server" in refusal(graph)


def test_a_number_cannot_be_the_prompt():
    assert "prompt is string" in refusal(titles(portrait(), n3="@prompt.steps"))


def test_a_guidance_below_one_cannot_be_titled():
    graph = portrait()
    graph["3"]["inputs"]["cfg"] = 0.5
    assert "from 1 upwards" in refusal(titles(graph, n3="@cfg"))


@pytest.mark.parametrize("title", ["me@example.org", "50% @ 2x", "look @", "@2x", "a@b @", "Kopf/@nase"])
def test_an_at_sign_that_begins_no_name_is_only_a_sign(title):
    assert titled_names(title) == {}


def titled_names(title):
    from controlplane.workflows.graph import parse

    return titled(parse(titles(portrait(), n3=title)), FACTS)


def test_names_are_taken_out_of_titles():
    assert without_names("Hold @pose.strength - the pose @x") == "Hold - the pose"


def test_a_title_on_what_is_dropped_changes_nothing():
    graph = portrait()
    graph["9b"] = node("PreviewImage", "@nothing", images=["8", 0])
    assert "nothing" not in imported(graph).template.inputs
