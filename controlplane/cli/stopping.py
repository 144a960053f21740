"""Being asked to stop: SIGINT and SIGTERM cancel a command, whose own clean-up then runs to its end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any


class Stopped(Exception):
    """A signal ended the command before its work was done."""

    def __init__(self, number: int) -> None:
        """``number`` is the signal's."""
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


async def until_stopped(work: Coroutine[Any, Any, int]) -> int:
    """Run a command to its end; a first signal cancels it, further ones are ignored while it cleans up."""
    task = asyncio.ensure_future(work)
    received: list[int] = []

    def stop(number: int) -> None:
        if not received:
            task.cancel()
        received.append(number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise Stopped(received[0]) from None
        raise
