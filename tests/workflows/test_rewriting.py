"""What is changed in a graph: everything saved goes through S3Save, a character's LoRA goes behind all loaders."""

from copy import deepcopy

import pytest

from controlplane.errors import InvalidTemplate
from controlplane.workflows.graph import to_api
from controlplane.workflows.object_info import Field, NodeFacts

from .exports import FACTS, flux, high_resolution, imported, node, portrait, video, with_lora


def graph_of(done):
    return to_api(done.template.graph)


def loaders(done):
    return {key: one["inputs"] for key, one in graph_of(done).items() if one["class_type"] == "CharacterLoRALoader"}


def inputs(done, key):
    return graph_of(done)[key]["inputs"]


@pytest.fixture(params=[FACTS, {}], ids=["with a pod", "without a pod"])
def facts(request):
    return request.param


def test_save_image_becomes_s3save_in_its_place(facts):
    done = imported(portrait(), facts=facts)
    assert graph_of(done)["9"] == node("S3Save", images=["8", 0], name="image", format="png", quality=90)


def test_a_preview_counts_where_nothing_is_saved(facts):
    graph = portrait()
    graph["9"] = node("PreviewImage", images=["8", 0])
    assert graph_of(imported(graph, facts=facts))["9"]["class_type"] == "S3Save"


def test_a_preview_beside_a_saved_picture_is_dropped_and_told(facts):
    graph = portrait()
    graph["90"] = node("PreviewImage", images=["8", 0])
    done = imported(graph, facts=facts)
    assert "90" not in graph_of(done)
    assert [change.node for change in done.changes if change.action == "removed"] == ["90"]


def test_what_no_output_needs_is_dropped(facts):
    graph = portrait()
    graph["90"] = node("NodeOfAPackNobodyHas", anything=1)
    assert "90" not in graph_of(imported(graph, facts=facts))


def test_two_saved_pictures_are_two_outputs(facts):
    graph = portrait()
    graph["90"] = node("SaveImage", images=["8", 0], filename_prefix="again")
    assert [output.node for output in imported(graph, facts=facts).template.outputs] == ["9", "90"]


@pytest.mark.parametrize(
    ("save", "form", "fps"),
    [
        (node("VHS_VideoCombine", images=["8", 0], frame_rate=24, format="video/h264-mp4"), "mp4", 24.0),
        (node("VHS_VideoCombine", images=["8", 0], frame_rate=24, format="video/webm"), "webm", 24.0),
        (node("SaveAnimatedWEBP", images=["8", 0], fps=6.0, filename_prefix="x", method="default"), "mp4", 6.0),
        (node("SaveWEBM", images=["8", 0], fps=24.0, codec="vp9", crf=32, filename_prefix="x"), "webm", 24.0),
        (node("VHS_VideoCombine", images=["8", 0], frame_rate=999, format="image/gif"), "mp4", 120.0),
    ],
)
def test_every_way_to_save_a_video_becomes_s3save(facts, save, form, fps):
    done = imported({**portrait(), "9": save}, facts=facts)
    assert (done.template.kind, inputs(done, "9")["format"], inputs(done, "9")["fps"]) == ("video", form, fps)


def test_comfyuis_own_save_video_takes_the_pictures_of_create_video(facts):
    graph = portrait()
    graph["80"] = node("CreateVideo", images=["8", 0], fps=16.0, audio=["70", 0])
    graph["70"] = node("LoadAudio", audio="a.wav")
    graph["9"] = node("SaveVideo", video=["80", 0], filename_prefix="x", format="auto", codec="auto")
    done = imported(graph, facts=facts)
    assert (inputs(done, "9")["images"], inputs(done, "9")["fps"]) == (["8", 0], 16.0)
    assert set(graph_of(done)) == set(portrait())
    assert any("sound" in note for note in done.notes)


def test_a_frame_rate_from_another_node_stays_connected(facts):
    graph = portrait()
    graph["15"] = node("PrimitiveFloat", value=10.0)
    graph["9"] = node("VHS_VideoCombine", images=["8", 0], frame_rate=["15", 0], format="video/h264-mp4")
    done = imported(graph, facts=facts)
    assert (inputs(done, "9")["fps"], done.template.inputs["fps"].targets[0].node) == (["15", 0], "15")


def test_pictures_can_be_asked_for_as_a_video():
    done = imported(portrait(), kind="video")
    assert (done.template.kind, inputs(done, "9")["format"]) == ("video", "mp4")


def test_a_video_cannot_be_asked_for_as_a_picture():
    with pytest.raises(InvalidTemplate, match="kind is video"):
        imported(video(), kind="image")


@pytest.mark.parametrize("end", [{}, {"9": node("ShowText", text="x")}, {"9": node("SaveLatent", samples=["3", 0])}])
def test_a_graph_that_saves_no_picture_is_refused(facts, end):
    graph = portrait()
    del graph["9"]
    with pytest.raises(InvalidTemplate, match="Save Image"):
        imported({**graph, **end}, facts=facts)


def test_a_character_goes_behind_the_checkpoint(facts):
    done = imported(portrait(), facts=facts, insert_character=True)
    assert loaders(done) == {
        "10": {"model": ["4", 0], "clip": ["4", 1], "character_id": "", "version": 0, "strength": -1.0, "sha256": ""}
    }
    assert [inputs(done, "3")["model"], inputs(done, "6")["clip"], inputs(done, "7")["clip"]] == [
        ["10", 0], ["10", 1], ["10", 1],
    ]  # fmt: skip


def test_the_vae_stays_the_checkpoints(facts):
    assert inputs(imported(portrait(), facts=facts, insert_character=True), "8")["vae"] == ["4", 2]


def test_a_character_goes_behind_the_loras_that_are_there(facts):
    done = imported(with_lora(portrait()), facts=facts, insert_character=True)
    assert [(one["model"], one["clip"]) for one in loaders(done).values()] == [(["10", 0], ["10", 1])]
    assert inputs(done, "10")["model"] == ["4", 0]


def test_a_lora_for_the_model_alone_does_not_part_model_and_clip(facts):
    graph = portrait()
    graph["10"] = node("LoraLoaderModelOnly", model=["4", 0], lora_name="x.safetensors", strength_model=1)
    graph["3"]["inputs"]["model"] = ["10", 0]
    done = imported(graph, facts=facts, insert_character=True)
    assert [(one["model"], one["clip"]) for one in loaders(done).values()] == [(["10", 0], ["4", 1])]


def test_what_lies_between_model_and_sampler_stays_behind_the_character():
    graph = flux()
    graph["20"] = node("ModelSamplingFlux", model=["1", 0], max_shift=1.1, base_shift=0.5, width=1024, height=1024)
    graph["6"]["inputs"]["model"] = graph["9"]["inputs"]["model"] = ["20", 0]
    done = imported(graph, insert_character=True, base="sdxl")
    assert [(one["model"], one["clip"]) for one in loaders(done).values()] == [(["1", 0], ["2", 0])]
    assert inputs(done, "20")["model"] == [next(iter(loaders(done))), 0]


def test_a_patch_in_front_of_a_lora_does_not_get_a_second_character():
    graph = with_lora(portrait())
    graph["20"] = node("ModelSamplingFlux", model=["4", 0], max_shift=1.1, base_shift=0.5, width=128, height=128)
    graph["21"] = node("CLIPSetLastLayer", clip=["4", 1], stop_at_clip_layer=-2)
    graph["10"]["inputs"] |= {"model": ["20", 0], "clip": ["21", 0]}
    done = imported(graph, insert_character=True)
    assert [(one["model"], one["clip"]) for one in loaders(done).values()] == [(["10", 0], ["10", 1])]


def test_a_text_encoder_past_the_lora_gets_the_character_once(facts):
    graph = with_lora(portrait())
    graph["7"]["inputs"]["clip"] = ["4", 1]
    done = imported(graph, facts=facts, insert_character=True)
    clip = inputs(done, "7")["clip"]
    assert loaders(done)[clip[0]]["clip"] == ["4", 1]
    assert inputs(done, "10") | {"model": ["4", 0], "clip": ["4", 1]} == inputs(done, "10")


def test_every_sampler_of_the_same_checkpoint_gets_the_character(facts):
    done = imported(high_resolution(), facts=facts, insert_character=True)
    assert [inputs(done, key)["model"][0] for key in ("3", "12")] == list(loaders(done)) * 2


def test_a_refiner_of_its_own_checkpoint_is_left_alone(facts):
    graph = high_resolution()
    graph["40"] = node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors")
    graph["12"]["inputs"]["model"] = ["40", 0]
    graph["6b"]["inputs"]["clip"] = ["40", 1]
    done = imported(graph, facts=facts, insert_character=True)
    assert (len(loaders(done)), inputs(done, "12")["model"], inputs(done, "6b")["clip"]) == (1, ["40", 0], ["40", 1])


def test_a_graph_with_a_character_gets_no_second_one(facts):
    graph = portrait()
    graph["15"] = node("CharacterLoRALoader", model=["4", 0], clip=["4", 1], character_id="x", version=0, strength=-1.0)
    graph["3"]["inputs"]["model"] = ["15", 0]
    done = imported(graph, facts=facts, insert_character=True)
    assert list(loaders(done)) == ["15"]
    assert any("already" in note for note in done.notes)


def test_the_character_that_was_typed_in_for_a_desktop_is_forgotten(facts):
    graph = portrait()
    graph["15"] = node("CharacterLoRALoader", model=["4", 0], clip=["4", 1], character_id="x", version=3, strength=0.5)
    graph["3"]["inputs"]["model"] = ["15", 0]
    assert inputs(imported(graph, facts=facts), "15") | {"character_id": "", "version": 0, "strength": 0.5} == inputs(
        imported(graph, facts=facts), "15"
    )


def test_a_model_without_clip_has_no_place_for_a_character():
    with pytest.raises(InvalidTemplate, match="CLIP"):
        imported(video(), insert_character=True)


def test_every_change_is_told(facts):
    done = imported(with_lora(portrait()), facts=facts, insert_character=True)
    assert [(change.action, change.node) for change in done.changes] == [
        ("replaced", "9"), ("inserted", "11"), ("rewired", "3"), ("rewired", "6"), ("rewired", "7"),
    ]  # fmt: skip


def test_the_given_graph_is_not_touched():
    graph = with_lora(portrait())
    before = deepcopy(graph)
    imported(graph, insert_character=True)
    assert graph == before


def test_the_lora_loader_of_a_pack_that_nobody_knows_is_taken_for_one():
    graph = with_lora(portrait())
    graph["10"] = node("Power Lora Loader (rgthree)", model=["4", 0], clip=["4", 1], lora_1={"on": True, "lora": "x"})
    done = imported(graph, insert_character=True)
    assert [(one["model"], one["clip"]) for one in loaders(done).values()] == [(["10", 0], ["10", 1])]


def test_a_preview_of_another_pack_counts_as_one():
    graph = portrait()
    graph["90"] = node("ImageAndMaskPreview", image=["8", 0])
    assert [output.node for output in imported(graph).template.outputs] == ["9"]


def test_a_path_from_windows_is_written_as_the_pods_list_it():
    loader = NodeFacts({"lora_name": Field("COMBO", options=("art/ink.safetensors",))}, ("MODEL", "CLIP"))
    facts = {**FACTS, "LoraLoader": loader}
    graph = with_lora(portrait())
    graph["10"]["inputs"]["lora_name"] = "art\\ink.safetensors"
    done = imported(graph, facts=facts)
    assert (inputs(done, "10")["lora_name"], done.template.needs.models["loras"]) == (
        "art/ink.safetensors", ("art/ink.safetensors",),
    )  # fmt: skip
