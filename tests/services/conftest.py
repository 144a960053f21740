"""An engine of its own for each test of services, and pods that speak ComfyUI's protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.comfy.comfyui_double import ComfyUIDouble, comfyui_double
from tests.services.engine import Engine, engine


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Engine]:
    async with engine(tmp_path) as made:
        yield made


@pytest.fixture
async def double() -> AsyncIterator[ComfyUIDouble]:
    async with comfyui_double() as running:
        yield running


@pytest.fixture
async def second() -> AsyncIterator[ComfyUIDouble]:
    async with comfyui_double() as running:
        yield running
