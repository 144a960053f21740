"""Whether callers are let through to ComfyUI: where it answers, why it does not, and whether new prompts are taken."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

RETRY_SECONDS = 3


class Gate:
    """Shut at first. `draining` lets everything through but new prompts."""

    def __init__(self) -> None:
        self.url: str | None = None
        self.reason = "ComfyUI has not been started yet"
        self.draining = False
        self._submitting = 0
        self._none_submitting = asyncio.Event()
        self._none_submitting.set()

    def open(self, url: str) -> None:
        self.url, self.reason = url, ""

    def shut(self, reason: str) -> None:
        self.url, self.reason = None, reason

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Around the handing over of a prompt, so that nobody judges the queue meanwhile."""
        self._submitting += 1
        self._none_submitting.clear()
        try:
            yield
        finally:
            self._submitting -= 1
            if not self._submitting:
                self._none_submitting.set()

    async def settled(self, seconds: float) -> None:
        """Waits until no prompt is being handed over, but not for ever."""
        try:
            async with asyncio.timeout(seconds):
                await self._none_submitting.wait()
        except TimeoutError:
            return
