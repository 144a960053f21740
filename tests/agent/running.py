"""An agent as a process, the control plane it talks to, and what a test asks of both."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_comfyui")
POD_TOKEN = "pod-token-of-the-agent-tests"
JOIN_TOKEN = "join-token-of-the-agent-tests"
WAIT_SECONDS = 120


@dataclass
class ControlPlane:
    """Answers as the real one does, and keeps what it was told. `silent` refuses all but deliveries."""

    url: str = ""
    silent: bool = False
    delivers: bool = True
    answer: dict[str, Any] = field(default_factory=lambda: {"drain": False, "heartbeat_seconds": 0.3, "revoked": []})
    registrations: list[dict[str, Any]] = field(default_factory=list)
    heartbeats: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    delivered: int = 0

    async def register(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers["Authorization"])
        if self.silent:
            return web.Response(status=503)
        self.registrations.append(await request.json())
        key = f"pod-key-number-{len(self.registrations)}"
        body = {"pod": {"id": "pod_1"}, "pod_key": key, "heartbeat_seconds": 0.3, "protocol": 1}
        return web.json_response(body, status=201)

    async def heartbeat(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers["Authorization"])
        if self.silent:
            return web.Response(status=503)
        self.heartbeats.append(await request.json())
        return web.json_response(self.answer)

    async def deliver(self, request: web.Request) -> web.Response:
        """A route that a node hands its result over at."""
        if not self.delivers:
            return web.Response(status=503)
        self.delivered += 1
        return web.Response()

    async def ticket(self, request: web.Request) -> web.Response:
        """What a node asks for before it uploads: POST /pods/self/uploads."""
        if not self.delivers:
            return web.Response(status=503)
        put = {"method": "PUT", "url": "/deliver", "headers": {}}
        return web.json_response({"asset_id": "asset_1", "url": self.url + "/deliver", "upload": put})

    @property
    def states(self) -> list[str]:
        return [body["state"] for body in self.heartbeats]

    async def started(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/pods", self.register)
        app.router.add_post("/pods/{id}/heartbeat", self.heartbeat)
        app.router.add_route("*", "/deliver", self.deliver)
        app.router.add_post("/pods/self/uploads", self.ticket)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner


async def until(ready: Callable[[], Any], seconds: float = WAIT_SECONDS) -> None:
    """Waits for something that another process does."""
    async with asyncio.timeout(seconds):
        while not ready():  # noqa: ASYNC110
            await asyncio.sleep(0.03)


@dataclass
class AgentProcess:
    """A started agent. `address` is known once it is ready."""

    process: asyncio.subprocess.Process
    data: Path
    address: str = ""

    async def ready(self) -> AgentProcess:
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            line = await self.process.stdout.readline()
        assert line, f"the agent ended:\n{self.log()}"
        self.address = json.loads(line)["address"]
        return self

    async def ended(self) -> int:
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.process.wait()

    def log(self) -> str:
        return (self.data.parent / f"{self.data.name}.err").read_text(errors="replace")

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """(status, JSON or text) of one call with the pod token."""
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {POD_TOKEN}"}) as session,
            session.request(method, self.address + path, json=body) as response,
        ):
            text = await response.text()
            return response.status, json.loads(text) if text.startswith(("{", "[")) else text

    async def submit(self, class_type: str, client_id: str = "", **inputs: Any) -> str:
        """Queues a graph of one node and a picture; the prompt's id."""
        prompt_id = str(uuid.uuid4())
        graph = {"1": {"class_type": class_type, "inputs": inputs}, "2": picture_of("1")}
        status, answer = await self.call(
            "POST", "/prompt", {"prompt": graph, "prompt_id": prompt_id, "client_id": client_id}
        )
        assert status == 200, answer
        return prompt_id

    async def incident(self, prompt_id: str, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """Waits until the agent has a reason for the loss of a prompt."""
        async with asyncio.timeout(seconds):
            while True:
                status, answer = await self.call("GET", f"/troupe/incidents/{prompt_id}")
                if status == 200:
                    return dict(answer)
                await asyncio.sleep(0.05)

    async def finished(self, prompt_id: str) -> dict[str, Any]:
        """The history entry of a prompt, once it has one."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                history = (await self.call("GET", f"/history/{prompt_id}"))[1]
                if prompt_id in history:
                    return dict(history[prompt_id])
                await asyncio.sleep(0.05)

    async def back(self, seconds: float = WAIT_SECONDS) -> None:
        """Waits until ComfyUI is up again."""
        async with asyncio.timeout(seconds):
            while (await self.call("GET", "/troupe/agent"))[1]["state"] != "ready":  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def comfyui_pid(self) -> int:
        return int((await self.call("GET", "/troupe/agent"))[1]["comfyui_pid"])


def picture_of(node_id: str) -> dict[str, Any]:
    return {"class_type": "PreviewImage", "inputs": {"images": [node_id, 0]}}


def is_alive(pid: int) -> bool:
    """Whether a process runs; a dead child that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def launch(
    data: Path, *arguments: str, environment: dict[str, str] | None = None, comfyui: Path = FAKE
) -> AgentProcess:
    """Starts an agent; it is not ready yet."""
    command = [sys.executable, "-m", "pod_images.agent", "--comfyui-dir", str(comfyui), "--data", str(data)]
    data.parent.mkdir(parents=True, exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("COMFYUI_", "RUNPOD_"))}
    tokens = {"TROUPE_POD_TOKEN": POD_TOKEN, "TROUPE_JOIN_TOKEN": JOIN_TOKEN, "OMP_NUM_THREADS": "1"}
    with (data.parent / f"{data.name}.err").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, "--parent-pid", str(os.getpid()), "--poll-seconds", "0.1", *arguments,
            cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=log,
            env={**inherited, **tokens, **(environment or {})},
        )  # fmt: skip
    return AgentProcess(process, data)


async def end(agent: AgentProcess) -> None:
    """Ends an agent however it is."""
    for _ in range(2):
        if agent.process.returncode is None:
            agent.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.05)
    try:
        async with asyncio.timeout(20):
            await agent.process.wait()
    except TimeoutError:
        agent.process.kill()
        await agent.process.wait()
