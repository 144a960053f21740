"""Fixtures: a running double and a client session."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from controlplane.comfy.client import ComfyClient
from tests.comfy.comfyui_double import ComfyUIDouble, comfyui_double


@pytest.fixture
async def double() -> AsyncIterator[ComfyUIDouble]:
    async with comfyui_double() as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


@pytest.fixture
def client(double: ComfyUIDouble, session: aiohttp.ClientSession) -> ComfyClient:
    return ComfyClient(session, double.url, double.token, call_seconds=5.0)
