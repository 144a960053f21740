"""The two sides a node talks to, for tests: a host with real folders, and a control plane that speaks real HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from comfy_nodes import host as host_seam

POD_KEY = "pod-key-for-tests"


class FolderHost:
    """A host with folders and no model: LoRAs are only counted, latents only shifted."""

    class Interrupted(Exception):
        """What the host raises in a node when the prompt is interrupted."""

    def __init__(self, root: Path, prompt: str) -> None:
        self.root = root
        self.shown: list[tuple[int, int, bool]] = []
        self.interrupt = threading.Event()
        self.freed = 0
        self.known: frozenset[str] = frozenset()
        self.prompt = prompt

    def prompt_id(self) -> str:
        return self.prompt

    def progress(self, value: int, total: int, preview: Any = None) -> None:
        self.raise_if_interrupted()
        self.shown.append((value, total, preview is not None))

    def interrupted(self) -> bool:
        return self.interrupt.is_set()

    def raise_if_interrupted(self) -> None:
        if self.interrupt.is_set():
            raise self.Interrupted

    def free_memory(self) -> None:
        self.freed += 1

    def apply_lora(self, model: Any, clip: Any, state_dict: Any, strength: float) -> tuple[Any, Any, int, int]:
        modules = {key.partition(".")[0] for key in state_dict}
        return (model, "patched", strength), (clip, "patched", strength), len(modules & self.known), len(modules)

    def sample(self, model: Any, seed: int, steps: int, cfg: float, positive: Any, negative: Any, latent: Any,
               denoise: float, callback: Any = None) -> Any:  # fmt: skip
        for step in range(1, steps + 1):
            callback(step, steps)
        return {**latent, "samples": latent["samples"] + seed + positive}

    def blend(self, first: Any, second: Any, weight: float) -> Any:
        return first * (1 - weight) + second * weight

    def models_dir(self, kind: str) -> list[Path]:
        return [self.root / "models" / kind]

    def checkpoint_path(self, name: str) -> Path:
        path = self.root / "models" / "checkpoints" / name
        if not path.is_file():
            raise FileNotFoundError(f"this pod has no checkpoint named {name}")
        return path

    def output_dir(self) -> Path:
        return self.root / "output"

    def loras_cache_dir(self) -> Path:
        return self.root / "lora_cache"


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
        self.files[request.match_info["name"]] = await request.read()
        return web.Response(status=200)


def problem(status: int, code: str, detail: str) -> web.Response:
    body = json.dumps({"type": "about:blank", "status": status, "code": code, "detail": detail})
    return web.Response(status=status, text=body, content_type="application/problem+json")


@pytest.fixture
def attempt_id() -> str:
    """A fresh attempt for each test: outputs are numbered per prompt."""
    return str(uuid.uuid4())


@pytest.fixture
def folder_host(tmp_path: Path, attempt_id: str) -> Iterator[FolderHost]:
    host = FolderHost(tmp_path / "host", attempt_id)
    host_seam.set_host(host)
    yield host
    host_seam.set_host(None)


@pytest.fixture
def server(attempt_id: str) -> Iterator[ControlPlaneServer]:
    """A control plane in a thread of its own: the nodes block, as they do in a prompt worker."""
    double = ControlPlaneServer(attempt_id)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(double.application(), shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        double.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield double
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


@pytest.fixture
def linked(server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch) -> ControlPlaneServer:
    """The server, known to the nodes through their environment."""
    monkeypatch.setenv("TROUPE_CONTROL_PLANE_URL", server.url)
    monkeypatch.setenv("TROUPE_POD_KEY", POD_KEY)
    return server


@pytest.fixture
def unlinked(monkeypatch: pytest.MonkeyPatch) -> None:
    """An artist's desktop: no control plane."""
    for name in ("TROUPE_CONTROL_PLANE_URL", "TROUPE_POD_KEY", "TROUPE_POD_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def lora_bytes() -> Any:
    return make_lora


def make_lora(
    modules: tuple[str, ...] = ("lora_unet_a",),
    rank: int = 2,
    up: float = 0.5,
    metadata: dict[str, str] | None = None,
    floats: int = 4,
) -> bytes:
    """A whole safetensors file in kohya's layout, by hand: F32, down [rank, floats], up [floats, rank], alpha."""
    tensors: dict[str, tuple[list[int], bytes]] = {}
    for name in modules:
        down_values, up_values = ([value] * rank * floats for value in (1.0, up))
        tensors[f"{name}.lora_down.weight"] = ([rank, floats], struct.pack(f"<{rank * floats}f", *down_values))
        tensors[f"{name}.lora_up.weight"] = ([floats, rank], struct.pack(f"<{rank * floats}f", *up_values))
        tensors[f"{name}.alpha"] = ([], struct.pack("<f", float(rank)))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    body = b""
    for name, (shape, content) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    """Poll for a condition; fails the test when it does not come true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def eventually() -> Any:
    return wait_until
