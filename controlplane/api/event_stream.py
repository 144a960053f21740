"""Server-sent events: a job's own, and everything that happens in a project."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from weakref import WeakSet

from aiohttp import web

from controlplane.api.auth import authenticate
from controlplane.api.context import services
from controlplane.api.reading import query
from controlplane.api.schemas.jobs import EventsQuery, JobEventsQuery
from controlplane.api.views import event_body
from controlplane.domain.events import Event
from controlplane.errors import BadRequest

KEEP_ALIVE_SECONDS = 15.0
RECONNECT_MILLISECONDS = 2000

STREAMS = web.AppKey("streams", WeakSet[asyncio.Task[None]])
"""Streams that are open, so that a shutdown need not wait for their readers."""


async def job_events(request: web.Request) -> web.StreamResponse:
    """The events of one job from the first or from Last-Event-ID on; ends after the final one."""
    project, job_id = authenticate(request).project_id, request.match_info["job_id"]
    after = _after(request, query(request, JobEventsQuery).after)
    await services(request).jobs.get(project, job_id)
    return await _stream(request, services(request).events.stream(project, job_id=job_id, after=after))


async def project_events(request: web.Request) -> web.StreamResponse:
    """Everything that happens from now or from Last-Event-ID on; never ends by itself."""
    wanted = query(request, EventsQuery)
    events = services(request).events.stream(
        authenticate(request).project_id,
        character_id=wanted.character_id,
        after=_after(request, wanted.after),
    )
    return await _stream(request, events)


async def end_streams(app: web.Application) -> None:
    """Cancel every open stream; readers reconnect with Last-Event-ID."""
    streams: WeakSet[asyncio.Task[None]] = app[STREAMS]
    for task in list(streams):
        task.cancel()


def _after(request: web.Request, asked: int | None) -> int | None:
    """The id to go on behind: what a reconnecting browser says wins over what its address said at first."""
    text = request.headers.get("Last-Event-ID", "").strip()
    if not text:
        return asked
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise BadRequest("Last-Event-ID is the number of an event.")
    return int(text)


async def _stream(request: web.Request, events: AsyncIterator[Event]) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    await response.prepare(request)
    writing = asyncio.ensure_future(_write_events(response, events))
    request.app[STREAMS].add(writing)
    try:
        # A cancelled stream (shutdown) and a reader who left are both ordinary ends.
        with contextlib.suppress(ConnectionError):
            await asyncio.wait([writing])
            if not writing.cancelled():
                writing.result()
    finally:
        writing.cancel()
    return response


async def _write_events(response: web.StreamResponse, events: AsyncIterator[Event]) -> None:
    await response.write(f"retry: {RECONNECT_MILLISECONDS}\n\n".encode())
    pending = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait([pending], timeout=KEEP_ALIVE_SECONDS)
            if not done:
                await response.write(b": still here\n\n")
                continue
            event = pending.result()
            if event is None:
                return
            await response.write(encoded(event))
            pending = asyncio.ensure_future(anext(events, None))
    finally:
        pending.cancel()


def encoded(event: Event) -> bytes:
    """One event in the wire format of server-sent events."""
    data = json.dumps(event_body(event), ensure_ascii=False, allow_nan=False)
    return f"id: {event.id}\nevent: {event.type}\ndata: {data}\n\n".encode()
