"""A real ComfyUI behind its agent and a real control plane: what becomes of a job when ComfyUI dies under it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from controlplane.app import SystemClock
from controlplane.db.database import Database
from controlplane.domain.jobs import NewJob
from controlplane.services.events import Hints
from controlplane.services.jobs import Jobs
from controlplane.settings import REPOSITORY, Settings
from tests.api.api_server import Server, serving

READY_SECONDS = 300.0
JOB_SECONDS = 300.0
ENDED = ("succeeded", "failed", "cancelled")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not os.environ.get("COMFYUI_DIR"), reason="no real ComfyUI: set COMFYUI_DIR"),
]


def painting(steps: int) -> dict[str, Any]:
    """A graph on the sketch base: a tenth of a second for every step on an idle core."""
    sampling = {"seed": 1, "steps": steps, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0]}
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sketch_base.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a man"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 256, "height": 256, "batch_size": 1}},
        "4": {"class_type": "KSampler", "inputs": {**links, **sampling}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "S3Save", "inputs": {"images": ["5", 0], "name": "image", "format": "png", "quality": 90}},
    }


@dataclass
class Room:
    """The server, its only pod, and a way to hand it graphs that no request makes."""

    url: str
    pod_folder: Path
    session: aiohttp.ClientSession
    db: Database
    jobs: Jobs

    async def get(self, path: str) -> Any:
        async with self.session.get(self.url + path) as response:
            return await response.json()

    async def pod(self) -> dict[str, Any] | None:
        pods = (await self.get("/pods"))["items"]
        return dict(pods[0]) if pods else None

    async def ready_pod(self) -> dict[str, Any]:
        async with asyncio.timeout(READY_SECONDS):
            while (pod := await self.pod()) is None or pod["state"] not in ("ready", "busy"):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        return pod

    async def submit(self, graph: Mapping[str, Any]) -> str:
        new = NewJob(
            kind="image",
            template="accident",
            template_digest="0",
            graph=graph,
            needs={"nodes": [str(node["class_type"]) for node in graph.values()]},
            outputs=[{"node": name, "kind": "image"} for name, node in graph.items() if node["class_type"] == "S3Save"],
            deadline_seconds=900.0,
        )
        return (await self.db.write(self.jobs.insert, new)).id

    async def until(self, job_id: str, true: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        async with asyncio.timeout(JOB_SECONDS):
            while not true(job := await self.get(f"/jobs/{job_id}")):
                assert job["status"] not in ENDED, job["error"]
                await asyncio.sleep(0.05)
        return dict(job)

    async def under_way(self, job_id: str) -> dict[str, Any]:
        return await self.until(job_id, lambda job: job["progress"]["percent"])

    async def ended(self, job_id: str) -> dict[str, Any]:
        return await self.until(job_id, lambda job: job["status"] in ENDED)

    async def cancel(self, job_id: str) -> None:
        async with self.session.delete(f"{self.url}/jobs/{job_id}") as response:
            assert response.status in (200, 202)

    async def comfyui_pid(self) -> int:
        pod = await self.ready_pod()
        token = (self.pod_folder / "pod_token").read_text()
        headers = {"Authorization": f"Bearer {token}"}
        async with self.session.get(f"{pod['address']}/troupe/agent", headers=headers) as response:
            return int((await response.json())["comfyui_pid"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Room]:
    folder = tmp_path_factory.mktemp("accidents")
    settings = Settings(data=folder / "data", port=0, _env_file=None)
    with serving(settings) as server, agent(server, folder / "pod"):
        async with aiohttp.ClientSession() as session:
            db = Database(settings.effective_database_url)
            made = Room(server.url, folder / "pod", session, db, Jobs(db, SystemClock(), Hints()))
            await made.ready_pod()
            yield made
            await db.close()


@contextlib.contextmanager
def agent(server: Server, folder: Path) -> Any:
    """An agent with a ComfyUI that also has nodes which misbehave."""
    packs = folder / "comfyui" / "custom_nodes"
    packs.mkdir(parents=True)
    (packs / "trouble_nodes").symlink_to(REPOSITORY / "tests" / "comfyui" / "trouble_nodes")
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pod_images.agent", "--comfyui-dir", os.environ["COMFYUI_DIR"]),
                *("--comfyui-args", f"--cpu {os.environ.get('COMFYUI_ARGS', '')}", "--control-plane", server.url),
                *("--data", str(folder), "--models", str(REPOSITORY / "pod_images" / "embedded" / "models")),
                *("--parent-pid", str(os.getpid())),
            ],
            cwd=REPOSITORY,
            env={**os.environ, "TROUPE_JOIN_TOKEN": server.join_token},
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def told(job: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """How each attempt ended."""
    return [(attempt["status"], (attempt["error"] or {}).get("code")) for attempt in job["attempts"]]


async def test_a_job_whose_comfyui_is_killed_finishes_on_its_next_attempt(room: Room) -> None:
    job_id = await room.submit(painting(30))
    await room.under_way(job_id)
    os.kill(await room.comfyui_pid(), signal.SIGKILL)
    job = await room.ended(job_id)
    assert (job["status"], told(job)) == ("succeeded", [("lost", "died"), ("succeeded", None)])
    assert "SIGKILL" in job["attempts"][0]["error"]["detail"]
    assert job["attempts"][0]["error"]["log_tail"]


async def test_a_cancel_stops_a_running_sampler_and_leaves_the_pod_fit_for_work(room: Room) -> None:
    job_id = await room.submit(painting(1000))
    await room.under_way(job_id)
    await room.cancel(job_id)
    job = await room.ended(job_id)
    assert (job["status"], told(job), job["warnings"]) == ("cancelled", [("cancelled", None)], [])
    assert (await room.ended(await room.submit(painting(1))))["status"] == "succeeded"


async def test_a_zombie_worker_is_restarted_and_the_attempt_says_so(room: Room) -> None:
    before = (await room.ready_pod())["restarts"]
    job_id = await room.submit({"1": {"class_type": "TroubleExit", "inputs": {}}})
    job = await room.until(job_id, lambda job: job["attempts"] and job["attempts"][0]["error"])
    await room.cancel(job_id)
    await room.ended(job_id)
    assert told(job)[0] == ("lost", "zombie_worker")
    pod = await room.ready_pod()
    assert pod["restarts"] > before
    assert pod["restart_reason"].startswith("zombie_worker")


async def test_after_a_dead_device_comfyui_is_started_anew_before_the_job_comes_back(room: Room) -> None:
    before = (await room.ready_pod())["restarts"]
    words = "CUDA error: an illegal memory access was encountered"
    job_id = await room.submit({"1": {"class_type": "TroubleRaise", "inputs": {"words": words}}})
    job = await room.until(job_id, lambda job: len(job["attempts"]) == 2)
    restarts = (await room.pod() or {})["restarts"]
    await room.cancel(job_id)
    await room.ended(job_id)
    assert (told(job)[0], restarts > before) == (("failed", "dead_device"), True)
