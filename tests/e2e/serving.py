"""A server with its pods as processes of their own, for tests of the whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controlplane.client import Client, Unreachable
from tests.short_recipes import REPOSITORY

READY_SECONDS = 400.0
END_SECONDS = 60.0
EMBEDDED = ("--embedded-pod", "--engine", "tiny")


def real_comfyui() -> tuple[str, ...]:
    """The options for a real ComfyUI behind its agent; skips where there is none."""
    if not os.environ.get("COMFYUI_DIR"):
        pytest.skip("no real ComfyUI: set COMFYUI_DIR (and COMFYUI_PYTHON, COMFYUI_ARGS)")
    return ("--comfyui-dir", os.environ["COMFYUI_DIR"])


@asynccontextmanager
async def served(
    folder: Path, pods: tuple[str, ...], environment: Mapping[str, str] | None = None
) -> AsyncIterator[Client]:
    """A client of a server whose pods are all ready; one thread each, because tests run beside each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # There is no accelerator where this runs.
    on_the_cpu = {"COMFYUI_ARGS": f"--cpu {os.environ.get('COMFYUI_ARGS', '')}"}
    with (folder / "server.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "controlplane", "serve", *pods, "--threads", "1"),
            *("--port", str(port), "--data", str(folder / "data")),
            env={**os.environ, **on_the_cpu, **(environment or {})},
            cwd=REPOSITORY,
            stdout=log,
            stderr=log,
        )
    try:
        async with Client(f"http://127.0.0.1:{port}") as client:
            await _until_ready(client, process, folder, 2 if pods == EMBEDDED else 1)
            yield client
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), END_SECONDS)


async def _until_ready(client: Client, process: asyncio.subprocess.Process, folder: Path, count: int) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.returncode is None:
        with contextlib.suppress(Unreachable):
            pods = (await client.get("/pods"))["items"]
            if [pod["state"] for pod in pods] == ["ready"] * count:
                return
        await asyncio.sleep(0.3)
    logs = [f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(folder.rglob("*.log"))]
    pytest.fail("not all pods became ready\n" + "\n".join(logs))


async def finished(client: Client, answer: dict[str, Any]) -> dict[str, Any]:
    """The job of an answer once it has succeeded."""
    job = await client.follow(answer["job"]["id"])
    assert job["status"] == "succeeded", job["error"]
    return job
