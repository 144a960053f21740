"""Which texts are held to the content rules: all that reach the picture, whatever an input is called."""

import pytest

from controlplane.errors import InvalidTemplate
from controlplane.workflows.screening import fixed_texts, wanted_texts

from .exports import FACTS, control_net, high_resolution, imported, node, portrait


def screened(graph, **values):
    done = imported(graph, **values.pop("wish", {}))
    return wanted_texts(done.template, {"prompt": "a dog", **values})


def titled(graph, node_id, title):
    graph[node_id]["_meta"] = {"title": title}
    return graph


@pytest.mark.parametrize("facts", [FACTS, {}], ids=["with a pod", "without a pod"])
def test_the_prompt_is_screened_and_the_negative_prompt_is_not(facts):
    texts = screened(portrait(), negative_prompt="ugly", wish={"facts": facts})
    assert ("a dog" in texts, "ugly" in texts) == (True, False)


def test_a_text_with_another_name_is_screened():
    assert "in oil" in screened(titled(high_resolution(), "6b", "@style"), style="in oil")


def test_a_positive_text_that_is_called_negative_is_screened():
    graph = titled(titled(high_resolution(), "6b", "@negative_prompt"), "6", "@prompt")
    assert "in oil" in screened(graph, negative_prompt="in oil")


def test_a_negative_text_that_is_also_positive_is_screened():
    graph = high_resolution()
    graph["12"]["inputs"]["positive"] = ["7", 0]
    assert "in oil" in screened(graph, negative_prompt="in oil")


def test_a_default_in_force_is_screened():
    assert "fine details" in screened(titled(high_resolution(), "6b", "@style"))


def test_a_text_within_the_graph_is_screened():
    assert "fine details" in screened(high_resolution())


def test_a_list_within_the_graph_is_screened():
    graph = portrait()
    graph["8"] = node("SomeDecoder", samples=["3", 0], vae=["4", 2], words={"__value__": ["one", ["two", "three"]]})
    assert {"one", "two", "three"} <= set(screened(graph))


def test_the_negative_side_of_a_control_net_is_not_screened():
    assert "ugly" not in screened(control_net(), negative_prompt="ugly")


def test_a_control_net_whose_sides_are_exchanged_is_screened():
    graph = control_net()
    graph["3"]["inputs"] |= {"positive": ["22", 1], "negative": ["22", 0]}
    titled(graph, "6", "@words")
    titled(graph, "7", "@prompt")
    assert {"a dog", "ugly"} <= set(screened(graph, words="ugly"))


def test_a_negative_text_is_screened_where_nothing_keeps_away_from_it():
    graph = portrait()
    graph["3"]["inputs"]["cfg"] = 0.5
    assert "ugly" in screened(graph, negative_prompt="ugly")


def test_a_negative_text_is_screened_where_a_request_may_turn_the_guidance_down():
    assert "ugly" in screened(titled(portrait(), "3", "@guidance.cfg"), negative_prompt="ugly")


@pytest.mark.parametrize(("least", "is_screened"), [(0, True), (1, False)])
def test_a_negative_text_is_screened_where_the_guidance_begins_below_one(least, is_screened):
    graph = portrait()
    graph["20"] = node("VideoLinearCFGGuidance", model=["4", 0], min_cfg=least)
    graph["3"]["inputs"]["model"] = ["20", 0]
    assert ("ugly" in screened(graph, negative_prompt="ugly")) == is_screened


def test_a_negative_text_of_an_unknown_sampler_is_screened():
    graph = portrait()
    graph["3"] = node("MysterySampler", positive=["6", 0], negative=["7", 0], latent_image=["5", 0], seed=1)
    assert "ugly" in screened(graph, negative_prompt="ugly")


def test_a_field_that_its_class_does_not_know_makes_no_sampler_of_a_node():
    graph = portrait()
    graph["20"] = node(
        "InpaintModelConditioning", positive=["6", 0], negative=["7", 0], vae=["4", 2], pixels=["21", 0],
        mask=["21", 1], noise_mask=True, cfg=8,
    )  # fmt: skip
    graph["21"] = node("LoadImage", image="shape.png")
    graph["3"]["inputs"] |= {"positive": ["20", 1], "negative": ["20", 1]}
    titled(graph, "6", "@prompt")
    titled(graph, "7", "@negative_prompt")
    assert "ugly" in screened(graph, negative_prompt="ugly")


def test_a_list_that_looks_like_a_link_within_a_value_is_screened():
    graph = portrait()
    graph["8"] = node("SomeDecoder", samples=["3", 0], vae=["4", 2], words={"__value__": ["two words", 1]})
    assert "two words" in screened(graph)


@pytest.mark.parametrize("slot", [False, 0.0])
def test_a_link_that_only_comfyui_would_follow_is_refused(slot):
    graph = portrait()
    graph["3"]["inputs"]["positive"] = ["7", slot]
    titled(graph, "7", "@negative_prompt")
    graph["8"] = node("SomeDecoder", samples=["3", 0], vae=["4", 2], words=["6", 0])
    titled(graph, "6", "@prompt")
    with pytest.raises(InvalidTemplate, match="positive"):
        imported(graph)


def test_what_the_server_sets_is_not_screened():
    done = imported(portrait(), insert_character=True)
    assert "nell" not in wanted_texts(done.template, {"character_id": "nell", "prompt": "x"})


def test_the_texts_of_the_shipped_templates_are_harmless(request):
    from controlplane.domain.content import check_content
    from controlplane.settings import Settings
    from controlplane.workflows.catalog import Catalog

    for template in Catalog.load(Settings().templates).templates.values():
        check_content("general", fixed_texts(template), [], False)


def test_the_negative_prompts_of_the_shipped_templates_are_not_screened():
    from controlplane.settings import Settings
    from controlplane.workflows.catalog import Catalog

    catalog = Catalog.load(Settings().templates)
    taking = [one for one in catalog.templates.values() if one.takes("negative_prompt")]
    assert taking
    assert [one.name for one in taking if "ugly" in wanted_texts(one, {"negative_prompt": "ugly"})] == []
