"""The reverse proxy in front of ComfyUI: bearer token, bodies streamed both ways, and what the agent answers itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler

from ..bearer import bearer_check, problem
from .gate import Gate
from .headers import for_caller, for_comfyui
from .incidents import Incidents, Ledger
from .log_tail import LogTail
from .sockets import Sockets, is_websocket, unavailable, upstream_url

log = logging.getLogger(__name__)

MAX_PROMPT_BYTES = 100 << 20
"""ComfyUI's own limit."""
CHUNK_BYTES = 1 << 16
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 120.0
"""Longest pause of ComfyUI inside an answer."""
MOST_LOG_LINES = 2000


@dataclass(frozen=True)
class Front:
    """What the proxy works with; `describe` answers GET /troupe/agent."""

    token: str
    gate: Gate
    ledger: Ledger
    incidents: Incidents
    tail: LogTail
    describe: Callable[[], dict[str, Any]]


FRONT = web.AppKey("front", Front)
SESSION = web.AppKey("session", aiohttp.ClientSession)
SOCKETS = web.AppKey("sockets", Sockets)


def build_app(front: Front) -> web.Application:
    """The application that stands in front of ComfyUI. Nothing is answered without the token."""
    app = web.Application(middlewares=[bearer_check(front.token)], client_max_size=MAX_PROMPT_BYTES)
    app[FRONT] = front
    app.cleanup_ctx.append(_outgoing)
    app.on_shutdown.append(_close_sockets)
    own: tuple[tuple[str, str, Handler], ...] = (
        ("GET", "/troupe/agent", agent),
        ("GET", "/troupe/log", log_tail),
        ("GET", "/troupe/incidents/{prompt_id}", incident),
        ("POST", "/prompt", submit),
        ("POST", "/queue", take_back),
        ("POST", "/history", collect),
    )
    for prefix in ("", "/api"):
        for method, path, handler in own:
            app.router.add_route(method, prefix + path, handler)
    app.router.add_route("*", "/{path:.*}", forward)
    return app


async def agent(request: web.Request) -> web.Response:
    """How the agent and its ComfyUI are."""
    return web.json_response(request.app[FRONT].describe())


async def log_tail(request: web.Request) -> web.Response:
    """The newest lines of ComfyUI's log, newest last; `?lines=` says how many (100)."""
    asked = request.query.get("lines", "100")
    count = min(int(asked), MOST_LOG_LINES) if asked.isdecimal() else 100
    return web.json_response({"lines": request.app[FRONT].tail.last(count)})


async def incident(request: web.Request) -> web.Response:
    """Why a prompt is lost; 404 where nothing happened under it."""
    front = request.app[FRONT]
    prompt_id = request.match_info["prompt_id"]
    found = front.incidents.under(prompt_id)
    if found is None:
        return problem(404, "no_incident", "ComfyUI was not restarted under this prompt")
    # Whoever knows that it is lost looks after it.
    front.ledger.relieved([prompt_id])
    return web.json_response({"prompt_id": prompt_id, **found.shown(), "log_tail": list(found.log_tail)})


async def submit(request: web.Request) -> web.StreamResponse:
    """POST /prompt: refused while draining; noted, so that a restart knows whom it robs."""
    front = request.app[FRONT]
    body = await request.read()
    if front.gate.draining:
        return unavailable("draining", "this pod finishes what it has and takes no more")
    if front.gate.url is None:
        return unavailable("comfyui_down", front.gate.reason)
    prompt_id = _member(body, "prompt_id")
    with front.gate.submitting():
        # Before it is sent: after that, any failure leaves it in doubt whether it runs.
        new = prompt_id is not None and front.ledger.took(str(prompt_id))
        status, answer, response = await _buffered(request, body)
        if status == 200 and prompt_id is None:
            front.ledger.took(str(_member(answer, "prompt_id")))
        elif 400 <= status < 500 and new:
            front.ledger.relieved([str(prompt_id)])
    return response


async def take_back(request: web.Request) -> web.StreamResponse:
    """POST /queue: a waiting prompt that is deleted is its owner's again."""
    return await _relieving(request, request.app[FRONT].ledger)


async def collect(request: web.Request) -> web.StreamResponse:
    """POST /history: an entry that is deleted has been collected."""
    return await _relieving(request, request.app[FRONT].ledger)


async def forward(request: web.Request) -> web.StreamResponse:
    """Everything else goes to ComfyUI as it is, and its answer back."""
    if is_websocket(request):
        return await request.app[SOCKETS].serve(request)
    body = request.content.iter_chunked(CHUNK_BYTES) if request.can_read_body else None
    return await _passed_on(request, body, lambda upstream: _streamed(request, upstream))


async def _relieving(request: web.Request, ledger: Ledger) -> web.StreamResponse:
    body = await request.read()
    status, _, response = await _buffered(request, body)
    if status == 200:
        deleted = _member(body, "delete")
        ledger.relieved(str(one) for one in deleted) if isinstance(deleted, list) else None
        if _member(body, "clear") and request.path.endswith("/history"):
            ledger.relieved_of_all()
    return response


async def _buffered(request: web.Request, body: bytes) -> tuple[int, bytes, web.StreamResponse]:
    """Passes a small request on and reads the small answer; the status is 0 where ComfyUI gave none."""
    told = (0, b"")

    async def read(upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        nonlocal told
        told = (upstream.status, await upstream.read())
        headers = for_caller(upstream.headers)
        headers.popall("Content-Length", None)
        return web.Response(status=upstream.status, reason=upstream.reason, headers=headers, body=told[1])

    response = await _passed_on(request, body, read)
    return *told, response


async def _passed_on(
    request: web.Request,
    body: Any,
    answer: Callable[[aiohttp.ClientResponse], Awaitable[web.StreamResponse]],
) -> web.StreamResponse:
    gate = request.app[FRONT].gate
    if gate.url is None:
        return unavailable("comfyui_down", gate.reason)
    url = upstream_url(gate.url, request)
    headers = for_comfyui(request.headers)
    try:
        async with request.app[SESSION].request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as upstream:
            return await answer(upstream)
    except (aiohttp.ClientError, TimeoutError) as error:
        words = f"ComfyUI did not answer: {error or type(error).__name__}"
        log.warning("%s %s: %s", request.method, request.path, words)
        return unavailable("comfyui_silent", words)


async def _streamed(request: web.Request, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=for_caller(upstream.headers))
    try:
        await response.prepare(request)
        async for chunk in upstream.content.iter_chunked(CHUNK_BYTES):
            await response.write(chunk)
        await response.write_eof()
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        # The head is out: a cut connection is the only way left to say that the body is not whole.
        log.warning("%s %s was cut off: %s", request.method, request.path, error or type(error).__name__)
        if request.transport is not None:
            request.transport.abort()
    return response


def _member(body: bytes, name: str) -> Any:
    """A member of a JSON object; None where there is none. A prompt id of null is "None" to ComfyUI too."""
    try:
        document = json.loads(body)
    except ValueError:
        return None
    if not isinstance(document, dict) or name not in document:
        return None
    return "None" if name == "prompt_id" and document[name] is None else document[name]


async def _outgoing(app: web.Application) -> Any:
    # No connection is kept: one that ComfyUI closes in that instant would fail a request that is not to be repeated.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    skipped: Iterable[str] = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=skipped,
    ) as session:
        app[SESSION] = session
        app[SOCKETS] = Sockets(session, app[FRONT].gate)
        yield


async def _close_sockets(app: web.Application) -> None:
    await app[SOCKETS].close()
