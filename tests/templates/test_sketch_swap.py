"""The SDXL templates on a real ComfyUI with the sketch base in SDXL's place: the same graphs, on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from comfy_nodes.sketch import checkpoint
from comfy_nodes.sketch.lora import layers_by_name
from tests.comfyui.conftest import SKETCH_CHECKPOINT
from tests.comfyui.graphs import ended, run, saved_files, submit, words_of
from tests.comfyui.server import NO_COMFYUI, ComfyUI, checkout, start_comfyui

from .random_lora import sd15_layers, write_lora
from .running import bound, part, pixels

REQUEST = {"prompt": "a smiling woman in a forest", "seed": 7, "steps": 4, "checkpoint": "sketch_base.safetensors"}
SMALL = {"n5_width": 128, "n5_height": 128}


def sketch_layers() -> dict[str, tuple[int, int]]:
    """The linear layers of the sketch base's U-Net by kohya's name."""
    modules = checkpoint.load(SKETCH_CHECKPOINT)
    shapes = {
        name: modules.unet.get_submodule(one.path).weight.shape
        for name, one in layers_by_name(modules).items()
        if name.startswith("lora_unet_")
    }
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    base = tmp_path_factory.mktemp("swapped")
    (base / "models" / "loras").mkdir(parents=True)
    write_lora(sketch_layers(), base / "models" / "loras" / "mira.safetensors", "troupe_sketch")
    write_lora(sd15_layers(), base / "models" / "loras" / "alien.safetensors", "sd_v1")
    with start_comfyui(base, checkpoints=[SKETCH_CHECKPOINT]) as running:
        yield running


def graph_of(name: str, strength: float = 1.0, lora: str = "mira") -> dict[str, Any]:
    return bound(name, {**REQUEST, "character_id": lora, "lora_strength": strength}, **SMALL)


def picture(comfyui: ComfyUI, graph: dict[str, Any], node: str) -> Any:
    (content,) = saved_files(comfyui, run(comfyui, graph), node)
    return pixels(content)


def test_sdxl_image_paints_a_picture_of_the_asked_size(comfyui: ComfyUI) -> None:
    painted = picture(comfyui, graph_of("sdxl_image"), "8")
    assert painted.shape == (128, 128, 3)
    assert painted.std() > 5


def test_count_is_the_number_of_pictures(comfyui: ComfyUI) -> None:
    graph = bound("sdxl_image", {**REQUEST, "character_id": "mira", "count": 3}, **SMALL)
    assert len(saved_files(comfyui, run(comfyui, graph), "8")) == 3


def test_every_module_of_the_lora_is_applied(comfyui: ComfyUI) -> None:
    (shown,) = run(comfyui, graph_of("sdxl_image"))["2"]["character"]
    assert shown["matched"] == shown["total"] == len(sketch_layers())


def test_the_lora_changes_the_picture(comfyui: ComfyUI) -> None:
    without = picture(comfyui, graph_of("sdxl_image", strength=0.0), "8")
    with_it = picture(comfyui, graph_of("sdxl_image"), "8")
    assert abs(with_it - without).mean() > 2


def test_a_lora_of_another_base_is_refused_with_the_reason(comfyui: ComfyUI) -> None:
    entry = ended(comfyui, submit(comfyui, graph_of("sdxl_image", lora="alien")))
    assert entry["status"]["status_str"] == "error"
    assert "was trained for base sd_v1" in words_of(entry)


def test_the_still_of_svd_video_is_what_sdxl_image_paints(comfyui: ComfyUI) -> None:
    still = picture(comfyui, part(graph_of("svd_video"), ["15"]), "15")
    assert (still == picture(comfyui, graph_of("sdxl_image"), "8")).all()
