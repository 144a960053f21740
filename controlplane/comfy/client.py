"""The HTTP routes of ComfyUI and of what we put beside it; foreign errors become PodRefused or PodUnreachable here."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from controlplane import failpoints
from controlplane.comfy.messages import (
    Finished,
    Incident,
    Queue,
    Uploads,
    Worker,
    decoded,
    encoded,
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
CONNECT_SECONDS = 10.0
KEPT_ALIVE_SECONDS = 45.0
"""How long an unused connection stays open; shorter than aiohttp's servers, ComfyUI among them, keep theirs."""
UPLOAD_SECONDS = 300.0
ASIDE_SECONDS = 10.0
"""For questions whose answer is welcome, not needed."""

RESTARTING = 503
"""What an agent answers for a ComfyUI that is away; ComfyUI itself never does."""
NOT_SENT_ON = frozenset({"comfyui_down", "draining"})
"""The agent's codes for a prompt that it kept from ComfyUI; with any other it is in doubt."""

# Another pod may have the model, the class or the file; these words of node_errors say that this one has not.
POD_SPECIFIC_ERRORS = frozenset({"value_not_in_list", "custom_validation_failed"})


def open_session() -> aiohttp.ClientSession:
    """The connections to all pods: kept alive, and as many as there are pods, whose websockets hold one each.

    Calls have their own time limits; a websocket has none.
    """
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE_SECONDS)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())


class ComfyClient:
    """One pod's routes. Every call carries the pod's bearer token and ends in ``call_seconds`` at most."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, token: str, call_seconds: float = CALL_SECONDS
    ) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._json_headers = {**self._headers, "Content-Type": "application/json"}
        self._timeout = aiohttp.ClientTimeout(total=call_seconds, sock_connect=CONNECT_SECONDS)

    async def submit(self, graph: Mapping[str, Any], prompt_id: str, client_id: str, previews: bool = False) -> None:
        """Queue a graph under our ids.

        Raises PodRefused where it is certain that nothing runs, PodUnreachable where it may have been queued: then
        ask ``queue`` and ``history``, never submit blindly again (a duplicate id runs twice).
        """
        status, answer = await self._call("POST", "/prompt", body=prompt_body(graph, prompt_id, client_id, previews))
        if status == RESTARTING and _code(answer) in NOT_SENT_ON:
            raise PodUnreachable(f"The pod takes no prompt now: {_words(answer)}", never_sent=True)
        if status >= 500:
            # A 500 may still have queued it.
            raise PodUnreachable(f"The pod answered {status} to a prompt: {_words(answer)}")
        if status != 200:
            raise _refusal(status, answer)
        if _json(answer).get("node_errors"):
            # Only a part of the graph would run; that part is of no use to anybody.
            await self.take_back(prompt_id)
            raise _refusal(200, answer)

    async def history(self, prompt_id: str) -> Finished | None:
        """How a prompt ended, None where the pod holds no entry (not finished, unknown, deleted or lost)."""
        return parse_history(prompt_id, await self._get(f"/history/{quote(prompt_id, safe='')}", "/history/{id}"))

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

    async def withdraw(self, prompt_id: str) -> bool:
        """Delete the prompt if it waits and leave it alone if it has begun; True where it never began nor will.

        ComfyUI moves a prompt from the waiting ones to the running one and from there into the history each in one
        step: what was deleted and is in neither never ran.
        """
        await self.delete_pending([prompt_id])
        return not (await self.queue()).holds(prompt_id) and await self.history(prompt_id) is None

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
        status, answer = await self._call("POST", "/upload/image", seconds=UPLOAD_SECONDS, form=form)
        if status >= 500:
            raise _unexpected(status, "/upload/image", answer)
        if status != 200:
            raise _refusal(status, answer)
        stored = _json(answer)
        placed = "/".join(part for part in (stored.get("subfolder"), stored.get("name")) if part)
        if placed != name:
            raise PodRefused(f"The pod stored the input file {name} as {placed}.")
        return placed

    async def system_stats(self) -> Mapping[str, Any]:
        """Versions and memory. A 200 says that HTTP answers, not that the worker lives."""
        return await self._get("/system_stats")

    async def object_info(self, node_class: str) -> Mapping[str, Any]:
        """What a node class says of itself, ``{class: {input, output, ...}}``; empty where there is no such class."""
        return await self._get(f"/object_info/{quote(node_class, safe='')}", "/object_info/{class}")

    async def incident(self, prompt_id: str) -> Incident | None:
        """What befell ComfyUI under this prompt; None where nothing did, or where no agent is there to tell."""
        body = await self._find(f"/troupe/incidents/{quote(prompt_id, safe='')}", "/troupe/incidents/{id}")
        return None if body is None else parse_incident(body)

    async def log_tail(self, lines: int) -> tuple[str, ...]:
        """ComfyUI's newest log lines, newest last; nothing where no agent keeps them."""
        return parse_log(await self._find(f"/troupe/log?lines={lines}", "/troupe/log") or {})

    async def worker(self) -> Worker | None:
        """What the thread that runs prompts is doing; None where our node pack is not installed."""
        body = await self._find("/troupe/state")
        return None if body is None else parse_worker(body)

    async def uploads(self, prompt_id: str) -> Uploads | None:
        """What has become of the files that a prompt promised; None where our node pack is too old or not installed."""
        body = await self._find(f"/troupe/uploads/{prompt_id}", "/troupe/uploads/{id}")
        return None if body is None else parse_uploads(body)

    async def free(self, *, unload_models: bool = True, free_memory: bool = True) -> None:
        """Ask the worker to drop models and its node cache before the next prompt."""
        await self._post("/free", {"unload_models": unload_models, "free_memory": free_memory})

    async def _get(self, path: str, route: str = "") -> Mapping[str, Any]:
        status, answer = await self._call("GET", path, route)
        if status != 200:
            raise _unexpected(status, path, answer)
        return _json(answer)

    async def _find(self, path: str, route: str = "") -> Mapping[str, Any] | None:
        """The JSON at a path that need not exist, None where it does not."""
        status, answer = await self._call("GET", path, route, seconds=ASIDE_SECONDS)
        if status == 404:
            return None
        if status != 200:
            raise _unexpected(status, path, answer)
        return _json(answer)

    async def _post(self, path: str, body: Mapping[str, Any]) -> None:
        status, answer = await self._call("POST", path, body=body)
        if status != 200:
            raise _unexpected(status, path, answer)

    async def _call(
        self,
        method: str,
        path: str,
        route: str = "",
        *,
        body: Mapping[str, Any] | None = None,
        form: aiohttp.FormData | None = None,
        seconds: float | None = None,
    ) -> tuple[int, bytes]:
        """Status and body of the answer. ``route`` is the path's pattern, where the path names one thing of many."""
        data = form if body is None else encoded(body)
        point = f"{method} {route or path}"
        try:
            if failpoints.twice(f"{point} before send") and form is None:
                await self._send(method, path, data, seconds)
            failpoints.reach(f"{point} before send")
            answer = await self._send(method, path, data, seconds)
            failpoints.reach(f"{point} after answer")
        except aiohttp.ClientConnectorError as error:
            refused = getattr(error.os_error, "errno", None) == errno.ECONNREFUSED
            raise PodUnreachable(f"No connection to {self._url}: {error}", never_sent=True, refused=refused) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise PodUnreachable(f"{method} {path} at {self._url} failed: {reason}") from error
        return answer

    async def _send(
        self, method: str, path: str, data: bytes | aiohttp.FormData | None, seconds: float | None
    ) -> tuple[int, bytes]:
        async with self._session.request(
            method,
            URL(self._url + path, encoded=True),
            data=data,
            headers=self._json_headers if isinstance(data, bytes) else self._headers,
            timeout=self._timeout if seconds is None else aiohttp.ClientTimeout(total=seconds),
            allow_redirects=False,
        ) as response:
            return response.status, await response.read()


def _json(answer: bytes) -> Mapping[str, Any]:
    try:
        body = decoded(answer)
    except ValueError as error:
        raise PodUnreachable(f"The pod's answer is not JSON: {_words(answer)}") from error
    return body if isinstance(body, dict) else {}


def _words(answer: bytes) -> str:
    """The beginning of an answer, for people."""
    return answer[:200].decode("utf-8", "replace")


def _code(answer: bytes) -> str:
    """The ``code`` of a problem document, empty where the answer is none."""
    return str(_members(answer).get("code") or "")


def _members(answer: bytes) -> Mapping[str, Any]:
    """A JSON object's members; none where the answer is no JSON object."""
    try:
        body = decoded(answer)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _unexpected(status: int, path: str, answer: bytes) -> PodRefused | PodUnreachable:
    if status in (401, 403):
        return PodRefused(f"The pod refused our token at {path} ({status}).", pod_specific=True)
    restarting = status == RESTARTING
    return PodUnreachable(f"The pod answered {status} at {path}: {_words(answer)}", restarting=restarting)


def _refusal(status: int, answer: bytes) -> PodRefused:
    """Name the reason that a person can act on: the first node error, else the error's message."""
    if status in (401, 403):
        return PodRefused(f"The pod refused our token ({status}).", pod_specific=True)
    body = _members(answer)
    error = body.get("error") or {}
    if not body or status not in (200, 400) or not isinstance(error, dict):
        # Not ComfyUI's verdict on a graph, but somebody on the way to it: the proxy of a pod that is not up, say.
        return PodRefused(f"The pod refused the request ({status}): {_words(answer)}", pod_specific=True)
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
