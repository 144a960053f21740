"""The double that every test of this folder has for itself, and an office that rents from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.launchers.renting import Office, office
from tests.launchers.runpod_double import RunPodDouble, runpod_double


@pytest.fixture
async def runpod() -> AsyncIterator[RunPodDouble]:
    """RunPod's double; at the end nothing may have been sent or answered that its document does not allow."""
    async with runpod_double() as double:
        yield double
        assert double.faults == []


@pytest.fixture
async def desk(tmp_path: Path, runpod: RunPodDouble) -> AsyncIterator[Office]:
    """An office of this installation."""
    async with office(tmp_path, runpod.url) as opened:
        yield opened
