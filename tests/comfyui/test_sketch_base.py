"""The sketch base in a real ComfyUI: the same file answers the same there as in the embedded pod (diffusers)."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import websocket
from PIL import Image
from safetensors.torch import load_file

from comfy_nodes.host import set_host
from comfy_nodes.sketch import checkpoint, sampling
from comfy_nodes.sketch.architecture import SketchModules
from pod_images.embedded import painting
from pod_images.embedded.models import Clip
from pod_images.embedded.pod import Pod, build_pod

from .conftest import SKETCH_CHECKPOINT
from .graphs import CHECKPOINT, Graph, ended, node, picture, run, saved_files, submit
from .measuring_nodes import SIDES, TIMES, noise
from .server import NO_COMFYUI, PACK, SKETCH_MODELS, ComfyUI, checkout, start_comfyui

TEXTS = (
    "portrait of a smiling woman with red hair",
    "",
    "nellq captain, standing in a park, waving, blue coat, it's 42 o'clock!",
    "ünïcode, unknownwordzz; semi-colon & more",
)
LANGUAGE = (
    "a (smiling) woman with ((red)) hair, (blue coat:1.4), (hat:0.6)",
    "a \\(smiling\\) woman: (red: hair) (:1.5) (a:b) (12:03:1.2)",
    "unbalanced (smiling woman) ) with (red) hair",
    "unbalanced ( smiling (woman:1.3)",
    "((nested (deeper:1.5) hat:0.7), red)",
    "woman, red hair, " * 40,
    "(woman, red hair, blue coat, long dress:1.3), " * 12,
    "one two three four five six seven (eight nine ten:1.2) " * 11,
)
CLOSE = 1e-3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    packs = {"any-name": PACK, "measuring": Path(__file__).with_name("measuring_nodes")}
    base = tmp_path_factory.mktemp("measured")
    options = ["--preview-method", "latent2rgb"]
    with start_comfyui(base, packs=packs, options=options, checkpoints=[SKETCH_CHECKPOINT]) as running:
        yield running


@pytest.fixture(scope="module")
def outcome(server: ComfyUI) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What ComfyUI's modules answered, and how the file was recognised."""
    file = server.base / "measured.safetensors"
    graph: Graph = {
        "1": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "2": node(
            "MeasureSketch",
            model=["1", 0],
            clip=["1", 1],
            vae=["1", 2],
            texts=json.dumps(TEXTS + LANGUAGE),
            file=str(file),
        ),
    }
    outputs = run(server, graph)
    return load_file(file), outputs["2"]["recognised"][0]


@pytest.fixture(scope="module")
def measured(outcome: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> dict[str, torch.Tensor]:
    return outcome[0]


@pytest.fixture(scope="module")
def recognised(outcome: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> dict[str, Any]:
    return outcome[1]


@pytest.fixture(scope="module")
def modules() -> SketchModules:
    torch.set_num_threads(1)
    return checkpoint.load(SKETCH_CHECKPOINT)


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_a_prompt_has_the_same_tokens(measured: Any, modules: SketchModules, number: int) -> None:
    first, second = sampling.tokenize(modules, [TEXTS[number]])
    assert torch.equal(measured[f"tokens_1.{number}"], first)
    assert torch.equal(measured[f"tokens_2.{number}"], second)


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_a_prompt_has_the_same_conditioning(measured: Any, modules: SketchModules, number: int) -> None:
    encoded = sampling.encode_prompt(modules, TEXTS[number])
    assert torch.allclose(measured[f"hidden.{number}"], encoded.hidden, atol=CLOSE, rtol=0)
    assert torch.allclose(measured[f"pooled.{number}"], encoded.pooled, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("number", range(len(TEXTS + LANGUAGE)))
def test_weights_and_long_prompts_are_read_the_same(measured: Any, modules: SketchModules, number: int) -> None:
    ((hidden, extra),) = painting.encode_text(Clip(modules), (TEXTS + LANGUAGE)[number])
    assert measured[f"hidden.{number}"].shape == hidden.shape
    assert torch.allclose(measured[f"hidden.{number}"], hidden, atol=CLOSE, rtol=0)
    assert torch.allclose(measured[f"pooled.{number}"], extra["pooled_output"], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("time", TIMES)
def test_the_unet_answers_the_same_to_the_same_noise(measured: Any, modules: SketchModules, time: int) -> None:
    encoded = sampling.encode_prompt(modules, TEXTS[0])
    added = {"text_embeds": encoded.pooled, "time_ids": sampling.size_ids(128, 128, 1)}
    with torch.inference_mode():
        answer = modules.unet(
            noise((1, 16, 16, 16), time), float(time), encoded.hidden, added_cond_kwargs=added, return_dict=False
        )[0]
    assert torch.allclose(measured[f"unet.{time}"], answer, atol=CLOSE, rtol=0)


def test_a_latent_is_decoded_to_the_same_picture(measured: Any, modules: SketchModules) -> None:
    decoded = sampling.decode(modules, noise((1, 16, 16, 16), 1) * 4 - 2)
    assert torch.allclose(measured["decoded"], decoded, atol=CLOSE, rtol=0)


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_a_picture_is_encoded_to_the_same_latent(
    measured: Any, modules: SketchModules, height: int, width: int
) -> None:
    encoded = sampling.encode(modules, noise((1, height, width, 3), 2))
    assert torch.allclose(measured[f"encoded.{height}"], encoded, atol=CLOSE, rtol=0)


def test_the_file_is_recognised_as_the_sketch_base(recognised: dict[str, Any]) -> None:
    assert (recognised["this"], recognised["prediction"]) == ("TroupeSketch", "V_PREDICTION")


def test_no_other_model_is_taken_for_the_sketch_base(recognised: dict[str, Any]) -> None:
    assert (recognised["taken_from_others"], recognised["sdxl"]) == ([], "SDXL")


def test_a_latent_preview_knows_every_channel(recognised: dict[str, Any]) -> None:
    assert recognised["preview_rows"] == recognised["latent_channels"] == 16


def test_every_step_of_a_sampler_shows_a_preview(server: ComfyUI) -> None:
    with contextlib.closing(websocket.create_connection(f"ws{server.address[4:]}/ws?clientId=tests")) as connection:
        ended(server, submit(server, picture(TEXTS[0], seed=31, steps=5)))
        frames: list[bytes] = []
        while not isinstance(message := connection.recv(), str) or '"node": null' not in message:
            frames += [message] if isinstance(message, bytes) else []
    assert [Image.open(io.BytesIO(frame[8:])).format for frame in frames] == ["JPEG"] * 5


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    pod = build_pod(tmp_path_factory.mktemp("embedded"), [SKETCH_MODELS], "secret")
    pod.start()
    yield pod
    pod.stop()
    set_host(None)


def far_apart(server: ComfyUI, pod: Pod, graph: Graph) -> int:
    """The largest difference of a colour value (0..255) between what the two pods save for one graph."""
    item = pod.submit(graph, ["7"], {})
    there = [pixels(content) for content in saved_files(server, run(server, graph))]
    while not (entry := pod.queue.history(item.prompt_id)):
        pod.worker.join(0.02)
    output = pod.folders.directory("output")
    files = entry[item.prompt_id]["outputs"]["7"]["images"]
    here = [pixels((output / file["filename"]).read_bytes()) for file in files]
    return max(int(np.abs(one - other).max()) for one, other in zip(there, here, strict=True))


def pixels(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


@pytest.mark.parametrize("save", ["SaveImage", "S3Save"])
def test_the_same_request_paints_the_same_picture_on_both_pods(server: ComfyUI, embedded: Pod, save: str) -> None:
    assert far_apart(server, embedded, picture(TEXTS[0], seed=2**63 + 5, steps=8, save=save)) <= 1


def test_a_long_weighted_prompt_against_a_short_one_is_the_same_on_both_pods(server: ComfyUI, embedded: Pod) -> None:
    assert far_apart(server, embedded, picture(LANGUAGE[6], steps=4)) <= 1


def test_the_same_prompt_travel_is_the_same_on_both_pods(server: ComfyUI, embedded: Pod) -> None:
    graph = picture(TEXTS[0], steps=4)
    graph["10"] = node("CLIPTextEncode", text=LANGUAGE[6], clip=["1", 1])
    graph["11"] = node(
        "PromptTravelSampler", model=["1", 0], positive_from=["2", 0], positive_to=["10", 0], negative=["3", 0],
        latent=["5", 0], frames=3, seed=3, steps=4, cfg=4.0, denoise=0.6,
    )  # fmt: skip
    graph["6"]["inputs"]["samples"] = ["11", 0]
    assert far_apart(server, embedded, graph) <= 1
