"""No cross-site browser requests to a pod on loopback: ComfyUI's own rule, beside the bearer token."""

from __future__ import annotations

from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


@web.middleware
async def same_site(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses a request whose Origin is another host than the loopback address it came in by."""
    if _cross_site(request):
        return web.Response(status=403)
    return await handler(request)


def _cross_site(request: web.Request) -> bool:
    origin = request.headers.get("Origin")
    host = urlsplit(f"//{request.host}").hostname
    return origin is not None and host in LOOPBACK_HOSTS and urlsplit(origin).hostname != host
