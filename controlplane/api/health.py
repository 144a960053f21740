"""Is it alive, is it ready, and how is it doing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from aiohttp import web

from controlplane.api.context import METRICS, services
from controlplane.api.metrics import exposition
from controlplane.api.replies import json_reply


def own_version() -> str:
    """The installed version of the distribution; ``0`` in a bare checkout."""
    try:
        return version("troupe-studio")
    except PackageNotFoundError:
        return "0"


async def healthz(request: web.Request) -> web.Response:
    """The process answers; nothing else is checked."""
    return json_reply({"status": "ok", "version": own_version()})


async def readyz(request: web.Request) -> web.Response:
    """Whether requests can be accepted (else 503), and whether a pod is there to do them (else ``degraded``)."""
    templates = len(services(request).catalog.templates)
    checks = {"templates": _check(templates > 0, f"{templates} workflow templates")}
    try:
        pods: Mapping[str, int] = (await services(request).overview.numbers()).pods
        checks["database"] = _check(True, "answers")
    except Exception as error:  # any driver's error means the same here: no database
        pods = {}
        checks["database"] = _check(False, type(error).__name__)
    accepting = all(check["ok"] for check in checks.values())
    told = ", ".join(f"{count} {state}" for state, count in sorted(pods.items())) or "no pod has registered"
    checks["pods"] = _check(pods.get("ready", 0) > 0, told)
    status = "unavailable" if not accepting else "ready" if checks["pods"]["ok"] else "degraded"
    return json_reply({"status": status, "checks": checks}, status=200 if accepting else 503)


async def metrics(request: web.Request) -> web.Response:
    """Prometheus text."""
    numbers = await services(request).overview.numbers()
    sender = services(request).sender
    waiting = await sender.waiting()
    text = exposition(request.app[METRICS], numbers.jobs, numbers.ended, numbers.pods, waiting, sender.counts)
    return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def _check(ok: bool, detail: str) -> dict[str, object]:
    return {"ok": ok, "detail": detail}
