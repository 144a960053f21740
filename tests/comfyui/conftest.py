"""One real ComfyUI with our pack and the sketch base for the whole folder; tests that need another start their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .server import NO_COMFYUI, SKETCH_MODELS, ComfyUI, checkout, start_comfyui

SKETCH_CHECKPOINT = SKETCH_MODELS / "checkpoints" / "sketch_base.safetensors"


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """A ComfyUI that is nobody's pod: no control plane, as on an artist's desktop."""
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    base = tmp_path_factory.mktemp("comfyui")
    with start_comfyui(base, checkpoints=[SKETCH_CHECKPOINT]) as running:
        yield running
