"""ComfyUI as a child process: in a group of its own, its output read, ended for certain, also when the agent dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess

from comfy_nodes.guard import end_guard, start_guard

from .comfy_command import Command
from .log_tail import LogTail

log = logging.getLogger(__name__)
comfy_log = logging.getLogger("comfyui")

TERM_GRACE_SECONDS = 3.0
KILL_GRACE_SECONDS = 10.0


class StartError(RuntimeError):
    """The process could not even be started; in the system's words."""


class ComfyProcess:
    """One run of ComfyUI. Made by `start`; ended by `end`, which is safe to call at any time and more than once."""

    def __init__(self, process: asyncio.subprocess.Process, guard: subprocess.Popen[bytes], reader: asyncio.Task[None]):
        self._process = process
        self._guard = guard
        self._reader = reader
        self.pid = process.pid

    @classmethod
    async def start(cls, command: Command, tail: LogTail) -> ComfyProcess:
        """Starts ComfyUI; what it prints goes to `tail` and to the agent's own log. Raises StartError."""
        # A pipe of our own: asyncio would otherwise wait for a grandchild that holds the output open.
        read, write = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *command.argv,
                cwd=command.cwd,
                env=dict(command.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                start_new_session=True,
            )
        except OSError as error:
            os.close(read)
            raise StartError(f"{command.argv[0]} cannot be started: {error.strerror}") from error
        finally:
            os.close(write)
        guard = start_guard(process.pid)
        reader = asyncio.create_task(_read(read, tail), name="comfyui-output")
        return cls(process, guard, reader)

    @property
    def exit_code(self) -> int | None:
        """Negative: the signal that ended it. None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    async def end(self) -> None:
        """SIGTERM to the group, three seconds, SIGKILL; also after a normal end, because a child may be left."""
        if self._process.returncode is None:
            self._signal_group(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TERM_GRACE_SECONDS):
                    await self._process.wait()
        self._signal_group(signal.SIGKILL)
        # A process in an uninterruptible system call outlives even this for a while; it is beyond anybody's reach.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_GRACE_SECONDS):
                await self._process.wait()
        end_guard(self._guard)
        await asyncio.wait([self._reader], timeout=1)
        self._reader.cancel()

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def said_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


async def _read(descriptor: int, tail: LogTail) -> None:
    """Reads what the process prints until the last holder of the pipe is gone."""
    loop = asyncio.get_running_loop()
    stream = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", 0)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
    try:
        while chunk := await stream.read(65_536):
            for line in tail.feed(chunk):
                comfy_log.info("%s", line)
    finally:
        transport.close()
