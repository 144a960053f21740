"""The HTTP routes of ComfyUI and of what we put beside it; foreign errors become PodRefused or PodUnreachable here."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import aiohttp

from controlplane.comfy.messages import (
    Finished,
    Incident,
    Queue,
    Uploads,
    Worker,
    parse_history,
    parse_incident,
    parse_log,
    parse_queue,
    parse_uploads,
    parse_worker,
)
from controlplane.comfy.prompt import prompt_body
from controlplane.errors import PodRefused, PodUnreachable

CALL_SECONDS = 30.0
UPLOAD_SECONDS = 300.0
ASIDE_SECONDS = 10.0
"""For questions whose answer is welcome, not needed."""

RESTARTING = 503
"""What an agent answers for a ComfyUI that is away; ComfyUI itself never does."""
NOT_SENT_ON = frozenset({"comfyui_down", "draining"})
"""The agent's codes for a prompt that it kept from ComfyUI; with any other it is in doubt."""

# Another pod may have the model, the class or the file; these words of node_errors say that this one has not.
POD_SPECIFIC_ERRORS = frozenset({"value_not_in_list", "custom_validation_failed"})


class ComfyClient:
    """One pod's routes. Every call carries the pod's bearer token and ends in ``call_seconds`` at most."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, token: str, call_seconds: float = CALL_SECONDS
    ) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._seconds = call_seconds

    async def submit(self, graph: Mapping[str, Any], prompt_id: str, client_id: str) -> None:
        """Queue a graph under our ids.

        Raises PodRefused where it is certain that nothing runs, PodUnreachable where it may have been queued: then
        ask ``queue`` and ``history``, never submit blindly again (a duplicate id runs twice).
        """
        body = prompt_body(graph, prompt_id, client_id)
        async with self._call("POST", "/prompt", json=body) as response:
            text = await response.text()
            if response.status == RESTARTING and _code(text) in NOT_SENT_ON:
                raise PodUnreachable(f"The pod takes no prompt now: {text[:200]}", never_sent=True)
            if response.status >= 500:
                # A 500 may still have queued it.
                raise PodUnreachable(f"The pod answered {response.status} to a prompt: {text[:200]}")
            if response.status != 200:
                raise _refusal(response.status, text)
        node_errors = _json(text).get("node_errors")
        if node_errors:
            # Only a part of the graph would run; that part is of no use to anybody.
            await self.take_back(prompt_id)
            raise _refusal(200, text)

    async def history(self, prompt_id: str) -> Finished | None:
        """How a prompt ended, None where the pod holds no entry (not finished, unknown, deleted or lost)."""
        return parse_history(prompt_id, await self._get(f"/history/{prompt_id}"))

    async def queue(self) -> Queue:
        """What runs and waits."""
        return parse_queue(await self._get("/queue"))

    async def delete_pending(self, prompt_ids: Sequence[str]) -> None:
        """Take waiting prompts out of the queue; running ones are not touched, unknown ones ignored."""
        await self._post("/queue", {"delete": list(prompt_ids)})

    async def interrupt(self, prompt_id: str) -> None:
        """Ask the worker to stop this prompt; it does so at its next check, and only if this one runs."""
        await self._post("/interrupt", {"prompt_id": prompt_id})

    async def take_back(self, prompt_id: str) -> bool:
        """Delete the prompt if it waits, interrupt it if it runs; True where it now does neither."""
        await self.delete_pending([prompt_id])
        queue = await self.queue()
        if prompt_id in queue.running:
            await self.interrupt(prompt_id)
        return not queue.holds(prompt_id)

    async def forget(self, prompt_ids: Sequence[str]) -> None:
        """Delete history entries."""
        await self._post("/history", {"delete": list(prompt_ids)})

    async def upload(self, name: str, data: bytes, media_type: str) -> str:
        """Place an input file (``sub/name.png`` or ``name.png``) and return the name the graph must use.

        An existing file of that name is overwritten. Raises PodRefused where the pod keeps it under another name.
        """
        folder, _, base = name.rpartition("/")
        form = aiohttp.FormData()
        form.add_field("image", data, filename=base, content_type=media_type)
        form.add_field("type", "input")
        form.add_field("subfolder", folder)
        form.add_field("overwrite", "true")
        async with self._call("POST", "/upload/image", seconds=UPLOAD_SECONDS, data=form) as response:
            text = await response.text()
            if response.status >= 500:
                raise _unexpected(response.status, "/upload/image", text)
            if response.status != 200:
                raise _refusal(response.status, text)
        stored = _json(text)
        placed = "/".join(part for part in (stored.get("subfolder"), stored.get("name")) if part)
        if placed != name:
            raise PodRefused(f"The pod stored the input file {name} as {placed}.")
        return placed

    async def system_stats(self) -> Mapping[str, Any]:
        """Versions and memory. A 200 says that HTTP answers, not that the worker lives."""
        return await self._get("/system_stats")

    async def object_info(self, node_class: str) -> Mapping[str, Any]:
        """What a node class says of itself, ``{class: {input, output, ...}}``; empty where there is no such class."""
        return await self._get(f"/object_info/{quote(node_class, safe='')}")

    async def incident(self, prompt_id: str) -> Incident | None:
        """What befell ComfyUI under this prompt; None where nothing did, or where no agent is there to tell."""
        body = await self._find(f"/troupe/incidents/{prompt_id}")
        return None if body is None else parse_incident(body)

    async def log_tail(self, lines: int) -> tuple[str, ...]:
        """ComfyUI's newest log lines, newest last; nothing where no agent keeps them."""
        return parse_log(await self._find(f"/troupe/log?lines={lines}") or {})

    async def worker(self) -> Worker | None:
        """What the thread that runs prompts is doing; None where our node pack is not installed."""
        body = await self._find("/troupe/state")
        return None if body is None else parse_worker(body)

    async def uploads(self, prompt_id: str) -> Uploads | None:
        """What has become of the files that a prompt promised; None where our node pack is too old or not installed."""
        body = await self._find(f"/troupe/uploads/{prompt_id}")
        return None if body is None else parse_uploads(body)

    async def free(self, *, unload_models: bool = True, free_memory: bool = True) -> None:
        """Ask the worker to drop models and its node cache before the next prompt."""
        await self._post("/free", {"unload_models": unload_models, "free_memory": free_memory})

    async def _get(self, path: str) -> Mapping[str, Any]:
        async with self._call("GET", path) as response:
            text = await response.text()
            if response.status != 200:
                raise _unexpected(response.status, path, text)
        return _json(text)

    async def _find(self, path: str) -> Mapping[str, Any] | None:
        """The JSON at a path that need not exist, None where it does not."""
        async with self._call("GET", path, seconds=ASIDE_SECONDS) as response:
            text = await response.text()
            if response.status == 404:
                return None
            if response.status != 200:
                raise _unexpected(response.status, path, text)
        return _json(text)

    async def _post(self, path: str, body: Mapping[str, Any]) -> None:
        async with self._call("POST", path, json=body) as response:
            text = await response.text()
            if response.status != 200:
                raise _unexpected(response.status, path, text)

    @contextlib.asynccontextmanager
    async def _call(
        self, method: str, path: str, *, seconds: float | None = None, **arguments: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = aiohttp.ClientTimeout(total=seconds or self._seconds)
        try:
            async with self._session.request(
                method, self._url + path, headers=self._headers, timeout=timeout, allow_redirects=False, **arguments
            ) as response:
                yield response
        except aiohttp.ClientConnectorError as error:
            refused = getattr(error.os_error, "errno", None) == errno.ECONNREFUSED
            raise PodUnreachable(f"No connection to {self._url}: {error}", never_sent=True, refused=refused) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise PodUnreachable(f"{method} {path} at {self._url} failed: {reason}") from error


def _json(text: str) -> Mapping[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise PodUnreachable(f"The pod's answer is not JSON: {text[:200]}") from error
    return body if isinstance(body, dict) else {}


def _code(text: str) -> str:
    """The ``code`` of a problem document, empty where the text is none."""
    return str(_members(text).get("code") or "")


def _members(text: str) -> Mapping[str, Any]:
    """A JSON object's members; none where the text is no JSON object."""
    try:
        body = json.loads(text)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _unexpected(status: int, path: str, text: str) -> PodRefused | PodUnreachable:
    if status in (401, 403):
        return PodRefused(f"The pod refused our token at {path} ({status}).", pod_specific=True)
    restarting = status == RESTARTING
    return PodUnreachable(f"The pod answered {status} at {path}: {text[:200]}", restarting=restarting)


def _refusal(status: int, text: str) -> PodRefused:
    """Name the reason that a person can act on: the first node error, else the error's message."""
    if status in (401, 403):
        return PodRefused(f"The pod refused our token ({status}).", pod_specific=True)
    body = _members(text)
    error = body.get("error") or {}
    if not body or status not in (200, 400) or not isinstance(error, dict):
        # Not ComfyUI's verdict on a graph, but somebody on the way to it: the proxy of a pod that is not up, say.
        return PodRefused(f"The pod refused the request ({status}): {text[:200]}", pod_specific=True)
    told, specific = [], error.get("type") == "invalid_prompt" and "does not exist" in str(error.get("message"))
    for node_id, node in (body.get("node_errors") or {}).items():
        for one in node.get("errors") or []:
            specific = specific or one.get("type") in POD_SPECIFIC_ERRORS
            told.append(f"node {node_id} ({node.get('class_type')}): {one.get('message')} ({one.get('details')})")
    message = error.get("message") or "a part of the graph is not valid"
    details = "; ".join(told[:3]) or error.get("details") or ""
    return PodRefused(
        f"The pod refused the graph: {message}{': ' + details if details else ''}",
        pod_specific=specific,
        node_errors=body.get("node_errors") or {},
    )
