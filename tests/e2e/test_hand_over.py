"""Files travel while the pod goes on: a real server, real embedded pods, and a line to the store that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from controlplane.app import SystemClock, running
from controlplane.db.database import Database
from controlplane.domain.jobs import NewJob
from controlplane.services.events import Hints
from controlplane.services.jobs import Jobs
from controlplane.settings import REPOSITORY, Settings
from controlplane.storage.secrets import load_secrets

SECONDS = 90.0
READY_SECONDS = 300.0
ENDED = ("succeeded", "failed", "cancelled")
PODS = ("one", "two")

pytestmark = pytest.mark.asyncio(loop_scope="module")


def painting(count: int = 1, form: str = "png", colour: int = 0) -> dict[str, Any]:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": count, "color": colour}},
        "2": {"class_type": "S3Save", "inputs": {"images": ["1", 0], "name": "image", "format": form}},
    }


@dataclass
class Line:
    """What stands between pods and store: holds files back, or refuses those whose key it is told to refuse."""

    target: str = ""
    url: str = ""
    open: asyncio.Event = field(default_factory=asyncio.Event)
    refuses: Callable[[str], bool] = lambda key: False
    arrived: list[str] = field(default_factory=list)

    async def put(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.arrived.append(request.path)
        if self.refuses(request.path):
            return web.json_response({"code": "refused", "detail": "the bucket is full"}, status=403)
        await self.open.wait()
        headers = {"Content-Type": request.headers["Content-Type"]}
        async with (
            aiohttp.ClientSession() as session,
            session.put(self.target + request.path_qs, data=body, headers=headers) as answer,
        ):
            return web.Response(status=answer.status, body=await answer.read())

    def heal(self) -> None:
        self.open.set()
        self.refuses = lambda key: False
        self.arrived.clear()


@dataclass
class Room:
    """The server, its pods, and a way to hand it graphs that no request makes."""

    settings: Settings
    line: Line
    session: aiohttp.ClientSession
    db: Database
    folder: Path
    pods: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    stop: asyncio.Event | None = None
    server: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        ready = asyncio.Event()
        self.stop = stop = asyncio.Event()

        async def run() -> None:
            async with running(self.settings) as url:
                self.line.target = url
                ready.set()
                await stop.wait()

        self.server = asyncio.create_task(run())
        await asyncio.wait({self.server, asyncio.create_task(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
        assert ready.is_set(), self.server

    async def end_server(self) -> None:
        assert self.stop is not None
        assert self.server is not None
        self.stop.set()
        await self.server

    async def get(self, path: str) -> Any:
        async with self.session.get(self.line.target + path) as response:
            return await response.json()

    async def start_pod(self, name: str) -> None:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        secret = {"TROUPE_JOIN_TOKEN": load_secrets(self.settings).join_token, "TROUPE_POD_TOKEN": f"token of {name}"}
        with (folder / "pod.log").open("ab") as log:
            self.pods[name] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pod_images.embedded", "--engine", "tiny", "--data", str(folder)),
                *("--control-plane", self.line.target, "--name", name, "--parent-pid", str(os.getpid())),
                cwd=REPOSITORY,
                env={**os.environ, **secret, "OMP_NUM_THREADS": "1"},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
            )

    async def until_ready(self) -> None:
        for name in PODS:
            if name not in self.pods or self.pods[name].returncode is not None:
                await self.start_pod(name)
        async with asyncio.timeout(READY_SECONDS):
            while True:
                pods = {pod["name"]: pod["state"] for pod in (await self.get("/pods"))["items"]}
                if all(pods.get(name) == "ready" for name in PODS):
                    return
                await asyncio.sleep(0.1)

    async def submit(self, graph: dict[str, Any], kind: Any = "image", deadline_seconds: float = 300.0) -> str:
        new = NewJob(
            kind=kind,
            template="handing over",
            template_digest="0",
            graph=graph,
            needs={"nodes": [str(node["class_type"]) for node in graph.values()]},
            outputs=[{"node": "2", "kind": kind}],
            deadline_seconds=deadline_seconds,
        )
        return (await self.db.write(Jobs(self.db, SystemClock(), Hints()).insert, new)).id

    async def until(self, job_id: str, true: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        async with asyncio.timeout(SECONDS):
            while not true(job := await self.get(f"/jobs/{job_id}")):
                assert job["status"] not in ENDED, job
                await asyncio.sleep(0.05)
        return dict(job)

    async def collecting(self, job_id: str) -> dict[str, Any]:
        return await self.until(job_id, lambda job: job["status"] == "collecting")

    async def ended(self, job_id: str) -> dict[str, Any]:
        return await self.until(job_id, lambda job: job["status"] in ENDED)

    async def pod_of(self, job: dict[str, Any]) -> str:
        pods = {pod["id"]: pod["name"] for pod in (await self.get("/pods"))["items"]}
        return str(pods[job["attempts"][-1]["pod_id"]])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole_room(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Room]:
    folder = tmp_path_factory.mktemp("handing over")
    line = Line()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_put("/{path:.*}", line.put)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    line.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quick = {"heartbeat_seconds": 1.0, "poll_seconds": 0.1, "lease_seconds": 3.0, "lost_after_seconds": 20.0}
    settings = Settings(data=folder, port=port, public_files_url=f"{line.url}/files", _env_file=None, **quick)
    async with aiohttp.ClientSession() as session:
        room = Room(settings, line, session, Database(settings.effective_database_url), folder)
        await room.serve()
        yield room
        line.heal()
        for process in room.pods.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await room.end_server()
        await room.db.close()
    await runner.cleanup()


@pytest_asyncio.fixture(loop_scope="module")
async def room(whole_room: Room) -> AsyncIterator[Room]:
    whole_room.line.heal()
    await whole_room.until_ready()
    yield whole_room
    whole_room.line.heal()


async def test_pictures_arrive_in_order_with_their_bytes(room: Room) -> None:
    job = await room.ended(await room.submit(painting(count=4)))
    keys = [asset["url"].rsplit("/", 1)[-1] for asset in job["assets"]]
    assert keys == [f"{job['id']}-{number}.png" for number in (1, 2, 3, 4)]


async def test_a_video_arrives(room: Room) -> None:
    job = await room.ended(await room.submit(painting(count=5, form="mp4"), "video"))
    assert [(asset["media_type"], asset["frames"]) for asset in job["assets"]] == [("video/mp4", 5)]


async def test_pods_go_on_while_files_are_on_their_way(room: Room) -> None:
    room.line.open.clear()
    # More than all pods can have in a queue at a time: they are only done if places become free again.
    ids = [await room.submit(painting(colour=number)) for number in range(12)]
    for job_id in ids:
        await room.collecting(job_id)
    room.line.open.set()
    assert {(await room.ended(job_id))["status"] for job_id in ids} == {"succeeded"}


async def test_a_job_is_cancelled_while_its_files_are_on_their_way(room: Room) -> None:
    room.line.open.clear()
    job_id = await room.submit(painting())
    await room.collecting(job_id)
    async with room.session.delete(f"{room.line.target}/jobs/{job_id}") as answer:
        assert answer.status in (200, 202)
    job = await room.ended(job_id)
    assert (job["status"], job["assets"]) == ("cancelled", [])


async def test_a_deadline_is_kept_while_files_are_on_their_way(room: Room) -> None:
    room.line.open.clear()
    job = await room.ended(await room.submit(painting(), deadline_seconds=2.0))
    assert (job["status"], job["error"]["code"]) == ("failed", "deadline_exceeded")


async def test_a_file_that_is_refused_for_good_is_made_again_elsewhere(room: Room) -> None:
    room.line.refuses = lambda key: "-a2-" not in key
    job = await room.ended(await room.submit(painting()))
    errors = [(one["error"] or {}) for one in job["attempts"]]
    assert (job["status"], errors[0]["code"]) == ("succeeded", "outputs_missing")
    assert "the bucket is full (HTTP 403, refused)" in errors[0]["detail"]
    assert job["attempts"][0]["pod_id"] != job["attempts"][1]["pod_id"]


async def test_a_pod_that_dies_with_a_file_in_hand_costs_an_attempt(room: Room) -> None:
    room.line.open.clear()
    job = await room.collecting(await room.submit(painting()))
    name = await room.pod_of(job)
    room.pods[name].kill()
    await room.pods[name].wait()
    # What the dead pod had sent is stuck in the line; the next attempt's file is another one.
    held, room.line.open = room.line.open, asyncio.Event()
    room.line.open.set()
    ended = await room.ended(job["id"])
    held.set()
    assert (ended["status"], [one["status"] for one in ended["attempts"]]) == ("succeeded", ["failed", "succeeded"])
    assert ended["assets"][0]["url"].endswith("-a2-1.png")


async def test_a_pod_that_was_restarted_says_that_the_file_is_gone(room: Room) -> None:
    room.line.open.clear()
    job = await room.collecting(await room.submit(painting()))
    name = await room.pod_of(job)
    room.pods[name].kill()
    await room.pods[name].wait()
    await room.start_pod(name)
    room.line.open = asyncio.Event()
    room.line.open.set()
    assert (await room.ended(job["id"]))["status"] == "succeeded"


async def test_a_pod_that_is_asked_to_end_hands_its_files_over_first(room: Room) -> None:
    room.line.open.clear()
    job = await room.collecting(await room.submit(painting()))
    process = room.pods[await room.pod_of(job)]
    process.send_signal(signal.SIGTERM)
    await asyncio.sleep(1.0)
    was_there = process.returncode is None
    room.line.open.set()
    ended = await room.ended(job["id"])
    async with asyncio.timeout(SECONDS):
        await process.wait()
    assert (was_there, ended["status"], len(ended["attempts"])) == (True, "succeeded", 1)


async def test_a_restarted_server_waits_for_the_files_of_a_job_that_has_finished(room: Room) -> None:
    room.line.open.clear()
    job = await room.collecting(await room.submit(painting()))
    await room.end_server()
    await room.serve()
    await asyncio.sleep(1.0)
    room.line.open.set()
    ended = await room.ended(job["id"])
    assert (ended["status"], len(ended["attempts"])) == ("succeeded", 1)


async def test_the_pod_tells_what_became_of_a_prompts_files(room: Room) -> None:
    room.line.open.clear()
    job = await room.collecting(await room.submit(painting(count=2)))
    name = await room.pod_of(job)
    address = next(pod["address"] for pod in (await room.get("/pods"))["items"] if pod["name"] == name)
    path = f"{address}/troupe/uploads/{job['attempts'][-1]['id']}"
    headers = {"Authorization": f"Bearer token of {name}"}
    async with room.session.get(path, headers=headers) as answer:
        during = json.loads(await answer.text())
    room.line.open.set()
    await room.ended(job["id"])
    async with room.session.get(path, headers=headers) as answer:
        after = json.loads(await answer.text())
    assert (len(during["pending"]), len(after["pending"]), after["stored"]) == (2, 0, sorted_as(during, after))


def sorted_as(during: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The references of before, in the order in which they were stored."""
    return sorted(during["pending"], key=after["stored"].index)
