"""The processes that a bench starts, measures and ends: control plane, simulated pods, PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil

from bench.http_wire import Caller

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = Path(__file__).with_name("templates")
JOIN_TOKEN = "bench-join-token-0123456789"
START_SECONDS = 120.0
END_SECONDS = 30.0
SERVE = ("-m", "controlplane")


@dataclass(frozen=True)
class Usage:
    """What a process and its children used so far: CPU seconds; and what they hold now: bytes of memory."""

    cpu: float
    rss: int


@dataclass(frozen=True)
class Program:
    """A started program; ``url`` is where it listens."""

    name: str
    url: str
    pid: int

    def usage(self) -> Usage:
        return usage(self.pid)


def usage(pid: int, children: bool = True) -> Usage:
    """Of a process and, where asked for, of all its children, those that ended included."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    rss = process.memory_info().rss
    if not children:
        return Usage(times.user + times.system, rss)
    cpu = times.user + times.system + times.children_user + times.children_system
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            own = child.cpu_times()
            cpu += own.user + own.system
            # Shared memory would count once per process.
            rss += getattr(child.memory_full_info(), "uss", 0)
    return Usage(cpu, rss)


@contextlib.asynccontextmanager
async def control_plane(
    folder: Path, database_url: str = "", environment: Mapping[str, str] | None = None
) -> AsyncIterator[Program]:
    """``troupe serve`` with the bench's templates on a free port, until the block ends."""
    environment = {
        "TROUPE_TEMPLATES": str(TEMPLATES), "TROUPE_JOIN_TOKEN": JOIN_TOKEN, "TROUPE_DATABASE_URL": database_url,
        "TROUPE_LOG_LEVEL": "WARNING", **(environment or {}),
    }  # fmt: skip
    arguments = [*_entry(environment), "serve", "--port", "0", "--data", str(folder), "--parent-pid", str(os.getpid())]
    async with running(arguments, folder / "server.log", environment) as (process, line):
        url = next((word for word in line.split() if word.startswith("http://")), "")
        if not url:
            raise RuntimeError(f"the control plane did not start: {(folder / 'server.log').read_text()[-2000:]}")
        await _until_ready(url)
        yield Program("control plane", url, process.pid)


@contextlib.asynccontextmanager
async def simulated_pods(url: str, pods: int, folder: Path, *options: str) -> AsyncIterator[Program]:
    """So many simulated pods that the control plane at ``url`` knows; the program's address tells their counts."""
    arguments = ["-m", "bench.simulated_pods", "--control-plane", url, "--pods", str(pods), *options]
    arguments += ["--parent-pid", str(os.getpid())]
    log = folder / "pods.log"
    async with running(arguments, log, {"TROUPE_JOIN_TOKEN": JOIN_TOKEN}) as (process, line):
        if not line:
            raise RuntimeError(f"the simulated pods did not start: {log.read_text()[-2000:]}")
        yield Program("pods", orjson.loads(line)["counts"], process.pid)


def _entry(environment: Mapping[str, str]) -> Sequence[str]:
    """How the server is started: through the profiler where BENCH_PROFILE names a file for its findings."""
    wanted = environment.get("BENCH_PROFILE") or os.environ.get("BENCH_PROFILE")
    return ("-m", "bench.profiled") if wanted else SERVE


@contextlib.asynccontextmanager
async def running(
    arguments: Sequence[str], log_file: Path, environment: Mapping[str, str]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A Python program and the first line that it writes, empty where it ended before; SIGTERM at the block's end."""
    with log_file.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True, limit=1 << 24,
        )  # fmt: skip
    assert process.stdout is not None
    reading: asyncio.Task[bytes] | None = None
    try:
        async with asyncio.timeout(START_SECONDS):
            line = await process.stdout.readline()
        reading = asyncio.create_task(process.stdout.read())
        yield process, line.decode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if reading is not None:
            reading.cancel()


async def _until_ready(url: str) -> None:
    caller = Caller(url)
    async with asyncio.timeout(START_SECONDS):
        while True:
            with contextlib.suppress(OSError):
                if (await caller.call("GET", "/healthz"))[0] == 200:
                    break
            await asyncio.sleep(0.1)
    caller.close()
