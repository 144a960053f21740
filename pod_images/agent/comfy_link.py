"""ComfyUI's routes on loopback, as far as its agent asks them: queue, state, facts, and a graph of the agent's own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from .watch import Snapshot, WorkerState, worker_state

CALL_SECONDS = 10.0
FACTS_SECONDS = 120.0
"""/object_info walks every model folder, which takes its time on a big disk."""


class NoAnswerError(RuntimeError):
    """ComfyUI did not answer, or not with what was asked for; `status` where it answered at all."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class ComfyLink:
    """One running ComfyUI. Every call ends in time and raises NoAnswerError."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def state(self) -> Mapping[str, Any]:
        """GET /troupe/state; a 404 means that the node pack is not there."""
        answer = await self._call("GET", "/troupe/state")
        if not isinstance(answer, dict):
            raise NoAnswerError("GET /troupe/state: not a JSON object", 200)
        return answer

    async def system_stats(self) -> Mapping[str, Any]:
        return await self._call("GET", "/system_stats")

    async def object_info(self) -> Mapping[str, Any]:
        return await self._call("GET", "/object_info", seconds=FACTS_SECONDS)

    async def models(self) -> dict[str, list[str]]:
        """The model files by folder, folders without any left out."""
        folders = await self._call("GET", "/models", seconds=FACTS_SECONDS)
        found: dict[str, list[str]] = {}
        for folder in folders:
            try:
                files = await self._call("GET", f"/models/{folder}", seconds=FACTS_SECONDS)
            except NoAnswerError as error:
                if error.status is None:
                    raise
                continue  # a folder that ComfyUI lists and does not serve
            if files:
                found[str(folder)] = [str(file) for file in files]
        return found

    async def queue(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(running, pending) prompt ids, the pending in the order they will run."""
        answer = await self._call("GET", "/queue")
        try:
            pending = sorted((item[0], str(item[1])) for item in answer["queue_pending"])
            return tuple(str(item[1]) for item in answer["queue_running"]), tuple(item[1] for item in pending)
        except (LookupError, TypeError) as error:
            raise NoAnswerError(f"ComfyUI's queue was not understood: {error}") from error

    async def snapshot(self) -> tuple[Snapshot, Mapping[str, Any]]:
        """One look at the worker and the queue, and the whole of what the node pack said ({} where it is silent)."""
        at = time.monotonic()
        try:
            state = await self.state()
            running, pending = await self.queue()
        except NoAnswerError as error:
            # A 5xx is an answer too: the server lives, the pack's route does not.
            worker = WorkerState() if error.status is not None else None
            return Snapshot(at, worker), {}
        return Snapshot(at, worker_state(state), running, pending), state

    async def submit(self, graph: Mapping[str, Any], prompt_id: str) -> None:
        """Queues a graph. NoAnswerError carries ComfyUI's words where it refuses."""
        await self._call("POST", "/prompt", {"prompt": graph, "prompt_id": prompt_id, "client_id": prompt_id})

    async def history(self, prompt_id: str) -> Mapping[str, Any] | None:
        """The entry of a finished prompt, None before."""
        entry = (await self._call("GET", f"/history/{prompt_id}")).get(prompt_id)
        return entry if isinstance(entry, dict) else None

    async def forget(self, prompt_id: str) -> None:
        await self._call("POST", "/history", {"delete": [prompt_id]})

    async def delete_pending(self, prompt_ids: Sequence[str]) -> None:
        await self._call("POST", "/queue", {"delete": list(prompt_ids)})

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, seconds: float = CALL_SECONDS
    ) -> Any:
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.request(method, self.url + path, json=body, timeout=timeout) as response:
                text = await response.text()
                if response.status != 200:
                    raise NoAnswerError(f"{method} {path}: {response.status} {text[:2000]}", response.status)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NoAnswerError(f"{method} {path}: {error or type(error).__name__}") from error
        try:
            return json.loads(text) if text else {}
        except ValueError as error:
            raise NoAnswerError(f"{method} {path}: not JSON: {text[:200]}", 200) from error
