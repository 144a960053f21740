"""Waiting in tests for something that another task or process will make true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(true: Callable[[], object], seconds: float = 90.0) -> None:
    """Return once ``true()`` holds; AssertionError where it does not in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true in time"
        await asyncio.sleep(0.01)
