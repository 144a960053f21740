"""TrainLoRA with the sketch base's trainer in a ComfyUI that has nothing but what ComfyUI brings, and boto3."""

from __future__ import annotations

import io
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tests.comfy_nodes.control_plane_double import POD_KEY, ControlPlaneServer, serving

from .conftest import SKETCH_CHECKPOINT
from .graphs import Graph, call, node, picture, run
from .server import NO_COMFYUI, PACK, ComfyUI, checkout, start_comfyui

pytestmark = pytest.mark.slow
RECIPE = {"rank": 2, "alpha": 2, "batch_size": 1, "views": 1, "steps": 2}
TRAINING: Graph = {
    "1": node("TrainLoRA", character_id="mira", version=1, base="sketch", recipe="fast", dataset_digest="d1")
}


def portrait(shade: int) -> bytes:
    image = Image.new("RGB", (128, 128), (40, 80, shade))
    ImageDraw.Draw(image).ellipse((32, 16, 96, 112), fill=(240, 200, shade))
    body = io.BytesIO()
    image.save(body, "PNG")
    return body.getvalue()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ComfyUI, ControlPlaneServer]]:
    """A copy of the pack, no link, and the trainer's interpreter beside ComfyUI's."""
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    base = tmp_path_factory.mktemp("bare")
    pack = base / "custom_nodes" / "troupe"
    shutil.copytree(PACK, pack, ignore=shutil.ignore_patterns("__pycache__"))
    packs = {"troupe": pack, "bare": Path(__file__).with_name("bare_nodes")}
    with serving(ControlPlaneServer("")) as control_plane:
        environment = {
            "TROUPE_CONTROL_PLANE_URL": control_plane.url,
            "TROUPE_POD_KEY": POD_KEY,
            "TROUPE_SKETCH_PYTHON": sys.executable,
            "TROUPE_TRAINER_THREADS": "1",
        }
        with start_comfyui(base, environment, packs, checkpoints=[SKETCH_CHECKPOINT]) as comfyui:
            yield comfyui, control_plane


@pytest.fixture(scope="module")
def trained(bare: tuple[ComfyUI, ControlPlaneServer]) -> dict[str, Any]:
    """What the node said of the LoRA, with its bytes under `content`."""
    comfyui, control_plane = bare
    images = {f"{number:03}.png": portrait(60 * number) for number in range(1, 5)}
    control_plane.add_dataset("mira", 1, images, recipe={"name": "fast", "digest": "r1", "params": RECIPE})
    control_plane.attempt = str(uuid.uuid4())
    said = run(comfyui, TRAINING, control_plane.attempt)["1"]["lora"][0]
    return {**said, "content": control_plane.files[said["url"].rpartition("/")[2]]}


def test_the_trainer_is_offered_by_its_own_interpreter(bare: tuple[ComfyUI, ControlPlaneServer]) -> None:
    assert "sketch" in call(bare[0], "/troupe/state")["trainers"]


def test_a_lora_is_trained_and_checked_against_its_base(trained: dict[str, Any]) -> None:
    assert trained["steps"] == 2
    assert trained["matched"] == trained["total"] > 50


def test_the_new_lora_is_applied_whole_by_the_same_comfyui(
    bare: tuple[ComfyUI, ControlPlaneServer], trained: dict[str, Any]
) -> None:
    comfyui, control_plane = bare
    control_plane.add_lora("mira", 1, trained["content"])
    control_plane.attempt = str(uuid.uuid4())
    graph = picture("mira woman", steps=1, character={"character_id": "mira", "version": 1, "strength": 1.0})
    said = run(comfyui, graph, control_plane.attempt)["9"]["character"][0]
    assert said["matched"] == said["total"] == trained["total"]
