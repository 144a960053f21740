"""The pack's ear and mouth in ComfyUI's server: beats from the events it sends, `/troupe/state`, `/troupe/uploads`."""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import state
from .comfy_host import ComfyHost
from .hand_over import hand_over
from .lora_cache import digests_in
from .training.trainers import TRAINERS

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger(__name__)

ROUTE = "/troupe/state"
UPLOADS_ROUTE = "/troupe/uploads/{prompt_id}"
# What ComfyUI names its worker's thread after; a later version that does not is learnt from its first event.
WORKER_NAME = "prompt_worker"
_BEATS = frozenset(
    {"execution_start", "execution_cached", "executing", "progress", "progress_state", "executed", "execution_success"}
)
_WORKERS_OWN = frozenset({"execution_start", "executing"})


def serve(server: Any) -> None:
    """Tap the events of ComfyUI's PromptServer and add the routes to it, while its routes are still being collected.

    Raises RuntimeError where another copy of the pack did so: a second route would keep ComfyUI from starting.
    """
    if any(getattr(route, "path", "") == ROUTE for route in server.routes):
        raise RuntimeError("another copy of the pack in custom_nodes answers /troupe/state: remove one of the two")
    ear = Ear(server)
    server.send_sync = ear.hearing(server.send_sync)
    host = ComfyHost()

    async def answer(_request: web.Request) -> web.Response:
        from aiohttp import web

        # In a thread: asking a device that hangs must not stop every other route.
        return web.json_response(await asyncio.to_thread(_snapshot, ear, host))

    async def uploads(request: web.Request) -> web.Response:
        from aiohttp import web

        return web.json_response(hand_over().told(request.match_info["prompt_id"]))

    server.routes.get(ROUTE)(answer)
    server.routes.get(UPLOADS_ROUTE)(uploads)


class Ear:
    """Turns ComfyUI's events and its queue into `state`'s signs of life."""

    def __init__(self, server: Any) -> None:
        self._queue = server.prompt_queue
        self._worker: threading.Thread | None = None
        self._last_ended = ""

    def hearing(self, send: Callable[..., Any]) -> Callable[..., Any]:
        """`PromptServer.send_sync`, overheard."""

        def send_sync(event: Any, data: Any, *rest: Any, **named: Any) -> Any:
            try:
                self.hear(event, data)
            except Exception:  # a sign of life that is lost must not cost the prompt that gave it
                log.exception("an event of ComfyUI was not understood: %s", event)
            return send(event, data, *rest, **named)

        return send_sync

    def hear(self, event: Any, data: Any) -> None:
        """One event: a name with its data, or a number with the bytes of a preview."""
        graph = self.look()
        if event == "status":
            self._note_end()
        elif isinstance(event, int):
            state.beat()
        elif event in _BEATS:
            if event in _WORKERS_OWN:
                self._worker = threading.current_thread()
            state.beat()
            _note_node(event, data, graph)

    def look(self) -> Mapping[str, Any]:
        """Ask the queue what runs, and tell `state`; answers the running graph, empty while idle."""
        item = next(iter(list(self._queue.currently_running.values())), None)
        state.running(None if item is None else str(item[1]))
        return {} if item is None else item[2]

    def worker_alive(self) -> bool:
        """False once the thread that executes prompts is dead; True before it was ever seen."""
        if self._worker is None:
            named = (thread for thread in threading.enumerate() if WORKER_NAME in thread.name)
            self._worker = next(named, None)
        return self._worker is None or self._worker.is_alive()

    def _note_end(self) -> None:
        """Look for a dead device in the newest history entry: execution_error itself is only sent to somebody."""
        with self._queue.mutex:
            prompt_id = next(reversed(self._queue.history), "")
            entry = self._queue.history.get(prompt_id, {})
        if prompt_id == self._last_ended:
            return
        self._last_ended = prompt_id
        for name, said in (entry.get("status") or {}).get("messages") or []:
            if name == "execution_error":
                state.note_error(f"{said.get('exception_type', '')}: {said.get('exception_message', '')}")


def _note_node(event: str, data: Any, graph: Mapping[str, Any]) -> None:
    if event == "executing":
        _enter(data.get("node"), graph)
    elif event == "progress_state":
        running = [node for node, shown in data.get("nodes", {}).items() if shown.get("state") == "running"]
        _enter(running[-1] if running else None, graph)
    elif event == "progress":
        state.stepped(float(data["value"]))


def _enter(node_id: str | None, graph: Mapping[str, Any]) -> None:
    if node_id is not None:
        state.at_node(str(node_id), graph.get(str(node_id), {}).get("class_type"))


def _snapshot(ear: Ear, host: ComfyHost) -> dict[str, Any]:
    ear.look()
    obstacles = {name: trainer.obstacle() for name, trainer in TRAINERS.items()}
    return state.snapshot(ear.worker_alive(), obstacles, _loras(host), _machine())


def _loras(host: ComfyHost) -> list[str]:
    folder: Path = host.loras_cache_dir()
    return digests_in(folder) if folder.is_dir() else []


def _machine() -> state.Machine:
    """The device that ComfyUI computes on, and its memory as ComfyUI counts it."""
    management = importlib.import_module("comfy.model_management")
    device = management.get_torch_device()
    if device.type == "cpu":
        return state.Machine()
    try:
        total, free = management.get_total_memory(device), management.get_free_memory(device)
        name = importlib.import_module("torch").cuda.get_device_name(device) if device.type == "cuda" else device.type
    except RuntimeError as error:  # a dead device answers every call so
        state.note_error(str(error))
        return state.Machine(device.type)
    return state.Machine(str(name), int(total), int(free))
