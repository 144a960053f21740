"""Who may talk to this pod: a bearer token on every route and on /ws, and no cross-site browser requests."""

from __future__ import annotations

import hmac
import json
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def problem(status: int, code: str, detail: str, **headers: str) -> web.Response:
    """An application/problem+json answer; used only for what ComfyUI itself does not know."""
    body = {"type": "about:blank", "status": status, "title": detail, "detail": detail, "code": code}
    return web.Response(
        status=status, body=json.dumps(body).encode(), content_type="application/problem+json", headers=headers
    )


def bearer_check(token: str) -> Middleware:
    """The middleware that lets only holders of the pod token in; compares in constant time."""
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, expected):
            challenge = {"WWW-Authenticate": "Bearer"}
            return problem(401, "bad_pod_token", "this pod wants its bearer token", **challenge)
        if _cross_site(request):
            return web.Response(status=403)
        return await handler(request)

    return check


def _cross_site(request: web.Request) -> bool:
    origin = request.headers.get("Origin")
    host = urlsplit(f"//{request.host}").hostname
    return origin is not None and host in LOOPBACK_HOSTS and urlsplit(origin).hostname != host
