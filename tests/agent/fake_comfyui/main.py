"""A process that speaks just enough of ComfyUI for its agent, and misbehaves on request by node class."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

CLASSES = (
    "EmptyImage", "PreviewImage", "FakeSleep", "FakeSilent", "FakeLoader", "FakeZombie", "FakeExit", "FakeDevice",
    "FakeFat", "FakeDeliver", "FakeFrames", "FakePromise",
)  # fmt: skip


class Fake:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.pending: list[tuple[int, str, dict[str, Any], str]] = []
        self.running: tuple[int, str, dict[str, Any], str] | None = None
        self.history: dict[str, Any] = {}
        self.number = 0
        self.wake = asyncio.Event()
        self.worker: asyncio.Task[None] | None = None
        self.beaten = 0.0
        self.started = 0.0
        self.device_error: str | None = None
        self.rss = 1 << 20
        self.promised_until = 0.0

    async def work(self) -> None:
        while True:
            while not self.pending:
                self.wake.clear()
                await self.wake.wait()
            self.pending.sort(key=lambda item: item[0])
            self.running = self.pending.pop(0)
            _, prompt_id, graph, client_id = self.running
            self.started = self.beaten = time.monotonic()
            failure = None
            for node_id, node in graph.items():
                await self.tell(client_id, "executing", {"node": node_id, "prompt_id": prompt_id})
                failure = failure or await self.execute(node["class_type"], node["inputs"], client_id)
            status = "success" if failure is None else "error"
            message = ["execution_success", {}]
            if failure is not None:
                said = {"node_type": "Fake", "exception_type": "RuntimeError", "exception_message": failure}
                message = ["execution_error", said]
            images = {"images": [{"filename": "a.png", "subfolder": "", "type": "temp"}]}
            self.history[prompt_id] = {
                "outputs": {"2": images}, "status": {"status_str": status, "messages": [message]},
            }  # fmt: skip
            self.running = None
            await self.tell(client_id, "executing", {"node": None, "prompt_id": prompt_id})

    async def execute(self, name: str, inputs: dict[str, Any], client_id: str) -> str | None:
        if name == "FakeFat":
            self.rss = 1 << 60
        if name == "FakePromise":
            self.promised_until = time.monotonic() + inputs["seconds"]
        if name in ("FakeSleep", "FakeFat"):
            until = time.monotonic() + inputs["seconds"]
            while time.monotonic() < until:
                await asyncio.sleep(0.05)
                self.beaten = time.monotonic()
        elif name in ("FakeSilent", "FakeLoader"):
            await asyncio.sleep(inputs["seconds"])
        elif name == "FakeZombie":
            raise asyncio.CancelledError  # the worker ends, its prompt stays in the list of running ones
        elif name == "FakeExit":
            sys.stderr.write(f"about to die of {inputs['word']}\n")
            sys.stderr.flush()
            os._exit(7)
        elif name == "FakeDevice":
            self.device_error = "CUDA error: an illegal memory access was encountered"
            return self.device_error
        elif name == "FakeDeliver":
            await self.deliver(inputs["url"])
        elif name == "FakeFrames":
            socket = self.sockets[client_id]
            for _ in range(inputs["count"]):
                with contextlib.suppress(ConnectionError):  # as ComfyUI does
                    await socket.send_bytes(os.urandom(inputs["bytes"]))
        return None

    async def deliver(self, url: str) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.post(url) as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                self.beaten = time.monotonic()
                await asyncio.sleep(0.1)

    async def tell(self, client_id: str, kind: str, data: dict[str, Any]) -> None:
        socket = self.sockets.get(client_id)
        if socket is not None and not socket.closed:
            await socket.send_json({"type": kind, "data": data})

    async def ws(self, request: web.Request) -> web.WebSocketResponse:
        """With ComfyUI's own flaw: whichever socket of an id ends unregisters the id."""
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        sid = request.query.get("clientId") or uuid.uuid4().hex
        self.sockets.pop(sid, None)
        self.sockets[sid] = socket
        try:
            await self.tell(sid, "status", {"sid": sid})
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT:
                    await self.tell(sid, "heard", {"text": message.data})
        finally:
            self.sockets.pop(sid, None)
        return socket

    async def post_prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        unknown = [node for node in body["prompt"].values() if node["class_type"] not in CLASSES]
        if unknown:
            return web.json_response({"error": {"message": "no such class"}, "node_errors": {}}, status=400)
        prompt_id = str(body.get("prompt_id") or uuid.uuid4())
        self.pending.append((self.number, prompt_id, body["prompt"], body.get("client_id", "")))
        self.number += 1
        self.wake.set()
        return web.json_response({"prompt_id": prompt_id, "number": self.number, "node_errors": {}})

    async def get_queue(self, request: web.Request) -> web.Response:
        running = [self.running] if self.running else []
        return web.json_response({"queue_running": running, "queue_pending": self.pending})

    async def post_queue(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.pending = [item for item in self.pending if item[1] not in body["delete"]]
        return web.Response()

    async def get_history(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info["prompt_id"]
        return web.json_response({prompt_id: self.history[prompt_id]} if prompt_id in self.history else {})

    async def post_history(self, request: web.Request) -> web.Response:
        for prompt_id in (await request.json())["delete"]:
            self.history.pop(prompt_id, None)
        return web.Response()

    async def state(self, request: web.Request) -> web.Response:
        if self.options.fake == "no-pack":
            return web.Response(status=404)
        now = time.monotonic()
        run = self.running
        body = {
            "worker_alive": self.worker is not None and not self.worker.done(),
            "prompt_id": run[1] if run else None,
            "node_id": "1" if run else None,
            "node_class": next(iter(run[2].values()))["class_type"] if run else None,
            "beat_age_seconds": now - self.beaten if run else None,
            "seconds_per_step": None,
            "node_pack_digest": "ab" * 32,
            "trainers": ["sketch"], "trainer_obstacles": {"kohya": "SD_SCRIPTS_DIR is not set"},
            "uploads_pending": int(now < self.promised_until),
            "loras": ["cd" * 32], "device_error": self.device_error, "rss_bytes": self.rss,
            "vram_bytes": 24 << 30, "vram_free_bytes": 20 << 30, "gpu": "Fake 4090",
        }  # fmt: skip
        return web.json_response(body)

    async def system_stats(self, request: web.Request) -> web.Response:
        return web.json_response({"system": {"comfyui_version": "0.8.0"}, "devices": []})

    async def object_info(self, request: web.Request) -> web.Response:
        return web.json_response({name: {} for name in CLASSES})

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response(["checkpoints", "custom_nodes"])

    async def models_in(self, request: web.Request) -> web.Response:
        return web.json_response(["base.safetensors"] if request.match_info["kind"] == "checkpoints" else ["x"])

    async def echo(self, request: web.Request) -> web.Response:
        """What of a request arrives here."""
        shown = {"method": request.method, "path": request.raw_path, "headers": list(request.headers.items())}
        return web.json_response(shown, headers={"X-Fake": "1", "Keep-Alive": "timeout=1"})

    async def sink(self, request: web.Request) -> web.Response:
        digest, size = hashlib.sha256(), 0
        async for chunk in request.content.iter_any():
            digest.update(chunk)
            size += len(chunk)
        return web.json_response({"sha256": digest.hexdigest(), "bytes": size})

    async def big(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": request.query["bytes"]})
        await response.prepare(request)
        left = int(request.query["bytes"])
        while left:
            chunk = b"\xff\x00" * (min(left, 1 << 20) // 2)
            await response.write(chunk)
            left -= len(chunk)
        return response

    async def environment(self, request: web.Request) -> web.Response:
        return web.json_response({"environ": dict(os.environ), "argv": sys.argv})

    async def cut(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        add = app.router.add_route
        for prefix in ("", "/api"):
            add("GET", prefix + "/ws", self.ws)
            add("POST", prefix + "/prompt", self.post_prompt)
            add("GET", prefix + "/queue", self.get_queue)
            add("POST", prefix + "/queue", self.post_queue)
            add("GET", prefix + "/history/{prompt_id}", self.get_history)
            add("POST", prefix + "/history", self.post_history)
            add("GET", prefix + "/troupe/state", self.state)
            add("GET", prefix + "/system_stats", self.system_stats)
            add("GET", prefix + "/object_info", self.object_info)
            add("GET", prefix + "/models", self.models)
            add("GET", prefix + "/models/{kind}", self.models_in)
            add("*", prefix + "/echo{rest:.*}", self.echo)
            add("POST", prefix + "/sink", self.sink)
            add("GET", prefix + "/big", self.big)
            add("GET", prefix + "/environment", self.environment)
            add("GET", prefix + "/cut", self.cut)
        return app


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--listen")
    parser.add_argument("--fake", default="")
    options, _ = parser.parse_known_args()
    if options.fake == "no-device":
        raise AssertionError("Torch not compiled with CUDA enabled")
    if options.fake == "dies-once" and not Path(os.environ["FAKE_MARK"]).exists():
        Path(os.environ["FAKE_MARK"]).touch()
        raise RuntimeError("not today")
    fake = Fake(options)
    sys.stderr.write("fake ComfyUI starts\n")
    fake.worker = asyncio.create_task(fake.work())
    runner = web.AppRunner(fake.app())
    await runner.setup()
    await web.TCPSite(runner, options.listen, options.port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
