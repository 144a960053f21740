"""What an import finds in exports of several kinds, with and without a pod to ask."""

from copy import deepcopy

import pytest

from controlplane.errors import ContentRefused, InvalidTemplate, Unprocessable
from controlplane.workflows.binding import bind
from controlplane.workflows.importing import name_from

from .exports import FACTS, control_net, flux, high_resolution, imported, node, portrait, video, with_lora


def places(done, name):
    return [(target.node, target.field) for target in done.template.inputs[name].targets]


def bound(done, **values):
    return bind(done.template, {"prompt": "a dog", "seed": 5, **values}).graph


@pytest.fixture(params=[FACTS, {}], ids=["with a pod", "without a pod"])
def facts(request):
    return request.param


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("prompt", ("6", "text")), ("negative_prompt", ("7", "text")), ("seed", ("3", "seed")),
        ("steps", ("3", "steps")), ("cfg", ("3", "cfg")), ("width", ("5", "width")), ("height", ("5", "height")),
        ("count", ("5", "batch_size")), ("format", ("9", "format")),
    ],
)  # fmt: skip
def test_the_inputs_of_comfyuis_first_graph_are_found(facts, name, place):
    assert places(imported(portrait(), facts=facts), name) == [place]


def test_denoise_of_a_picture_made_from_noise_is_no_input(facts):
    assert not imported(portrait(), facts=facts).template.takes("denoise")


def test_values_reach_the_graph(facts):
    graph = bound(imported(portrait(), facts=facts), width=64, cfg=3)
    assert (graph["6"]["inputs"]["text"], graph["5"]["inputs"]["width"], graph["3"]["inputs"]["cfg"]) == (
        "a dog",
        64,
        3.0,
    )


def test_the_graphs_own_values_are_the_defaults(facts):
    inputs = imported(portrait(), facts=facts).template.inputs
    assert [inputs[name].default for name in ("steps", "cfg", "width", "negative_prompt")] == [20, 8.0, 128, "blurry"]


def test_a_seed_is_random_unless_given(facts):
    assert imported(portrait(), facts=facts).template.inputs["seed"].required


def test_ranges_and_steps_come_from_the_pod():
    width = imported(portrait()).template.inputs["width"]
    assert (width.min, width.max, width.step) == (16, 2048, 8)


def test_a_value_outside_the_step_of_its_class_is_kept_as_it_is():
    graph = portrait()
    graph["5"]["inputs"]["width"] = 129
    assert imported(graph).template.inputs["width"].step is None


def test_the_base_is_the_one_whose_checkpoint_it_is(facts):
    assert imported(portrait(), facts=facts).template.base == "sketch"


def test_another_checkpoint_makes_a_template_for_any_base():
    graph = portrait()
    graph["4"]["inputs"]["ckpt_name"] = "juggernaut.safetensors"
    assert imported(graph).template.base == "any"


def test_a_character_on_an_unknown_checkpoint_asks_for_the_base():
    graph = portrait()
    graph["4"]["inputs"]["ckpt_name"] = "juggernaut.safetensors"
    with pytest.raises(Unprocessable, match=r"juggernaut.*base is one of"):
        imported(graph, insert_character=True)


def test_the_artists_checkpoint_stays_and_is_needed():
    graph = portrait()
    graph["4"]["inputs"]["ckpt_name"] = "juggernaut.safetensors"
    done = imported(graph, insert_character=True, base="sdxl")
    assert done.template.needs.models == {"checkpoints": ("juggernaut.safetensors",)}
    assert not done.template.takes("checkpoint")


def test_an_unknown_base_is_refused_with_the_known_ones():
    with pytest.raises(Unprocessable, match="sketch"):
        imported(portrait(), base="oil")


def test_the_first_of_two_samplers_decides(facts):
    done = imported(high_resolution(), facts=facts)
    assert [places(done, name) for name in ("prompt", "steps", "width")] == [
        [("6", "text")],
        [("3", "steps")],
        [("5", "width")],
    ]


def test_every_sampler_gets_the_seed(facts):
    assert places(imported(high_resolution(), facts=facts), "seed") == [("3", "seed"), ("12", "seed")]


def test_flux_is_found_through_guider_noise_and_sigmas(facts):
    done = imported(flux(), facts=facts)
    assert [places(done, name) for name in ("prompt", "seed", "steps", "width")] == [
        [("4", "text")], [("7", "noise_seed")], [("9", "steps")], [("10", "width")],
    ]  # fmt: skip


def test_the_files_of_every_loader_are_needed():
    assert imported(flux()).template.needs.models == {
        "diffusion_models": ("flux1-dev.safetensors",),
        "text_encoders": ("clip_l.safetensors", "t5xxl_fp16.safetensors"),
        "vae": ("ae.safetensors",),
    }


def test_both_sides_of_a_control_net_keep_apart(facts):
    done = imported(control_net(), facts=facts)
    assert [places(done, name) for name in ("prompt", "negative_prompt")] == [[("6", "text")], [("7", "text")]]


def test_a_loaded_picture_is_an_input_that_must_be_given(facts):
    image = imported(control_net(), facts=facts).template.inputs["image"]
    assert (image.type, image.required, image.internal) == ("image", True, False)


def test_several_pictures_have_names_of_their_own(facts):
    graph = control_net()
    graph["30"] = node("LoadImage", image="start.png")
    graph["31"] = node("VAEEncode", pixels=["30", 0], vae=["4", 2])
    graph["3"]["inputs"] |= {"latent_image": ["31", 0], "denoise": 0.6}
    done = imported(graph, facts=facts)
    assert (places(done, "image"), places(done, "picture_1")) == ([("30", "image")], [("20", "image")])
    assert places(done, "denoise") == [("3", "denoise")]


def test_a_video_is_found_with_its_frames_rate_and_start(facts):
    done = imported(video(), facts=facts)
    assert [places(done, name) for name in ("frames", "fps", "image", "width", "seed")] == [
        [("3", "video_frames")], [("7", "fps")], [("2", "image")], [("3", "width")], [("5", "seed")],
    ]  # fmt: skip
    assert (done.template.kind, done.template.inputs["fps"].default) == ("video", 12.0)


def test_a_graph_that_reads_no_text_still_takes_a_prompt_to_be_checked():
    done = imported(video())
    assert done.template.inputs["prompt"].targets == ()
    assert any("not read" in note for note in done.notes)


def test_a_batch_of_a_video_is_its_frames():
    graph = portrait()
    graph["5"]["inputs"]["batch_size"] = 16
    graph["9"] = node("VHS_VideoCombine", images=["8", 0], frame_rate=8, format="video/webm")
    done = imported(graph)
    assert (places(done, "frames"), done.template.inputs["format"].default) == ([("5", "batch_size")], "webm")


def test_a_text_from_another_node_is_followed(facts):
    graph = portrait()
    graph["15"] = node("PrimitiveStringMultiline", value="a cat")
    graph["6"]["inputs"]["text"] = ["15", 0]
    assert places(imported(graph, facts=facts), "prompt") == [("15", "value")]


def test_a_seed_from_another_node_is_followed(facts):
    graph = portrait()
    graph["15"] = node("PrimitiveInt", value=3, control_after_generate="randomize")
    graph["3"]["inputs"]["seed"] = ["15", 0]
    assert places(imported(graph, facts=facts), "seed") == [("15", "value")]


def test_a_text_put_together_elsewhere_asks_for_a_title(facts):
    graph = portrait()
    graph["15"] = node("StringConcatenate", string_a="a cat", string_b="in a hat", delimiter=" ")
    graph["6"]["inputs"]["text"] = ["15", 0]
    with pytest.raises(InvalidTemplate, match="@prompt"):
        imported(graph, facts=facts)


def test_a_title_says_which_part_of_a_text_is_the_prompt(facts):
    graph = portrait()
    graph["15"] = node("StringConcatenate", "@prompt.string_a", string_a="a cat", string_b="in oil", delimiter=" ")
    graph["6"]["inputs"]["text"] = ["15", 0]
    assert places(imported(graph, facts=facts), "prompt") == [("15", "string_a")]


def test_two_different_texts_on_the_positive_side_ask_for_a_title(facts):
    graph = portrait()
    graph["6b"] = node("CLIPTextEncode", text="in oil", clip=["4", 1])
    graph["6c"] = node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["6b", 0])
    graph["3"]["inputs"]["positive"] = ["6c", 0]
    with pytest.raises(InvalidTemplate, match=r"several different texts.*@prompt"):
        imported(graph, facts=facts)


def test_the_same_text_in_two_encoders_is_one_prompt(facts):
    graph = portrait()
    graph["6b"] = node("CLIPTextEncode", text="a cat in a hat", clip=["4", 1])
    graph["6c"] = node("ConditioningConcat", conditioning_to=["6", 0], conditioning_from=["6b", 0])
    graph["3"]["inputs"]["positive"] = ["6c", 0]
    assert places(imported(graph, facts=facts), "prompt") == [("6", "text"), ("6b", "text")]


def test_one_number_for_width_and_height_is_told_and_left(facts):
    graph = portrait()
    graph["15"] = node("PrimitiveInt", value=512)
    graph["5"]["inputs"] |= {"width": ["15", 0], "height": ["15", 0]}
    done = imported(graph, facts=facts)
    assert not done.template.takes("width")
    assert any("width and height" in note for note in done.notes)


def test_a_title_names_that_number(facts):
    graph = portrait()
    graph["15"] = node("PrimitiveInt", "Side @side", value=512)
    graph["5"]["inputs"] |= {"width": ["15", 0], "height": ["15", 0]}
    assert places(imported(graph, facts=facts), "side") == [("15", "value")]


def test_a_guidance_below_one_cannot_be_set(facts):
    graph = portrait()
    graph["3"]["inputs"]["cfg"] = 0.5
    done = imported(graph, facts=facts)
    assert not done.template.takes("cfg")
    assert any(note.startswith("cfg") for note in done.notes)


def test_an_explicit_text_within_the_graph_is_refused(facts):
    graph = high_resolution()
    graph["6b"]["inputs"]["text"] = "hardcore porn"
    with pytest.raises(ContentRefused, match="within the graph"):
        imported(graph, facts=facts)


def test_a_suggestive_text_within_the_graph_is_told(facts):
    graph = high_resolution()
    graph["6b"]["inputs"]["text"] = "nude"
    assert any("rating mature" in note for note in imported(graph, facts=facts).notes)


def test_what_a_negative_text_keeps_away_from_is_fine(facts):
    graph = portrait()
    graph["7"]["inputs"]["text"] = "nsfw, nude, porn"
    assert imported(graph, facts=facts).template.inputs["negative_prompt"].default == "nsfw, nude, porn"


def test_two_different_negative_texts_stay_as_they_are():
    graph = portrait()
    graph["7b"] = node("CLIPTextEncode", text="ugly", clip=["4", 1])
    graph["7c"] = node("ConditioningCombine", conditioning_1=["7", 0], conditioning_2=["7b", 0])
    graph["3"]["inputs"]["negative"] = ["7c", 0]
    done = imported(graph)
    assert not done.template.takes("negative_prompt")
    assert any("@negative_prompt" in note for note in done.notes)


def test_the_ids_of_subgraphs_are_ids_like_others(facts):
    graph = {f"12:{key}": one for key, one in deepcopy(portrait()).items()}
    for one in graph.values():
        for name, value in one["inputs"].items():
            if isinstance(value, list):
                one["inputs"][name] = [f"12:{value[0]}", value[1]]
    assert places(imported(graph, facts=facts, insert_character=True), "prompt") == [("12:6", "text")]


def test_a_list_within_a_graph_stays_as_it_is(facts):
    graph = portrait()
    graph["8"] = node("SomeDecoder", samples=["3", 0], vae=["4", 2], sizes={"__value__": [1, 2]}, names=["a", "b", "c"])
    inputs = bound(imported(graph, facts=facts))["8"]["inputs"]
    assert (inputs["sizes"], inputs["names"]) == ({"__value__": [1, 2]}, ["a", "b", "c"])


def test_a_chain_of_several_samplers_with_one_schedule_keeps_its_steps(facts):
    graph = portrait()
    for key, start, end, noise in (("3", 0, 15, "enable"), ("30", 15, 10000, "disable")):
        graph[key] = node(
            "KSamplerAdvanced", model=["4", 0], positive=["6", 0], negative=["7", 0], add_noise=noise, noise_seed=1,
            latent_image=["5", 0] if key == "3" else ["3", 0], steps=20, cfg=8.0, sampler_name="euler",
            scheduler="normal", start_at_step=start, end_at_step=end, return_with_leftover_noise="enable",
        )  # fmt: skip
    graph["8"]["inputs"]["samples"] = ["30", 0]
    done = imported(graph, facts=facts)
    assert not done.template.takes("steps")
    assert places(done, "seed") == [("3", "noise_seed")]


def test_the_strength_that_an_artist_gave_a_character_is_the_default():
    graph = portrait()
    graph["15"] = node(
        "CharacterLoRALoader", model=["4", 0], clip=["4", 1], character_id="nell", version=0, strength=0.7
    )
    graph["3"]["inputs"]["model"] = ["15", 0]
    done = imported(graph)
    assert done.template.inputs["lora_strength"].default == 0.7
    assert bound(done, character_id="mira", version=2, lora_sha256="0" * 64)["15"]["inputs"]["sha256"] == "0" * 64


def test_what_is_found_does_not_depend_on_the_order_of_the_nodes():
    graph = with_lora(control_net())
    turned = dict(reversed(graph.items()))
    one, other = imported(graph, insert_character=True), imported(turned, insert_character=True)
    assert one.template.digest == other.template.digest


def test_the_same_file_gives_the_same_version():
    assert imported(portrait()).template.digest == imported(portrait()).template.digest


def test_another_value_gives_another_version():
    graph = portrait()
    graph["3"]["inputs"]["steps"] = 21
    assert imported(graph).template.digest != imported(portrait()).template.digest


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("My Portrait (2).json", "my_portrait_2"),
        ("/a/b/x.png", "x"),
        ("C:\\art\\Y.json", "y"),
        ("2024.json", ""),
        ("ü", ""),
    ],
)
def test_a_files_name_becomes_the_workflows(file, name):
    assert name_from(file) == name


def test_what_only_prepares_a_video_is_no_sampler():
    graph = portrait()
    graph["30"] = node("LTXVAddGuide", positive=["6", 0], negative=["7", 0], vae=["4", 2], latent=["5", 0], frame_idx=0)
    graph["3"]["inputs"] |= {"positive": ["30", 0], "negative": ["30", 1], "latent_image": ["30", 2]}
    done = imported(graph)
    assert [places(done, name) for name in ("prompt", "negative_prompt", "steps", "width")] == [
        [("6", "text")], [("7", "text")], [("3", "steps")], [("5", "width")],
    ]  # fmt: skip


def test_a_field_that_looks_like_a_secret_is_told():
    graph = portrait()
    graph["8"]["inputs"]["api_key"] = "sk-1"
    assert any("looks like a secret" in note for note in imported(graph).notes)
