"""Pods that speak ComfyUI's protocol, for the tests of services."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.comfy.comfyui_double import ComfyUIDouble, comfyui_double


@pytest.fixture
async def double() -> AsyncIterator[ComfyUIDouble]:
    async with comfyui_double() as running:
        yield running


@pytest.fixture
async def second() -> AsyncIterator[ComfyUIDouble]:
    async with comfyui_double() as running:
        yield running
