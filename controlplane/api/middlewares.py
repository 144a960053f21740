"""Around every handler: request id, origin checks, CORS, metrics, and errors rendered as problem documents."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from contextvars import ContextVar
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from controlplane.api.metrics import RequestMetrics
from controlplane.api.replies import problem_reply
from controlplane.errors import BadRequest, Forbidden, MethodNotAllowed, NotFound, PayloadTooLarge, TroupeError
from controlplane.settings import Settings

log = logging.getLogger("troupe.api")

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that the running task answers."""

HOSTS = 64
"""How many Host headers are remembered; a handful of them is all that a server ever sees."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
EXPOSED = "ETag, Location, Retry-After, X-Request-Id, Preference-Applied, Idempotency-Replayed"
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PATCH, PUT, DELETE",
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, Idempotency-Key, Prefer, Last-Event-ID, X-Request-Id, Range"
    ),
    "Access-Control-Max-Age": "600",
}
_PROCESS, _numbers = secrets.token_hex(6), itertools.count(1)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._\-]{1,80}")


def middlewares(settings: Settings, metrics: RequestMetrics) -> list[Middleware]:
    """All of them, outermost first."""
    return [_observed(metrics), _with_cors(settings), _with_problems, _of_known_origin(settings)]


def _new_request_id() -> str:
    """An id that no other request has; nothing hangs on its being hard to guess."""
    return f"req_{_PROCESS}{next(_numbers):08x}"


def route_pattern(request: web.Request) -> str:
    """The declared path of the route that matched, for logs and metrics; never what the client typed."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unmatched"


def _observed(metrics: RequestMetrics) -> Middleware:
    @web.middleware
    async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("X-Request-Id", "")
        request_id.set(given if given and _REQUEST_ID.fullmatch(given) else _new_request_id())
        started = time.perf_counter()
        status = 499  # the client went away before there was an answer
        try:
            response = await handler(request)
            status = response.status
        finally:
            seconds = time.perf_counter() - started
            metrics.observe(request.method, route_pattern(request), status, seconds)
            log.debug("%s %s %s %.3fs", request.method, route_pattern(request), status, seconds)
        return response

    return observed


def _with_cors(settings: Settings) -> Middleware:
    @web.middleware
    async def with_cors(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if preflight and origin is not None and _is_allowed(origin, settings):
            return web.Response(status=204, headers=PREFLIGHT)
        return await handler(request)

    return with_cors


def on_prepare(settings: Settings) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """What is added to the head of every answer, streams and files included."""

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-Request-Id"] = request_id.get()
        response.headers["X-Content-Type-Options"] = "nosniff"
        if not settings.cors_origins:
            return
        response.headers["Vary"] = "Origin"
        origin = request.headers.get("Origin")
        if origin is not None and _is_allowed(origin, settings):
            response.headers["Access-Control-Allow-Origin"] = "*" if "*" in settings.cors_origins else origin
            response.headers["Access-Control-Expose-Headers"] = EXPOSED

    return prepare


@web.middleware
async def _with_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except TroupeError as error:
        if error.status >= 500:
            log.error("%s %s: %s", request_id.get(), error.code, error.detail)
        return problem_reply(error, request, request_id.get())
    except web.HTTPException as error:
        return problem_reply(_translated(error, request), request, request_id.get())
    except ConnectionResetError:
        raise
    except Exception:
        # The last net: whatever it was, the client gets a problem document and the log the trace.
        log.exception("%s %s %s failed", request_id.get(), request.method, route_pattern(request))
        problem = TroupeError("An unexpected error happened; it is in the log under this request_id.")
        return problem_reply(problem, request, request_id.get())


def _translated(error: web.HTTPException, request: web.Request) -> TroupeError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        methods = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"{request.path} answers {methods}.", headers={"Allow": methods})
    if error.status == 404:
        return NotFound(f"There is no address {request.path}; GET /openapi.json lists all.")
    if error.status == 413:
        return PayloadTooLarge(error.text or "")
    return BadRequest(error.reason) if error.status < 500 else TroupeError(error.reason)


def _of_known_origin(settings: Settings) -> Middleware:
    """While there are no user keys, a foreign web page must not be able to drive the server through a browser."""

    known = {"localhost", settings.host.lower(), urlsplit(settings.effective_public_url).hostname}
    is_known_host = lru_cache(HOSTS)(lambda host: _is_known_host(host, known))

    @web.middleware
    async def of_known_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not is_known_host(request.host):
            raise Forbidden(f"This server does not answer for the host {request.host!r}; set TROUPE_PUBLIC_URL.")
        origin = request.headers.get("Origin")
        if origin is not None and request.method not in SAFE_METHODS:
            same = urlsplit(origin).netloc.lower() == request.host.lower()
            if not same and not _is_allowed(origin, settings):
                raise Forbidden(f"Pages of {origin[:200]!r} may not do this; see TROUPE_CORS_ORIGINS.")
        return await handler(request)

    return of_known_origin


def _is_known_host(header: str, known: Collection[str | None]) -> bool:
    host = (urlsplit(f"//{header}").hostname or "").lower()
    if host in known:
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True  # a bare address cannot have been rebound by somebody's name server


def _is_allowed(origin: str, settings: Settings) -> bool:
    return "*" in settings.cors_origins or origin in settings.cors_origins
