"""One simulated pod: ComfyUI's queue, history, routes and websocket messages around prompts that only take time."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from bench.http_wire import Message, ServedConnection, Socket, answer, upgraded
from bench.simulated_saving import Saver

OUTPUT_NODES = frozenset({"SaveImage", "PreviewImage", "S3Save"})
NODE_CLASSES = (
    "BenchWork", "CharacterLoRALoader", "CheckpointLoaderSimple", "CLIPTextEncode", "EmptyImage", "EmptyLatentImage",
    "KSampler", "PreviewImage", "S3Save", "SaveImage", "VAEDecode",
)  # fmt: skip
PROBLEM = "application/problem+json"
MAX_HISTORY = 10_000


@dataclass(frozen=True)
class Pace:
    """How long things take on a simulated GPU, in seconds."""

    run: float = 0.0
    """Every prompt, beside what the ``seconds`` inputs of its nodes ask for."""
    lora: float = 0.0
    """Another LoRA than the last one."""
    base: float = 0.0
    """Another checkpoint than the last one."""
    steps: int = 0
    """How many steps a prompt tells of on the websocket."""


@dataclass
class Counts:
    """What all pods of a process did; ``executed`` is the journal of prompt ids, in the order in which they began."""

    prompts: int = 0
    succeeded: int = 0
    interrupted: int = 0
    failed: int = 0
    lora_loads: int = 0
    base_loads: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    executed: list[str] = field(default_factory=list)


@dataclass
class _Prompt:
    number: float
    prompt_id: str
    graph: Mapping[str, Any]
    extra: dict[str, Any]
    outputs: list[str]
    messages: list[list[Any]] = field(default_factory=list)
    ui: dict[str, Any] = field(default_factory=dict)

    @property
    def client_id(self) -> str | None:
        return self.extra.get("client_id")

    def as_list(self) -> list[Any]:
        return [self.number, self.prompt_id, self.graph, self.extra, self.outputs]


class SimulatedPod:
    """Runs one prompt at a time. Its whole state is in memory; ``serve`` opens its port on loopback."""

    def __init__(
        self,
        name: str,
        token: str,
        pace: Pace,
        counts: Counts,
        saver: Saver,
        node_classes: Sequence[str] = NODE_CLASSES,
    ) -> None:
        self.name, self.token = name, token
        self.instance_id = str(uuid.uuid4())
        self.address = ""
        self.draining = False
        self.saver = saver
        self._pace, self._counts, self._node_classes = pace, counts, node_classes
        self._expected = f"Bearer {token}"
        self._pending: list[_Prompt] = []
        self._running: _Prompt | None = None
        self._task: asyncio.Task[None] | None = None
        self._history: dict[str, dict[str, Any]] = {}
        self._sockets: list[tuple[str, Socket]] = []
        self._number = 0
        self._interrupt: Callable[[], object] = bool
        self._base: Any = None
        self._lora: Any = None
        self.loras: dict[str, None] = {}
        self._server: asyncio.Server | None = None

    async def serve(self, port: int = 0) -> None:
        """Open the port; ``address`` says which."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ServedConnection(self.handle), "127.0.0.1", port, backlog=256)
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._server is not None:
            self._server.close()

    @property
    def queue_lengths(self) -> tuple[int, int]:
        """(running, waiting)."""
        return int(self._running is not None), len(self._pending)

    def handle(self, message: Message, transport: asyncio.WriteTransport) -> bytes | Socket:
        """Answer one request, or make a websocket of its connection."""
        if message.headers.get("authorization") != self._expected:
            body = orjson.dumps({"status": 401, "code": "bad_pod_token", "title": "no", "detail": "no"})
            return answer(401, body, PROBLEM, "WWW-Authenticate: Bearer\r\n")
        method, target, _ = message.start
        parts = urlsplit(target)
        path = parts.path.removeprefix("/api")
        first, _, rest = path[1:].partition("/")
        self._counts.requests[f"{method} /{first}{'/…' if rest else ''}"] += 1
        if first == "ws":
            return self._socket(parse_qs(parts.query), message, transport)
        route = _ROUTES.get((method, first))
        if route is None:
            return answer(404, b"404: Not Found", "text/plain")
        try:
            return route(self, unquote(rest), parse_qs(parts.query), message.body)
        except (ValueError, TypeError, KeyError, AttributeError):  # what ComfyUI answers to a body that it cannot read
            return answer(500, b"500 Internal Server Error", "text/plain")

    def _socket(self, query: Mapping[str, list[str]], message: Message, transport: asyncio.WriteTransport) -> Socket:
        client_id = query.get("clientId", [uuid.uuid4().hex])[0]
        transport.write(upgraded(message.headers))
        socket = Socket(transport, self._forget_socket)
        socket.heard = lambda text: self._heard(socket, text)  # type: ignore[method-assign]
        self._sockets.append((client_id, socket))
        first = _status(sum(self.queue_lengths))
        first["data"]["sid"] = client_id
        socket.send(orjson.dumps(first))
        return socket

    def _heard(self, socket: Socket, text: bytes) -> None:
        if b"feature_flags" in text:
            flags = {"supports_preview_metadata": True, "max_upload_size": 104857600}
            socket.send(orjson.dumps({"type": "feature_flags", "data": flags}))

    def _forget_socket(self, socket: Socket) -> None:
        self._sockets = [one for one in self._sockets if one[1] is not socket]

    def _tell(self, client_id: str | None, *events: dict[str, Any]) -> None:
        """To the newest socket of a client; a ``status`` to every socket."""
        texts = [orjson.dumps(one) for one in events]
        for known, socket in reversed(self._sockets):
            if known == client_id:
                socket.send(*texts)
                return

    def _tell_status(self) -> None:
        text = orjson.dumps(_status(sum(self.queue_lengths)))
        for _, socket in self._sockets:
            socket.send(text)

    def _post_prompt(self, rest: str, query: Mapping[str, list[str]], body: bytes) -> bytes:
        if self.draining:
            told = {"status": 503, "code": "draining", "title": "draining", "detail": "draining"}
            return answer(503, orjson.dumps(told), PROBLEM)
        asked = json.loads(body)
        if "prompt" not in asked:
            return _refused("no_prompt", "No prompt provided", "No prompt provided")
        graph = dict(asked["prompt"])
        for node_id, node in graph.items():
            if node["class_type"] not in self._node_classes:
                message = f"Cannot execute because node {node['class_type']} does not exist."
                return _refused("invalid_prompt", message, f"Node ID '#{node_id}'")
        outputs = [node_id for node_id, node in graph.items() if node["class_type"] in OUTPUT_NODES]
        if not outputs:
            return _refused("prompt_no_outputs", "Prompt has no outputs", "")
        number = float(asked["number"]) if "number" in asked else -self._number if asked.get("front") else self._number
        self._number += 1
        extra = dict(asked.get("extra_data") or {})
        if "client_id" in asked:
            extra["client_id"] = asked["client_id"]
        extra["create_time"] = int(time.time() * 1000)
        prompt = _Prompt(number, str(asked.get("prompt_id", uuid.uuid4())), graph, extra, outputs)
        self._pending.append(prompt)
        self._pending.sort(key=lambda one: (one.number, one.prompt_id))
        self._tell_status()
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return _json({"prompt_id": prompt.prompt_id, "number": number, "node_errors": {}})

    async def _work(self) -> None:
        """Run what waits, one after another, until nothing does."""
        try:
            while self._pending:
                prompt = self._running = self._pending.pop(0)
                self._tell_status()
                how = await self._ran(prompt)
                self._finish(prompt, how)
        finally:
            self._running = self._task = None

    async def _ran(self, prompt: _Prompt) -> str:
        self._counts.prompts += 1
        self._counts.executed.append(prompt.prompt_id)
        self._say(prompt, "execution_start")
        self._say(prompt, "execution_cached", nodes=[])
        run = asyncio.create_task(self._run_nodes(prompt))
        self._interrupt = run.cancel
        try:
            await asyncio.wait((run,))
        except asyncio.CancelledError:
            run.cancel()
            raise
        if run.cancelled():
            self._counts.interrupted += 1
            self._say(prompt, "execution_interrupted", node_id="", node_type="", executed=[])
            return "error"
        if (error := run.exception()) is not None:
            self._counts.failed += 1
            node = prompt.outputs[0]
            kind = prompt.graph[node]["class_type"]
            self._say(
                prompt, "execution_error", node_id=node, node_type=kind, executed=[], traceback=[], current_inputs={},
                current_outputs=[], exception_message=f"{error}\n", exception_type=type(error).__name__,
            )  # fmt: skip
            return "error"
        self._counts.succeeded += 1
        self._say(prompt, "execution_success")
        return "success"

    async def _run_nodes(self, prompt: _Prompt) -> None:
        states: dict[str, dict[str, Any]] = {}
        rest = self._pace.run
        for node_id, node in prompt.graph.items():
            rest += float(node["inputs"].get("seconds", 0.0)) + self._loading(node)
            at = {"prompt_id": prompt.prompt_id, "display_node_id": node_id, "parent_node_id": None}
            states[node_id] = {"value": 0.0, "max": 1.0, "state": "running", "node_id": node_id, **at}
            began = _event("executing", node=node_id, display_node=node_id, prompt_id=prompt.prompt_id)
            self._tell(prompt.client_id, self._states(prompt, states), began)
            if rest > 0:
                await self._take_time(prompt, node_id, rest)
                rest = 0.0
            states[node_id] |= {"value": 1.0, "state": "finished"}
            ended = [self._states(prompt, states)]
            if (ui := await self._output(prompt, node_id, node)) is not None:
                prompt.ui[node_id] = ui
                done = _event("executed", node=node_id, display_node=node_id, output=ui, prompt_id=prompt.prompt_id)
                ended.insert(0, done)
            self._tell(prompt.client_id, *ended)

    async def _take_time(self, prompt: _Prompt, node_id: str, seconds: float) -> None:
        for step in range(self._pace.steps):
            await asyncio.sleep(seconds / self._pace.steps)
            told = _event("progress", value=step + 1, max=self._pace.steps, prompt_id=prompt.prompt_id, node=node_id)
            self._tell(prompt.client_id, told)
        if self._pace.steps == 0:
            await asyncio.sleep(seconds)

    def _loading(self, node: Mapping[str, Any]) -> float:
        """Seconds that loading what this node wants takes; nothing where it is there already."""
        inputs, seconds = node["inputs"], 0.0
        if node["class_type"] == "CheckpointLoaderSimple" and inputs.get("ckpt_name") != self._base:
            self._base, self._lora = inputs.get("ckpt_name"), None
            self._counts.base_loads += 1
            seconds += self._pace.base
        if node["class_type"] == "CharacterLoRALoader":
            wanted = inputs.get("sha256") or (inputs.get("character_id"), inputs.get("version"))
            if wanted != self._lora:
                self._lora = wanted
                self._counts.lora_loads += 1
                seconds += self._pace.lora
                if isinstance(wanted, str):
                    self.loras[wanted] = None
        return seconds

    async def _output(self, prompt: _Prompt, node_id: str, node: Mapping[str, Any]) -> dict[str, Any] | None:
        if node["class_type"] == "S3Save":
            index = sum(len(ui.get("assets", ())) for ui in prompt.ui.values())
            name = str(node["inputs"].get("name") or "image")
            return {"assets": [await self.saver.save(prompt.prompt_id, index, name)]}
        if node["class_type"] in OUTPUT_NODES:
            name = f"{prompt.prompt_id}_{node_id}_00001_.png"
            return {"images": [{"filename": name, "subfolder": "", "type": "output"}]}
        return None

    def _finish(self, prompt: _Prompt, how: str) -> None:
        self._running = None
        status = {"status_str": how, "completed": how == "success", "messages": prompt.messages}
        meta = {
            node: {"node_id": node, "display_node": node, "parent_node": None, "real_node_id": node}
            for node in prompt.ui
        }
        self._history.pop(prompt.prompt_id, None)
        entry = {"prompt": prompt.as_list(), "outputs": prompt.ui, "status": status, "meta": meta}
        self._history[prompt.prompt_id] = entry
        while len(self._history) > MAX_HISTORY:
            del self._history[next(iter(self._history))]
        self._tell_status()
        self._tell(prompt.client_id, _event("executing", node=None, prompt_id=prompt.prompt_id))

    def _states(self, prompt: _Prompt, states: Mapping[str, Any]) -> dict[str, Any]:
        return _event("progress_state", prompt_id=prompt.prompt_id, nodes=states)

    def _say(self, prompt: _Prompt, kind: str, **data: Any) -> None:
        data |= {"prompt_id": prompt.prompt_id, "timestamp": int(time.time() * 1000)}
        prompt.messages.append([kind, data])
        self._tell(prompt.client_id, {"type": kind, "data": data})

    def _get_prompt(self, rest: str, query: Mapping[str, list[str]], body: bytes) -> bytes:
        return _json({"exec_info": {"queue_remaining": sum(self.queue_lengths)}})

    def _get_queue(self, rest: str, query: Mapping[str, list[str]], body: bytes) -> bytes:
        running = [self._running.as_list()] if self._running is not None else []
        return _json({"queue_running": running, "queue_pending": [one.as_list() for one in self._pending]})

    def _post_queue(self, rest: str, query: Mapping[str, list[str]], body: bytes) -> bytes:
        asked = json.loads(body)
        if asked.get("clear"):
            self._pending.clear()
        for prompt_id in asked.get("delete", []):
            for index, prompt in enumerate(self._pending):
                if prompt.prompt_id == prompt_id:
                    del self._pending[index]
                    break
        self._tell_status()
        return answer(200)

    def _post_interrupt(self, rest: str, query: Mapping[str, list[str]], body: bytes) -> bytes:
        wanted = (json.loads(body) if body else {}).get("prompt_id")
        if self._running is not None and wanted in (None, "", self._running.prompt_id):
            self._interrupt()
        return answer(200)

    def _get_history(self, rest: str, query: Mapping[str, list[str]], body: bytes) -> bytes:
        if rest:
            return _json({rest: self._history[rest]} if rest in self._history else {})
        entries = list(self._history.items())
        count = int(query["max_items"][0]) if "max_items" in query else len(entries)
        offset = int(query.get("offset", ["-1"])[0])
        start = max(offset if offset >= 0 else len(entries) - count, 0)
        return _json(dict(entries[start : start + count]))

    def _post_history(self, rest: str, query: Mapping[str, list[str]], body: bytes) -> bytes:
        asked = json.loads(body)
        gone = list(self._history) if asked.get("clear") else asked.get("delete", [])
        for prompt_id in gone:
            self._history.pop(prompt_id, None)
            self.saver.forget(prompt_id)
        return answer(200)

    def _get_troupe(self, rest: str, query: Mapping[str, list[str]], body: bytes) -> bytes:
        if rest == "state":
            running = self._running.prompt_id if self._running is not None else None
            return _json({"worker_alive": True, "prompt_id": running, "beat_age_seconds": 0.0})
        if rest.startswith("uploads/"):
            return _json(self.saver.uploads(rest.removeprefix("uploads/")))
        return answer(404, b"404: Not Found", "text/plain")

    def _get_object_info(self, rest: str, query: Mapping[str, list[str]], body: bytes) -> bytes:
        shown = [rest] if rest else list(self._node_classes)
        about = {"input": {"required": {}}, "input_order": {"required": []}, "output": [], "output_name": []}
        return _json({one: {"name": one, **about} for one in shown if one in self._node_classes})

    def _get_system_stats(self, rest: str, query: Mapping[str, list[str]], body: bytes) -> bytes:
        system = {"os": "linux", "comfyui_version": "0.8.0", "python_version": "3", "argv": ["simulated"]}
        return _json({"system": system, "devices": [{"name": "simulated", "type": "cpu", "index": None}]})

    def _post_free(self, rest: str, query: Mapping[str, list[str]], body: bytes) -> bytes:
        self._base = self._lora = None
        return answer(200)


def _event(kind: str, **data: Any) -> dict[str, Any]:
    return {"type": kind, "data": data}


def _status(remaining: int) -> dict[str, Any]:
    return _event("status", status={"exec_info": {"queue_remaining": remaining}})


def _json(body: Any) -> bytes:
    return answer(200, orjson.dumps(body))


def _refused(kind: str, message: str, details: str) -> bytes:
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return answer(400, orjson.dumps({"error": error, "node_errors": {}}))


_Route = Callable[[SimulatedPod, str, Mapping[str, list[str]], bytes], bytes]
_ROUTES: Mapping[tuple[str, str], _Route] = {
    ("GET", "prompt"): SimulatedPod._get_prompt,
    ("POST", "prompt"): SimulatedPod._post_prompt,
    ("GET", "queue"): SimulatedPod._get_queue,
    ("POST", "queue"): SimulatedPod._post_queue,
    ("POST", "interrupt"): SimulatedPod._post_interrupt,
    ("GET", "history"): SimulatedPod._get_history,
    ("POST", "history"): SimulatedPod._post_history,
    ("GET", "troupe"): SimulatedPod._get_troupe,
    ("GET", "object_info"): SimulatedPod._get_object_info,
    ("GET", "system_stats"): SimulatedPod._get_system_stats,
    ("POST", "free"): SimulatedPod._post_free,
}
