"""The programs of a chaos run as processes: started, killed, stopped and continued from outside, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.postgresql_server import NoServer, PostgreSQL
from tests.short_recipes import REPOSITORY

RESTART_SECONDS = 0.2
START_SECONDS = 90.0
END_SECONDS = 20.0
HOPELESS_CRASHES = 5
PORTS = (12000, 30000)


class NotReady(Exception):
    """A program did not come up."""


def free_port() -> int:
    """A TCP port that is free now, and that no outgoing connection is given while its program is being restarted."""
    while True:
        port = random.randrange(*PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Program:
    """One process that is started again whenever it dies, on the same port and folder."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    port: int
    log: Path
    deaths: int = 0
    crashes: int = 0
    """Deaths in a row before it listened, that nobody here has caused."""
    process: asyncio.subprocess.Process | None = None
    _keeping: asyncio.Task[None] | None = None
    _up: asyncio.Event = field(default_factory=asyncio.Event)
    _killed: bool = False

    @property
    def is_up(self) -> bool:
        """Whether it runs and listens."""
        return self._up.is_set()

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it listens; None while it is not running."""
        return ("127.0.0.1", self.port) if self._up.is_set() else None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    def start(self) -> None:
        """Keep it running from now on."""
        self._keeping = asyncio.create_task(self._keep(), name=self.name)

    async def ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until it listens. NotReady."""
        end = time.monotonic() + seconds
        while not self._up.is_set() and time.monotonic() < end and self.crashes < HOPELESS_CRASHES:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await self._up.wait()
                    return
        if not self._up.is_set():
            raise NotReady(f"{self.name} does not listen:\n{self.log.read_text(errors='replace')[-3000:]}")

    async def stop(self) -> None:
        """End it for good, politely."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self.process is not None and self.pid is not None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await self.process.wait()
            if self.pid is not None:
                self.signal(signal.SIGKILL)
                await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it, if it runs."""
        if self.pid is not None:
            os.kill(self.pid, number)

    async def kill(self) -> None:
        """End it as a power cut would; it is started again."""
        self._up.clear()
        self._killed = True
        self.signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()

    async def stall(self, seconds: float) -> None:
        """Stop it for a while; it notices nothing but the time."""
        pid = self.pid
        self.signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        if pid == self.pid:
            self.signal(signal.SIGCONT)

    async def _keep(self) -> None:
        while True:
            with self.log.open("ab") as log:
                self.process = await asyncio.create_subprocess_exec(
                    *self.arguments,
                    env={**os.environ, **self.environment},
                    cwd=REPOSITORY,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            listening = asyncio.create_task(self._listening())
            try:
                await self.process.wait()
            finally:
                listening.cancel()
                was_up = listening.done() or self._killed
                self._up.clear()
            self._killed = False
            self.deaths += 1
            self.crashes = 0 if was_up else self.crashes + 1
            await asyncio.sleep(RESTART_SECONDS)

    async def _listening(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                self._up.set()
                return
            await asyncio.sleep(0.05)


class DatabaseServer:
    """A PostgreSQL that is killed, stopped and started again while it is in use."""

    def __init__(self, server: PostgreSQL) -> None:
        self.server = server
        self.deaths = 0
        self._lock = asyncio.Lock()

    async def kill(self) -> None:
        """Kill every process of it at once, then start it again: it recovers from its log."""
        async with self._lock:
            self.deaths += 1
            for process in self._processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            await asyncio.to_thread(self._start_again)

    async def stall(self, seconds: float) -> None:
        """Stop every process of it for a while."""
        async with self._lock:
            stopped = self._processes()
            for process in stopped:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            await asyncio.sleep(seconds)
            for process in stopped:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    def _processes(self) -> list[psutil.Process]:
        assert self.server.process is not None
        parent = psutil.Process(self.server.process.pid)
        return [parent, *parent.children(recursive=True)]

    def _start_again(self) -> None:
        assert self.server.process is not None
        self.server.process.wait(END_SECONDS)
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                self.server.start()
                return
            except NoServer:
                # Its shared memory is in use until the last of the killed processes is gone.
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
