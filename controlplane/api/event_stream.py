"""Server-sent events: a job's own, a character's, everything that happens in a project, and tickets for browsers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakSet

from aiohttp import web

from controlplane.api.auth import authenticate, authenticate_stream
from controlplane.api.context import services
from controlplane.api.reading import optional_json_body, query
from controlplane.api.replies import json_reply
from controlplane.api.schemas.events import EventsQuery, OneStreamQuery, TicketRequest
from controlplane.api.stream_tickets import EVERYTHING, TICKETS
from controlplane.api.views import moment
from controlplane.domain.events import Event
from controlplane.errors import BadRequest
from controlplane.services.event_streams import EventStream
from controlplane.services.event_tail import Wanted

KEEP_ALIVE_SECONDS = 15.0
RECONNECT_MILLISECONDS = 2000
WRITE_SECONDS = 20.0
"""A reader that takes nothing for so long is cut off."""
BUFFER_BYTES = 64 * 1024
"""What lies between us and a reader at most, in our process and in the kernel each."""
ENCODED_EVENTS = 1000

STREAMS = web.AppKey("streams", WeakSet[asyncio.Task[None]])
"""Streams that are open, so that a shutdown need not wait for their readers."""


class EncodedEvents:
    """The newest events in the wire's format, so that many readers of one event cost one encoding."""

    def __init__(self, body: Callable[[Event], Mapping[str, Any]]) -> None:
        """``body`` says how an event reads as JSON."""
        self._body = body
        self._known: OrderedDict[int, tuple[Event, bytes]] = OrderedDict()

    def all_of(self, events: Iterable[Event]) -> bytes:
        """Some events, one behind the other."""
        return b"".join(self._one(event) for event in events)

    def _one(self, event: Event) -> bytes:
        known = self._known.get(event.id)
        # An event that is made up for one reader - a gap, an end that the log no longer has - bears another one's id.
        if known is not None and known[0] == event:
            return known[1]
        made = encoded(event, self._body(event))
        self._known[event.id] = (event, made)
        if len(self._known) > ENCODED_EVENTS:
            self._known.popitem(last=False)
        return made


ENCODED = web.AppKey("encoded events", EncodedEvents)


async def job_events(request: web.Request) -> web.StreamResponse:
    """The events of one job from the first or from Last-Event-ID on; ends after the final one.

    204 where the job is over and nothing of it is left to tell: an EventSource does not come back then.
    """
    asked = query(request, OneStreamQuery)
    project, job_id = authenticate_stream(request).project_id, request.match_info["job_id"]
    return await _stream(request, Wanted(project, job_id=job_id), _after(request, asked.after))


async def character_events(request: web.Request) -> web.StreamResponse:
    """What happens to a character and its jobs, from now or from Last-Event-ID on; never ends by itself."""
    asked = query(request, OneStreamQuery)
    project, character_id = authenticate_stream(request).project_id, request.match_info["character_id"]
    after = _after(request, asked.after)
    await services(request).characters.get(project, character_id)
    return await _stream(request, Wanted(project, character_id=character_id), after)


async def project_events(request: web.Request) -> web.StreamResponse:
    """Everything that happens from now or from Last-Event-ID on; never ends by itself."""
    asked = query(request, EventsQuery)
    project = authenticate_stream(request).project_id
    wanted = Wanted(project, character_id=asked.character_id, types=asked.type_set)
    return await _stream(request, wanted, _after(request, asked.after))


async def stream_ticket(request: web.Request) -> web.Response:
    """A ticket that opens a stream within a minute, for browsers whose EventSource can send no headers."""
    asked = await optional_json_body(request, TicketRequest)
    project, scope = authenticate(request).project_id, EVERYTHING
    if asked.job_id is not None:
        await services(request).jobs.get(project, asked.job_id)
        scope = f"jobs/{asked.job_id}/events"
    elif asked.character_id is not None:
        await services(request).characters.get(project, asked.character_id)
        scope = f"characters/{asked.character_id}/events"
    ticket, until = request.app[TICKETS].issue(project, scope)
    body = {"ticket": ticket, "expires_at": moment(until), "links": {"stream": f"/{scope}?ticket={ticket}"}}
    return json_reply(body, status=201, headers={"Cache-Control": "no-store"})


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


async def _stream(request: web.Request, wanted: Wanted, after: int | None) -> web.StreamResponse:
    stream = await services(request).events.open(wanted, after)
    try:
        if stream.over and not stream.has_more:
            return web.Response(status=204)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        _bound_buffers(request)
        with contextlib.suppress(ConnectionError):  # a reader who left is an ordinary end
            await response.prepare(request)
            await _written(request, response, stream)
    finally:
        stream.close()
    return response


async def _written(request: web.Request, response: web.StreamResponse, stream: EventStream) -> None:
    """Write the stream in a task of its own, which a shutdown can cancel."""
    writing = asyncio.ensure_future(_write_events(response, stream, request.app[ENCODED]))
    request.app[STREAMS].add(writing)
    try:
        await asyncio.wait([writing])
        if not writing.cancelled():  # as a shutdown does
            writing.result()
    except TimeoutError:
        # A polite end would wait for the reader as well.
        if request.transport is not None:
            request.transport.abort()
    finally:
        writing.cancel()


async def _write_events(response: web.StreamResponse, stream: EventStream, events: EncodedEvents) -> None:
    await response.write(f"retry: {RECONNECT_MILLISECONDS}\n\n".encode())
    while not stream.over or stream.has_more:
        told = await stream.take(KEEP_ALIVE_SECONDS)
        async with asyncio.timeout(WRITE_SECONDS):
            await response.write(events.all_of(told) if told else b": still here\n\n")


def _bound_buffers(request: web.Request) -> None:
    """Let a reader that does not read be noticed soon: the kernel would keep megabytes for it."""
    if request.transport is not None:
        request.transport.set_write_buffer_limits(high=BUFFER_BYTES)
        connection = request.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)


def encoded(event: Event, body: Mapping[str, Any]) -> bytes:
    """One event in the wire format of server-sent events."""
    data = json.dumps(body, ensure_ascii=False, allow_nan=False)
    return f"id: {event.id}\nevent: {event.type}\ndata: {data}\n\n".encode()
