"""Small sketch modules for tests: the real architecture classes at their smallest sizes, seeded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from comfy_nodes.sketch.architecture import SKETCH, SketchArchitecture, SketchModules

SMALL = replace(SKETCH, unet_channels=(32, 64), vae_encoder_blocks=(1, 1, 1, 1), vae_decoder_blocks=(1, 1, 1, 1))


def build(architecture: SketchArchitecture = SMALL, seed: int = 0) -> SketchModules:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    modules = architecture.build()
    for part in (modules.unet, modules.text_encoder_1, modules.text_encoder_2, modules.vae):
        part.eval()
        part.requires_grad_(False)
    return modules


@pytest.fixture(scope="session")
def small() -> SketchArchitecture:
    return SMALL


@pytest.fixture(scope="session")
def modules() -> SketchModules:
    """Shared and never changed by a test; a test that trains builds its own."""
    return build()


@pytest.fixture
def own_modules() -> SketchModules:
    return build()
