"""The API's description of itself: the OpenAPI document and a page that renders it."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from aiohttp import web

from controlplane.api.replies import json_reply

DOCUMENT = web.AppKey("openapi", dict[str, Any])


async def get_openapi(request: web.Request) -> web.Response:
    """The OpenAPI 3.1 document."""
    found: dict[str, Any] = request.app[DOCUMENT]
    return json_reply(found)


async def get_docs(request: web.Request) -> web.Response:
    """A self-contained page that renders the OpenAPI document."""
    page = files("controlplane.api").joinpath("docs.html").read_bytes()
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
    headers = {"Content-Security-Policy": policy}
    return web.Response(body=page, content_type="text/html", charset="utf-8", headers=headers)
