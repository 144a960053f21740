"""The scheduler against the real embedded pod, a process of its own that shares no protocol code with our client."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.services.engine import JOIN_TOKEN, PROJECT, Engine, engine

REPOSITORY = Path(__file__).resolve().parents[2]
LAB = REPOSITORY / "tests" / "contract" / "lab_nodes"
TOKEN = "token of the embedded pod"
NODES = ["EmptyImage", "LabSleep", "LabFail", "SaveImage"]


@dataclass
class EmbeddedPod:
    """One embedded pod process."""

    address: str
    process: asyncio.subprocess.Process

    async def kill(self) -> None:
        """kill -9."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


async def started(folder: Path, port: int = 0) -> EmbeddedPod:
    """Start a pod and wait until it serves."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pod_images.embedded", "--engine", "tiny", "--port", str(port)),
        *("--data", str(folder), "--node-pack", str(LAB), "--parent-pid", str(os.getpid())),
        cwd=REPOSITORY,
        env={**os.environ, "TROUPE_POD_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), 480)
    assert line, "the pod did not start"
    return EmbeddedPod(json.loads(line)["address"], process)


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[EmbeddedPod]:
    running = await started(tmp_path / "pod")
    yield running
    await running.kill()


@pytest.fixture
async def room(tmp_path: Path, pod: EmbeddedPod) -> AsyncIterator[Engine]:
    async with engine(tmp_path / "control plane") as made:
        await register(made, pod)
        made.start()
        yield made


async def register(room: Engine, pod: EmbeddedPod) -> None:
    body = {
        "protocol": 1,
        "instance_id": "embedded-1",
        "address": pod.address,
        "token": TOKEN,
        "kind": "embedded",
        "node_classes": NODES,
    }
    await room.pods.register(body, JOIN_TOKEN)


def graph(middle: str, **inputs: Any) -> dict[str, Any]:
    """A picture that passes through one of the suite's own nodes."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 0}},
        "9": {"class_type": middle, "inputs": {"image": ["1", 0], **inputs}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "troupe"}},
    }


def sleeping(steps: int, mode: str = "progress", salt: int = 0) -> dict[str, Any]:
    return graph("LabSleep", steps=steps, step_seconds=0.1, mode=mode, salt=salt)


async def test_jobs_end_on_the_embedded_pod_as_they_do_on_comfyui(room: Engine, pod: EmbeddedPod) -> None:
    good = await room.final(await room.submit(graph=sleeping(3), needs={"nodes": NODES}))
    bad = await room.final(await room.submit(graph=graph("LabFail", kind="value"), needs={"nodes": NODES}))
    wrong = await room.final(await room.submit(graph={"1": {"class_type": "Nope", "inputs": {}}}, needs={}))
    endless = await room.submit(graph=sleeping(3000, "check", salt=1), needs={"nodes": NODES})
    await room.reached(endless, lambda view: view.job.status == "running")
    await room.jobs.cancel(PROJECT, endless.id)
    stopped = await room.final(endless)
    assert (good.job.status, list((good.job.result or {})["outputs"]["3"])) == ("succeeded", ["images"])
    assert dict(bad.job.error or {}) == {"code": "execution_error", "detail": "LabFail failed: lab failure"}
    assert (wrong.job.error or {})["code"] == "pod_refused"
    assert "Nope" in (wrong.job.error or {})["detail"]
    assert (stopped.job.status, stopped.attempts[0].status) == ("cancelled", "cancelled")


async def test_a_job_survives_the_death_of_the_embedded_pod(room: Engine, pod: EmbeddedPod, tmp_path: Path) -> None:
    # Long enough to be running when the pod dies, short enough to be finished by the next one.
    job = await room.submit(graph=sleeping(50), needs={"nodes": NODES}, deadline_seconds=3600.0)
    await room.reached(job, lambda view: view.job.status == "running")
    await pod.kill()
    again = await started(tmp_path / "pod")
    try:
        await register(room, again)
        view = await room.final(job)
    finally:
        await again.kill()
    ends = [(attempt.status, (attempt.error or {}).get("code")) for attempt in view.attempts]
    # In between, one attempt may have met a closed port; after that the pod is suspect and gets none.
    assert (ends[0], ends[-1]) == (("lost", "attempt_lost"), ("succeeded", None)), view.attempts
