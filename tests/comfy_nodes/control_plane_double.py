"""The control plane as a node sees it, for tests: its node routes over real HTTP on loopback, with faults to order."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

POD_KEY = "pod-key-for-tests"


class ControlPlaneServer:
    """The control plane's node routes over real HTTP on loopback, with faults to order."""

    def __init__(self, attempt: str) -> None:
        self.url = ""
        self.loras: dict[tuple[str, int], dict[str, Any]] = {}
        self.datasets: dict[tuple[str, int], dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.uploads: list[dict[str, Any]] = []
        self.reports: list[dict[str, Any]] = []
        self.downloads: list[tuple[str, str]] = []
        self.calls: list[str] = []
        self.seen_keys: list[str] = []
        self.cancel = False
        self.attempt = attempt
        self.slow_seconds = 0.0
        self.slow_puts = 0.0
        # the connections that requests came through, by the other side's address
        self.peers: set[Any] = set()
        # path prefix -> statuses to answer, one each request; 0 drops the connection without an answer
        self.faults: dict[str, list[int]] = defaultdict(list)
        # file name -> how many bytes to send before the connection breaks, one entry for each request
        self.cuts: dict[str, list[int]] = defaultdict(list)

    def add_lora(self, character_id: str, version: int, content: bytes, **changes: Any) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        self.files[f"{sha256}.safetensors"] = content
        ticket = {
            "character_id": character_id, "version": version, "sha256": sha256, "bytes": len(content),
            "url": f"/files/{sha256}.safetensors", "trigger": "mira", "default_strength": 0.8, "base": "sketch",
        }  # fmt: skip
        self.loras[character_id, version] = {**ticket, **changes}
        return sha256

    def add_dataset(self, character_id: str, version: int, images: dict[str, bytes], **changes: Any) -> None:
        for name, content in images.items():
            self.files[name] = content
        self.datasets[character_id, version] = {
            "character_id": character_id, "version": version, "name": "Mira", "trigger": "mira", "class_word": "woman",
            "base": "sketch", "checkpoint": "sketch_base.safetensors", "trainer": "sketch",
            "recipe": {"name": "fast", "digest": "r1", "params": {}}, "dataset_digest": "d1", "seed": 42,
            "sample_prompts": ["mira woman, smiling"],
            "images": [
                {"name": name, "url": f"/files/{name}", "sha256": hashlib.sha256(content).hexdigest(),
                 "bytes": len(content), "media_type": "image/png", "caption": "mira woman, smiling"}
                for name, content in images.items()
            ],
            **changes,
        }  # fmt: skip

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._faulty], client_max_size=64 << 20)
        app.router.add_get("/pods/self/characters/{id}/lora", self._lora)
        app.router.add_get("/pods/self/characters/{id}/versions/{n}/dataset", self._dataset)
        app.router.add_post("/pods/self/uploads", self._upload)
        app.router.add_post("/pods/self/attempts/{prompt_id}/progress", self._progress)
        app.router.add_get("/files/{name}", self._file)
        app.router.add_put("/files/{name}", self._put)
        return app

    @web.middleware
    async def _faulty(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.calls.append(f"{request.method} {request.path}")
        self.peers.add(request.transport.get_extra_info("peername") if request.transport else None)
        if request.path.startswith("/pods/"):
            self.seen_keys.append(request.headers.get("Authorization", ""))
            if request.headers.get("Authorization") != f"Bearer {POD_KEY}":
                return problem(401, "unauthorised", "no such pod key")
        for prefix, statuses in self.faults.items():
            if request.path.startswith(prefix) and statuses:
                status = statuses.pop(0)
                if status == 0:
                    assert request.transport is not None
                    request.transport.abort()
                await request.read() if status else None
                return problem(status or 500, "ordered", "a fault was ordered")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _lora(self, request: web.Request) -> web.Response:
        character, version = request.match_info["id"], int(request.query["version"])
        if version == 0:
            version = max((n for name, n in self.loras if name == character), default=0)
        ticket = self.loras.get((character, version))
        if ticket is None:
            return problem(404, "not_found", f"no version {version} of {character}")
        return web.json_response(ticket)

    async def _dataset(self, request: web.Request) -> web.Response:
        found = self.datasets.get((request.match_info["id"], int(request.match_info["n"])))
        return web.json_response(found) if found else problem(404, "not_found", "no such version")

    async def _upload(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        if wanted["prompt_id"] != self.attempt:
            return problem(409, "stale_attempt", "another attempt is the job's current one")
        if wanted not in self.uploads:
            self.uploads.append(wanted)
        number = self.uploads.index(wanted)
        key = f"{number}-{wanted['name']}"
        headers = {"Content-Type": wanted["media_type"]}
        upload = {"method": "PUT", "url": f"{self.url}/files/{key}?sig=s", "headers": headers}
        return web.json_response(
            {"asset_id": f"asset_{number}", "url": f"https://cdn.example/{key}", "upload": upload}, status=201
        )

    async def _progress(self, request: web.Request) -> web.Response:
        if request.match_info["prompt_id"] != self.attempt:
            return problem(409, "stale_attempt", "another attempt is the job's current one")
        self.reports.append(await request.json())
        return web.json_response({"cancel": self.cancel})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.downloads.append((name, request.headers.get("Range", "")))
        assert "Authorization" not in request.headers, "the pod key must not go to a store"
        if name not in self.files:
            return problem(404, "not_found", "no such file")
        content = self.files[name]
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        response = web.StreamResponse(status=206 if start else 200)
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        response.content_length = len(content) - start
        await response.prepare(request)
        cut = self.cuts[name].pop(0) if self.cuts[name] else None
        await asyncio.sleep(self.slow_seconds)
        await response.write(content[start:] if cut is None else content[start : start + cut])
        if cut is not None:
            assert request.transport is not None
            await asyncio.sleep(0.05)
            request.transport.close()
        return response

    async def _put(self, request: web.Request) -> web.Response:
        assert "Authorization" not in request.headers, "the pod key must not go to a store"
        content = await request.read()
        await asyncio.sleep(self.slow_puts)
        self.files[request.match_info["name"]] = content
        return web.Response(status=200)


def problem(status: int, code: str, detail: str) -> web.Response:
    body = json.dumps({"type": "about:blank", "status": status, "code": code, "detail": detail})
    return web.Response(status=status, text=body, content_type="application/problem+json")


@contextmanager
def serving(double: ControlPlaneServer) -> Iterator[ControlPlaneServer]:
    """The double on a free port, in a thread of its own: the nodes block, as they do in a prompt worker."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(double.application(), shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        double.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def stop() -> None:
        await runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}  # answers to those who hung up meanwhile
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield double
    asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()
