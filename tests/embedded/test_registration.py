"""Registration, heartbeats and endings of a real pod process against a real small control plane."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from .graphs import node

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "tests" / "contract" / "lab_nodes"
WAIT_SECONDS = 240


@dataclass
class ControlPlane:
    """Answers as the real one does, and keeps what it was told."""

    url: str = ""
    refuse_first: int = 0
    heartbeat_status: int = 200
    answer: dict[str, Any] = field(default_factory=lambda: {"drain": False, "heartbeat_seconds": 0.2, "revoked": []})
    registrations: list[dict[str, Any]] = field(default_factory=list)
    heartbeats: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    async def register(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers["Authorization"])
        if self.refuse_first > 0:
            self.refuse_first -= 1
            return web.Response(status=503)
        self.registrations.append(await request.json())
        pod = {"id": f"pod_{len(self.registrations)}", "state": "ready"}
        body = {"pod": pod, "pod_key": f"key-{len(self.registrations)}", "heartbeat_seconds": 0.2, "protocol": 1}
        return web.json_response(body, status=201)

    async def heartbeat(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers["Authorization"])
        self.heartbeats.append(await request.json())
        status, self.heartbeat_status = self.heartbeat_status, 200
        return web.json_response(self.answer, status=status)

    async def until(self, ready: Any) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not ready():  # noqa: ASYNC110 - it waits for another process
                await asyncio.sleep(0.05)


@dataclass
class PodProcess:
    process: asyncio.subprocess.Process
    address: str
    data: Path

    async def ended(self) -> int:
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.process.wait()


@pytest.fixture
async def control_plane() -> AsyncIterator[ControlPlane]:
    plane = ControlPlane()
    app = web.Application()
    app.router.add_post("/pods", plane.register)
    app.router.add_post("/pods/{id}/heartbeat", plane.heartbeat)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    plane.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield plane
    await runner.cleanup()


async def start(plane: ControlPlane, data: Path, parent: int | None = None) -> PodProcess:
    arguments = ["--engine", "tiny", "--data", str(data), "--control-plane", plane.url, "--labels", "image,video"]
    arguments += ["--name", "tester", "--node-pack", str(LAB), "--parent-pid", str(parent or os.getpid())]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pod_images.embedded", *arguments,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TROUPE_JOIN_TOKEN": "join", "TROUPE_POD_TOKEN": "pod-token", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_SECONDS):
        line = await process.stdout.readline()
    return PodProcess(process, json.loads(line)["address"], data)


@pytest.fixture
async def pod_process(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[PodProcess]:
    control_plane.refuse_first = 1
    pod = await start(control_plane, tmp_path / "pod")
    await control_plane.until(lambda: control_plane.heartbeats)
    yield pod
    if pod.process.returncode is None:
        pod.process.kill()
        await pod.process.wait()


async def submit_slow(pod: PodProcess, steps: int) -> str:
    graph = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=1),
        "9": node("LabSleep", image=["1", 0], steps=steps, step_seconds=0.1, mode="progress", salt=steps),
        "3": node("PreviewImage", images=["9", 0]),
    }
    headers = {"Authorization": "Bearer pod-token"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{pod.address}/prompt", json={"prompt": graph}) as response,
    ):
        prompt_id: str = (await response.json())["prompt_id"]
    return prompt_id


async def test_the_life_of_a_registered_pod(control_plane: ControlPlane, pod_process: PodProcess) -> None:
    """One process for many expectations: starting torch costs seconds."""
    body = control_plane.registrations[0]
    assert (body["protocol"], body["kind"], body["address"], body["token"]) == (
        1,
        "embedded",
        pod_process.address,
        "pod-token",
    ), "it says what it is and how to reach it"
    assert (body["labels"], body["name"]) == (["image", "video"], "tester")
    assert {"CharacterLoRALoader", "S3Save", "TrainLoRA", "KSampler"} <= set(body["node_classes"])
    assert body["models"]["checkpoints"] == ["sketch_base.safetensors"]
    assert len(body["node_pack_digest"]) == 64
    assert control_plane.tokens[:2] == ["Bearer join", "Bearer join"], "a refused registration is tried again"
    assert control_plane.tokens[2] == "Bearer key-1", "heartbeats carry the pod key"
    key_file = pod_process.data / "pod_key"
    assert (key_file.read_text(), oct(key_file.stat().st_mode & 0o777)) == ("key-1", "0o600")

    digest = "ab" * 32
    (pod_process.data / "lora_cache" / f"{digest}.safetensors").write_bytes(b"x")
    await submit_slow(pod_process, 15)
    await control_plane.until(lambda: control_plane.heartbeats[-1]["queue_running"] == 1)
    assert control_plane.heartbeats[-1]["loras"] == [digest], "LoRAs on disk are reported"

    control_plane.answer = {**control_plane.answer, "revoked": [digest]}
    await control_plane.until(lambda: control_plane.heartbeats[-1]["loras"] == [])

    control_plane.heartbeat_status = 404
    await control_plane.until(lambda: len(control_plane.registrations) == 2)
    assert control_plane.registrations[1]["instance_id"] == body["instance_id"], "it comes back as the same pod"

    control_plane.answer = {**control_plane.answer, "drain": True}
    await control_plane.until(lambda: control_plane.heartbeats[-1]["state"] == "draining")
    pod_process.process.send_signal(signal.SIGTERM)
    pod_process.process.send_signal(signal.SIGTERM)
    assert await pod_process.ended() == 0


async def test_sigterm_lets_the_running_prompt_finish(control_plane: ControlPlane, pod_process: PodProcess) -> None:
    await submit_slow(pod_process, 12)
    await control_plane.until(lambda: control_plane.heartbeats[-1]["queue_running"] == 1)
    before = len(control_plane.heartbeats)
    pod_process.process.send_signal(signal.SIGTERM)
    assert await pod_process.ended() == 0
    later = [beat["state"] for beat in control_plane.heartbeats[before:] if beat["queue_running"]]
    assert "draining" in later


async def test_a_pod_whose_parent_is_gone_ends(control_plane: ControlPlane, tmp_path: Path) -> None:
    pod = await start(control_plane, tmp_path / "pod", parent=1)
    assert await pod.ended() == 0


async def test_a_pod_without_a_checkpoint_says_why_it_ends(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pod_images.embedded", "--data", str(tmp_path / "d"), "--models", str(tmp_path),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    async with asyncio.timeout(WAIT_SECONDS):
        out, err = await process.communicate()
    assert (process.returncode, out, b"no checkpoint in" in err) == (1, b"", True)
