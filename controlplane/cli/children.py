"""Child processes that belong to a command: started in their own session, watched, restarted, and always ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.settings import REPOSITORY

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 30.0
STEADY_AFTER_SECONDS = 60.0
PATIENCE_SECONDS = (4.0, 6.0)


@dataclass(frozen=True)
class Command:
    """One process to keep: its arguments, its additions to the environment, and the file its output goes to."""

    name: str
    arguments: Sequence[str]
    log_file: Path
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    niceness: int = 0


def importable() -> dict[str, str]:
    """The addition to a child's environment with which ``python -m`` finds our packages from any folder."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


async def start(command: Command) -> asyncio.subprocess.Process:
    """Start a process in a session of its own, so that a Ctrl-C reaches only us and we end it in order."""
    command.log_file.parent.mkdir(parents=True, exist_ok=True)
    with command.log_file.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **command.environment},
            start_new_session=True,
        )
    if command.niceness:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PROCESS, process.pid, command.niceness)
    return process


async def end(process: asyncio.subprocess.Process, patience: Sequence[float] = PATIENCE_SECONDS) -> None:
    """End a process and its group: SIGTERM (finish what runs), SIGTERM again (now), then SIGKILL for what is left.

    ``patience`` is how long to wait after each SIGTERM, in seconds.
    """
    for seconds in patience:
        if process.returncode is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), seconds)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def keep(command: Command) -> None:
    """Keep a process running until cancelled: one that ends is started anew, after a pause that grows."""
    backoff = FIRST_BACKOFF_SECONDS
    while True:
        since = time.monotonic()
        process = await start(command)
        try:
            code = await process.wait()
        finally:
            await asyncio.shield(end(process))
        if time.monotonic() - since > STEADY_AFTER_SECONDS:
            backoff = FIRST_BACKOFF_SECONDS
        log.warning(
            "%s ended with %s (see %s); starting it again in %.0f s", command.name, code, command.log_file, backoff
        )
        await asyncio.sleep(backoff)
        backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)


@asynccontextmanager
async def kept(commands: Sequence[Command]) -> AsyncIterator[None]:
    """Keep processes running inside the block, and end them all at its end, whatever ends it."""
    tasks = [asyncio.create_task(keep(command), name=command.name) for command in commands]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
