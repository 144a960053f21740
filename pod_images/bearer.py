"""Who may talk to a pod: the holders of its bearer token, compared in constant time; and how a pod refuses."""

from __future__ import annotations

import hmac
import json

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware


def problem(status: int, code: str, detail: str, **headers: str) -> web.Response:
    """An application/problem+json answer; used only for what ComfyUI itself does not know."""
    body = {"type": "about:blank", "status": status, "title": detail, "detail": detail, "code": code}
    return web.Response(
        status=status, body=json.dumps(body).encode(), content_type="application/problem+json", headers=headers
    )


def bearer_check(token: str) -> Middleware:
    """The middleware that lets only holders of the pod token in, on every route and on those that do not exist."""
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        # aiohttp reads header bytes that are no UTF-8 as surrogates; they must be refused, not break the comparison.
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, expected):
            challenge = {"WWW-Authenticate": "Bearer"}
            return problem(401, "bad_pod_token", "this pod wants its bearer token", **challenge)
        return await handler(request)

    return check
