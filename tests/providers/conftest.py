"""A pod that speaks ComfyUI's protocol and a blob store, for the tests of providers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.storage.local import LocalStore
from tests.comfy.comfyui_double import ComfyUIDouble, comfyui_double


class FixedClock:
    """Time stands still."""

    def now(self) -> float:
        return 1_795_000_000.0


@pytest.fixture
async def double() -> AsyncIterator[ComfyUIDouble]:
    async with comfyui_double() as running:
        yield running


@pytest.fixture
def blobs(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "blobs", "http://127.0.0.1/files", "key", FixedClock())
