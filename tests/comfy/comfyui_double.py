"""A small real server with ComfyUI's routes and its agent's: it replays transcripts and fails in the recorded ways."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import WSCloseCode, web

TRANSCRIPTS = Path(__file__).parent / "transcripts"
SUCCESS, ERROR, INTERRUPT = "01_success", "06_execution_error", "11_interrupt_check"
BEFORE_HOLD = 4
"""Messages that come before a held prompt waits: start, cached, progress state, executing."""
TOKEN = "pod-token-of-the-double"


def lines(name: str) -> list[dict[str, Any]]:
    """A transcript, line by line."""
    return [json.loads(line) for line in (TRANSCRIPTS / f"{name}.jsonl").read_text().splitlines()]


def recorded_messages(name: str) -> Iterator[dict[str, Any]]:
    """The websocket messages that name a prompt, in their order."""
    for line in lines(name):
        if line["kind"] == "ws_recv" and "prompt_id" in line["msg"]["data"]:
            yield line["msg"]


def recorded_history(name: str) -> dict[str, Any]:
    """The history entry that the transcript ends with."""
    found = [line for line in lines(name) if line["kind"] == "http" and line["path"].startswith("/history/")]
    (entry,) = found[-1]["response"].values()
    return dict(entry)


def recorded_prompt_id(name: str) -> str:
    """The prompt id in a transcript."""
    return str(next(recorded_messages(name))["data"]["prompt_id"])


def renamed(value: Any, old: str, new: str) -> Any:
    """The value with another prompt id."""
    return json.loads(json.dumps(value).replace(old, new))


def replay_graph(transcript: str = SUCCESS, *, held: bool = False, salt: int = 0) -> dict[str, Any]:
    """A graph that makes the double replay a transcript; ``held`` makes it wait in the middle until released."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": salt}},
        "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], "width": 64, "height": 64}},
        "3": {"class_type": "Replay", "inputs": {"images": ["2", 0], "transcript": transcript, "held": held}},
    }


class ComfyUIDouble:
    """One pod. ``received`` are the prompts it took, in order; everything else is what a test may turn."""

    def __init__(self, token: str = TOKEN) -> None:
        self.token = token
        self.received: list[dict[str, Any]] = []
        self.executed: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self.pending: list[dict[str, Any]] = []
        self.running: dict[str, Any] | None = None
        self.history: dict[str, Any] = {}
        self.forgotten: list[str] = []
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.first_frames: list[Any] = []
        self.released = asyncio.Event()
        self.interrupted = asyncio.Event()
        self.started = asyncio.Event()
        self.answer_submit_with: list[tuple[int, Any]] = []
        self.break_after_queueing = False
        self.slow_to_take: dict[str, float] = {}
        """Seconds that a prompt is on its way."""
        self.deaf = False
        self.rename_uploads = False
        self.calls: list[str] = []
        self.away = False
        """The agent answers 503 for its ComfyUI, with this code."""
        self.away_code = "comfyui_down"
        self.incidents: dict[str, dict[str, Any]] = {}
        self.log: list[str] | None = None
        self.worker: dict[str, Any] | None = None
        """What the node pack says of its worker; None where the pack is not installed."""
        self.failure = ""
        """What failing nodes say instead of the recorded words."""
        self.mute = False
        """Sockets stay open and get nothing, as a newer one does whose older namesake has died."""
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._worker: asyncio.Task[None] | None = None
        self._work = asyncio.Event()

    async def start(self, port: int = 0) -> None:
        """Serve on a port of the loopback."""
        app = web.Application(middlewares=[self._check_token], client_max_size=1 << 26)
        app.add_routes(
            [
                web.post("/prompt", self._post_prompt),
                web.get("/queue", self._get_queue),
                web.post("/queue", self._post_queue),
                web.get("/history/{id}", self._get_history),
                web.post("/history", self._post_history),
                web.post("/interrupt", self._post_interrupt),
                web.post("/upload/image", self._post_upload),
                web.get("/system_stats", self._get_stats),
                web.get("/ws", self._socket),
                web.get("/troupe/incidents/{id}", self._get_incident),
                web.get("/troupe/log", self._get_log),
                web.get("/troupe/state", self._get_worker),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._worker = asyncio.create_task(self._work_on())

    async def stop(self) -> None:
        """End the process, as kill -9 would: no close frames, nothing kept."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
        for socket in list(self.sockets.values()):
            if socket._req is not None and socket._req.transport is not None:
                socket._req.transport.abort()
        if self._runner is not None:
            await self._runner.cleanup()

    async def restart(self) -> None:
        """A new process on the same port: queue and history are empty."""
        await self.stop()
        self.pending, self.running, self.history, self.sockets = [], None, {}, {}
        self.released, self.interrupted, self.started = asyncio.Event(), asyncio.Event(), asyncio.Event()
        await self.start(self.port)

    async def close_sockets(self, code: int = WSCloseCode.GOING_AWAY) -> None:
        """Close every websocket in an orderly way, as a proxy does after a while."""
        for socket in list(self.sockets.values()):
            await socket.close(code=code)

    @web.middleware
    async def _check_token(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        self.calls.append(f"{request.method} {request.path}")
        if self.away and not request.path.startswith(("/troupe/incidents/", "/troupe/log")):
            problem = {"code": self.away_code, "detail": "ComfyUI is being started"}
            return web.json_response(problem, status=503, headers={"Retry-After": "3"})
        response: web.StreamResponse = await handler(request)
        return response

    async def _post_prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        await asyncio.sleep(self.slow_to_take.get(body["prompt_id"], 0.0))
        if self.answer_submit_with:
            status, answer = self.answer_submit_with.pop(0)
            if status == 200:
                self._queue(body)
            if isinstance(answer, str):
                return web.Response(status=status, text=answer)
            return web.json_response(answer, status=status)
        self._queue(body)
        if self.break_after_queueing:
            self.break_after_queueing = False
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"prompt_id": body["prompt_id"], "number": len(self.received), "node_errors": {}})

    def _queue(self, body: dict[str, Any]) -> None:
        self.received.append(body)
        self.pending.append(body)
        self._work.set()

    async def _get_queue(self, request: web.Request) -> web.Response:
        def item(body: Mapping[str, Any]) -> list[Any]:
            return [self.received.index(dict(body)), body["prompt_id"], body["prompt"], body["extra_data"], ["3"]]

        running = [item(self.running)] if self.running else []
        return web.json_response({"queue_running": running, "queue_pending": [item(body) for body in self.pending]})

    async def _post_queue(self, request: web.Request) -> web.Response:
        gone = (await request.json())["delete"]
        self.pending = [body for body in self.pending if body["prompt_id"] not in gone]
        return web.Response()

    async def _get_history(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info["id"]
        return web.json_response({prompt_id: self.history[prompt_id]} if prompt_id in self.history else {})

    async def _post_history(self, request: web.Request) -> web.Response:
        for prompt_id in (await request.json())["delete"]:
            self.forgotten.append(prompt_id)
            self.history.pop(prompt_id, None)
        return web.Response()

    async def _post_interrupt(self, request: web.Request) -> web.Response:
        wanted = (await request.json()).get("prompt_id")
        if not self.deaf and self.running is not None and wanted in (None, self.running["prompt_id"]):
            self.interrupted.set()
        return web.Response()

    async def _post_upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        field = form["image"]
        assert isinstance(field, web.FileField)
        folder = str(form.get("subfolder", ""))
        name = field.filename if not self.rename_uploads else f"other {field.filename}"
        self.uploads[f"{folder}/{name}" if folder else name] = field.file.read()
        return web.json_response({"name": name, "subfolder": folder, "type": "input"})

    async def _get_stats(self, request: web.Request) -> web.Response:
        return web.json_response({"system": {"comfyui_version": "0.8.0"}, "devices": []})

    async def _get_incident(self, request: web.Request) -> web.Response:
        incident = self.incidents.get(request.match_info["id"])
        return web.Response(status=404) if incident is None else web.json_response(incident)

    async def _get_log(self, request: web.Request) -> web.Response:
        if self.log is None:
            return web.Response(status=404)
        return web.json_response({"lines": self.log[-int(request.query["lines"]) :]})

    async def _get_worker(self, request: web.Request) -> web.Response:
        return web.Response(status=404) if self.worker is None else web.json_response(self.worker)

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        client_id = request.query["clientId"]
        self.sockets[client_id] = socket
        status = {"status": {"exec_info": {"queue_remaining": len(self.pending)}}, "sid": client_id}
        await socket.send_json({"type": "status", "data": status})
        first = True
        async for frame in socket:
            if first:
                self.first_frames.append(json.loads(frame.data))
            first = False
        return socket

    async def _work_on(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self.pending:
                self.running = self.pending.pop(0)
                self.interrupted.clear()
                await self._execute(self.running)
                self.running = None

    async def _execute(self, body: Mapping[str, Any]) -> None:
        inputs = body["prompt"]["3"]["inputs"]
        prompt_id, name = body["prompt_id"], inputs["transcript"]
        self.executed.append(prompt_id)
        messages = list(recorded_messages(name))
        for message in messages[:BEFORE_HOLD]:
            await self._tell(body, renamed(message, recorded_prompt_id(name), prompt_id))
        self.started.set()
        if inputs["held"]:
            await self._wait()
        if self.interrupted.is_set():
            name = INTERRUPT
            messages = list(recorded_messages(name))
        for message in messages[BEFORE_HOLD:]:
            if message["type"] == "executing" and message["data"]["node"] is None:
                entry = renamed(recorded_history(name), recorded_prompt_id(name), prompt_id)
                self.history[prompt_id] = renamed(entry, "lab failure", self.failure) if self.failure else entry
            await self._tell(body, renamed(message, recorded_prompt_id(name), prompt_id))

    async def _wait(self) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (self.released, self.interrupted)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _tell(self, body: Mapping[str, Any], message: Mapping[str, Any]) -> None:
        socket = self.sockets.get(body["client_id"])
        if socket is not None and not socket.closed and not self.mute:
            with contextlib.suppress(ConnectionError):
                await socket.send_json(message)


@contextlib.asynccontextmanager
async def comfyui_double() -> AsyncIterator[ComfyUIDouble]:
    """A running double."""
    double = ComfyUIDouble()
    await double.start()
    try:
        yield double
    finally:
        await double.stop()
