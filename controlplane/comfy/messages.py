"""ComfyUI's messages: each is parsed once, here, into a frozen value; nothing else reads its JSON."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

PREVIEW_IMAGE = 1
TEXT = 3
PREVIEW_IMAGE_WITH_METADATA = 4


@dataclass(frozen=True)
class Status:
    """The number of prompts on the pod, running and waiting. Never says which; ``sid`` only in the first message."""

    queue_remaining: int
    sid: str | None = None


@dataclass(frozen=True)
class Features:
    """What the server can do, in answer to our feature flags."""

    flags: Mapping[str, Any]


@dataclass(frozen=True)
class Started:
    """The prompt left the queue."""

    prompt_id: str


@dataclass(frozen=True)
class Cached:
    """Nodes whose results are known already."""

    prompt_id: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Executing:
    """A node begins; ``node`` None means that the prompt left the worker. After a reconnect there is no prompt id."""

    prompt_id: str | None
    node: str | None


@dataclass(frozen=True)
class Progress:
    """Steps of one node."""

    prompt_id: str | None
    node: str | None
    value: float
    maximum: float


@dataclass(frozen=True)
class NodeState:
    """One node within a progress state."""

    value: float
    maximum: float
    finished: bool


@dataclass(frozen=True)
class ProgressState:
    """Every node touched so far, each time in full."""

    prompt_id: str
    nodes: Mapping[str, NodeState]


@dataclass(frozen=True)
class Executed:
    """A node's ``ui`` result."""

    prompt_id: str
    node: str
    output: Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """The prompt ended; history follows within a second and has the last word."""

    prompt_id: str
    how: Literal["succeeded", "failed", "interrupted"]


@dataclass(frozen=True)
class Preview:
    """A preview picture; ids only where metadata came with it."""

    image: bytes
    prompt_id: str | None = None
    node: str | None = None


@dataclass(frozen=True)
class Unknown:
    """Something we do not need: another pack's event, or a newer server's."""

    type: str


Message = (
    Status | Features | Started | Cached | Executing | Progress | ProgressState | Executed | Ended | Preview | Unknown
)

_ENDS: Mapping[str, Literal["succeeded", "failed", "interrupted"]] = {
    "execution_success": "succeeded",
    "execution_error": "failed",
    "execution_interrupted": "interrupted",
}


def decoded(data: str | bytes) -> Any:
    """A JSON value of ComfyUI's, which may hold what only Python takes for JSON, such as NaN. ValueError."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)


def encoded(value: Mapping[str, Any]) -> bytes:
    """A JSON value for ComfyUI, with integers of any size."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value).encode()


def parse_text(text: str | bytes) -> Message:
    """Parse one text frame. What is not understood becomes Unknown: a hint that cannot be read is no hint."""
    try:
        message = decoded(text)
        return _parse(str(message["type"]), message.get("data") or {})
    except (ValueError, KeyError, TypeError, AttributeError):
        return Unknown(text[:80] if isinstance(text, str) else text[:80].decode("utf-8", "replace"))


def _parse(type_: str, data: Mapping[str, Any]) -> Message:
    if type_ in _ENDS:
        return Ended(str(data["prompt_id"]), _ENDS[type_])
    parser = _PARSERS.get(type_)
    return parser(data) if parser else Unknown(type_)


def _status(data: Mapping[str, Any]) -> Message:
    return Status(int(data["status"]["exec_info"]["queue_remaining"]), data.get("sid"))


def _progress_state(data: Mapping[str, Any]) -> Message:
    nodes = {
        str(node_id): NodeState(float(node["value"]), float(node["max"]), node["state"] == "finished")
        for node_id, node in data["nodes"].items()
    }
    return ProgressState(str(data["prompt_id"]), nodes)


_PARSERS: Mapping[str, Callable[[Mapping[str, Any]], Message]] = {
    "status": _status,
    "feature_flags": lambda data: Features(dict(data)),
    "execution_start": lambda data: Started(str(data["prompt_id"])),
    "execution_cached": lambda data: Cached(str(data["prompt_id"]), tuple(map(str, data["nodes"]))),
    "executing": lambda data: Executing(data.get("prompt_id"), data.get("node")),
    "progress": lambda data: Progress(
        data.get("prompt_id"), data.get("node"), float(data["value"]), float(data["max"])
    ),
    "progress_state": _progress_state,
    "executed": lambda data: Executed(str(data["prompt_id"]), str(data["node"]), data.get("output") or {}),
}


def parse_binary(frame: bytes) -> Message:
    """Parse one binary frame: big-endian event type, then its payload."""
    try:
        (event,) = struct.unpack_from(">I", frame)
        if event == PREVIEW_IMAGE:
            return Preview(frame[8:])
        if event == PREVIEW_IMAGE_WITH_METADATA:
            (length,) = struct.unpack_from(">I", frame, 4)
            about = decoded(frame[8 : 8 + length])
            return Preview(frame[8 + length :], about.get("prompt_id"), about.get("node_id"))
        return Unknown(f"binary {event}")
    except (struct.error, ValueError, AttributeError):
        return Unknown("binary, unreadable")


@dataclass(frozen=True)
class Finished:
    """A history entry: how a prompt ended and what its output nodes reported (``ui`` dicts by node id).

    ``error``: ``{type, message, node_id, node_type}`` where a node failed.
    """

    prompt_id: str
    how: Literal["succeeded", "failed", "interrupted"]
    outputs: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None


def parse_history(prompt_id: str, body: Mapping[str, Any]) -> Finished | None:
    """Read ``GET /history/{id}``; None where it holds nothing yet (or nothing any more).

    An interrupted prompt is stored as an error: only its last message tells the two apart.
    """
    entry = body.get(prompt_id)
    if not isinstance(entry, Mapping):
        return None
    status = entry.get("status") or {}
    messages = status.get("messages") or []
    last, about = (messages[-1][0], messages[-1][1]) if messages else ("", {})
    outputs = entry.get("outputs") or {}
    how = _ENDS.get(last) or ("succeeded" if status.get("status_str") == "success" else "failed")
    return Finished(prompt_id, how, outputs, _error(about) if how == "failed" else None)


def _error(about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": str(about.get("exception_type") or ""),
        "message": str(about.get("exception_message") or "").strip(),
        "node_id": about.get("node_id"),
        "node_type": about.get("node_type"),
    }


@dataclass(frozen=True)
class Incident:
    """What became of ComfyUI while a prompt was in its hands, as the pod's agent tells it.

    ``code``: zombie_worker | hung | died | dead_device | memory_limit | drained. ``log_tail`` is newest last.
    """

    code: str
    detail: str
    log_tail: tuple[str, ...] = ()


def parse_incident(body: Mapping[str, Any]) -> Incident:
    """Read ``GET /troupe/incidents/{id}`` of an agent."""
    code = str(body.get("code") or "restarted")
    return Incident(code, str(body.get("detail") or f"ComfyUI was restarted ({code})."), _lines(body.get("log_tail")))


def parse_log(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Read ``GET /troupe/log`` of an agent, newest last."""
    return _lines(body.get("lines"))


def _lines(value: Any) -> tuple[str, ...]:
    return tuple(str(line) for line in value) if isinstance(value, list) else ()


@dataclass(frozen=True)
class Worker:
    """What the node pack says of the thread that runs prompts; ``beat_age`` is seconds, None where nothing runs."""

    alive: bool
    prompt_id: str | None = None
    beat_age: float | None = None


def parse_worker(body: Mapping[str, Any]) -> Worker:
    """Read ``GET /troupe/state`` of the node pack."""
    prompt_id, age = body.get("prompt_id"), body.get("beat_age_seconds")
    return Worker(
        bool(body.get("worker_alive")),
        None if prompt_id is None else str(prompt_id),
        float(age) if isinstance(age, (int, float)) else None,
    )


@dataclass(frozen=True)
class Uploads:
    """What the node pack says of the files that a prompt promised, by reference.

    ``failed`` will never come, in words; ``idle_seconds``: for how long no file of this pod has moved.
    """

    pending: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    stored: tuple[str, ...] = ()
    idle_seconds: float = 0.0


def parse_uploads(body: Mapping[str, Any]) -> Uploads:
    """Read ``GET /troupe/uploads/{prompt_id}`` of the node pack."""
    failed, idle = body.get("failed"), body.get("idle_seconds")
    entries = [one for one in failed if isinstance(one, dict)] if isinstance(failed, list) else []
    return Uploads(
        _texts(body.get("pending")),
        {str(one.get("upload")): str(one.get("reason")) for one in entries},
        _texts(body.get("stored")),
        float(idle) if isinstance(idle, (int, float)) else 0.0,
    )


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(one) for one in value) if isinstance(value, list) else ()


@dataclass(frozen=True)
class Queue:
    """Prompt ids on the pod, the waiting ones in the order in which they will run."""

    running: tuple[str, ...]
    pending: tuple[str, ...]

    def holds(self, prompt_id: str) -> bool:
        """Whether the prompt runs or waits."""
        return prompt_id in self.running or prompt_id in self.pending


def parse_queue(body: Mapping[str, Any]) -> Queue:
    """Read ``GET /queue``. Its pending list is a raw heap: sorted here by number, then id."""
    pending = sorted(body.get("queue_pending") or [], key=lambda item: (item[0], str(item[1])))
    running = body.get("queue_running") or []
    return Queue(tuple(str(item[1]) for item in running), tuple(str(item[1]) for item in pending))
