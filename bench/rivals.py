"""The ways to get a picture out of one and the same pod: over its own API, through Troupe, through comfyui-api."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import orjson

from bench.http_wire import Caller

JSON = {"Content-Type": "application/json"}
WAIT_SECONDS = 60.0
START_SECONDS = 60.0


class Rival(Protocol):
    """Makes one picture; returns when whoever asked has it, or knows where it lies."""

    name: str

    async def make(self, seconds: float, colour: int) -> None:
        """A picture of an unused colour after ``seconds`` of work (0: none). RuntimeError where it fails."""
        ...


def graph(seconds: float, colour: int) -> dict[str, Any]:
    """EmptyImage, perhaps BenchWork, SaveImage."""
    empty = {"width": 64, "height": 64, "batch_size": 1, "color": colour}
    nodes: dict[str, Any] = {"1": {"class_type": "EmptyImage", "inputs": empty}}
    last = "1"
    if seconds:
        nodes["2"] = {"class_type": "BenchWork", "inputs": {"image": ["1", 0], "seconds": seconds}}
        last = "2"
    nodes["3"] = {"class_type": "SaveImage", "inputs": {"images": [last, 0], "filename_prefix": "bench"}}
    return nodes


class Direct:
    """ComfyUI's own API as a careful client uses it: one websocket for all prompts, then the history has the word."""

    name = "direct"

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._caller = Caller(address)
        self._client_id = uuid.uuid4().hex
        self._ended: dict[str, asyncio.Future[None]] = {}

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Direct]:
        async with (
            aiohttp.ClientSession(headers=self._headers) as session,
            session.ws_connect(f"{self._address}/ws?clientId={self._client_id}", max_msg_size=0) as connection,
        ):
            reading = asyncio.create_task(self._read(connection))
            try:
                yield self
            finally:
                reading.cancel()

    async def make(self, seconds: float, colour: int) -> None:
        prompt_id = str(uuid.uuid4())
        self._ended[prompt_id] = asyncio.get_running_loop().create_future()
        body = {"prompt": graph(seconds, colour), "prompt_id": prompt_id, "client_id": self._client_id}
        status, text = await self._caller.call("POST", "/prompt", {**self._headers, **JSON}, orjson.dumps(body))
        if status != 200 or orjson.loads(text)["node_errors"]:
            raise RuntimeError(f"the pod refused: {status} {text[:500]!r}")
        async with asyncio.timeout(WAIT_SECONDS + seconds):
            await self._ended[prompt_id]
        del self._ended[prompt_id]
        _, text = await self._caller.call("GET", f"/history/{prompt_id}", self._headers)
        entry = orjson.loads(text)[prompt_id]
        if entry["status"]["status_str"] != "success" or not entry["outputs"]["3"]["images"]:
            raise RuntimeError(f"the prompt failed: {text[:500]!r}")

    async def _read(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        async for message in connection:
            if message.type is not aiohttp.WSMsgType.TEXT or '"executing"' not in message.data:
                continue
            told = orjson.loads(message.data)["data"]
            waiting = self._ended.get(told.get("prompt_id", ""))
            if told.get("node") is None and waiting is not None and not waiting.done():
                waiting.set_result(None)


class Troupe:
    """POST /generate-image, waited for: durable state, and the picture in the store."""

    name = "troupe"

    def __init__(self, address: str) -> None:
        self._caller = Caller(address)

    async def make(self, seconds: float, colour: int) -> None:
        body: dict[str, Any] = {"prompt": "bench", "seed": colour, "workflow": "bench_noop"}
        if seconds:
            body |= {"workflow": "bench_work", "work_seconds": seconds}
        headers = {**JSON, "Prefer": f"wait={WAIT_SECONDS:g}"}
        status, text = await self._caller.call("POST", "/generate-image", headers, orjson.dumps(body))
        job = orjson.loads(text).get("job", {})
        if status != 200 or job.get("status") != "succeeded" or len(job["assets"]) != 1:
            raise RuntimeError(f"the job failed: {status} {text[:500]!r}")


class ComfyUIAPI:
    """SaladTechnologies/comfyui-api: POST /prompt answers with the picture; it keeps no state."""

    name = "comfyui-api"

    def __init__(self, address: str) -> None:
        self._caller = Caller(address)

    async def make(self, seconds: float, colour: int) -> None:
        body = orjson.dumps({"prompt": graph(seconds, colour)})
        status, text = await self._caller.call("POST", "/prompt", JSON, body)
        if status != 200 or len(orjson.loads(text).get("images", ())) != 1:
            raise RuntimeError(f"comfyui-api failed: {status} {text[:500]!r}")


def comfyui_api_folder() -> Path | None:
    """The built checkout that COMFYUI_API_DIR names."""
    given = os.environ.get("COMFYUI_API_DIR", "").strip()
    return Path(given) if given else None


@contextlib.asynccontextmanager
async def comfyui_api(checkout: Path, comfyui: str, base: Path, folder: Path) -> AsyncIterator[ComfyUIAPI]:
    """comfyui-api in front of a ComfyUI that runs already (``base`` is its base directory), until the block ends."""
    for name in ("workflows", "home/models", "cache"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment: Mapping[str, str] = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "HOST": "127.0.0.1", "PORT": str(port), "LOG_LEVEL": "warn",
        "DIRECT_ADDRESS": "127.0.0.1", "COMFYUI_PORT_HOST": comfyui.rsplit(":", 1)[1], "CMD": "sleep 86400",
        "COMFY_HOME": str(folder / "home"), "MODEL_DIR": str(base / "models"), "INPUT_DIR": str(base / "input"),
        "OUTPUT_DIR": str(base / "output"), "WORKFLOW_DIR": str(folder / "workflows"),
        "CACHE_DIR": str(folder / "cache"),
    }  # fmt: skip
    with (folder / "comfyui-api.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            "node", str(checkout / "dist" / "src" / "index.js"), cwd=folder, env=environment, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        await _until_ready(address, process, folder / "comfyui-api.log")
        yield ComfyUIAPI(address)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 10)
        if process.returncode is None:
            process.kill()


async def _until_ready(address: str, process: asyncio.subprocess.Process, log: Path) -> None:
    caller = Caller(address, keep=False)
    async with asyncio.timeout(START_SECONDS):
        while process.returncode is None:
            with contextlib.suppress(OSError):
                if (await caller.call("GET", "/ready"))[0] == 200:
                    return
            await asyncio.sleep(0.25)
    raise RuntimeError(f"comfyui-api did not start: {log.read_text(errors='replace')[-2000:]}")
