"""Event streams: the log from some event on, and then what happens, without a gap and without anything twice."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sqlalchemy import Connection

from controlplane.db import events as event_rows
from controlplane.db import jobs as job_rows
from controlplane.db.database import Database
from controlplane.domain.events import JOB_FINAL, STREAM_GAP, Event
from controlplane.domain.jobs import Job, is_final
from controlplane.errors import NotFound
from controlplane.services.event_tail import Reader, Tail, TooSlow, Wanted
from controlplane.services.events import Hints

PAGE = 200
LONG_SECONDS = 3600.0


@dataclass(frozen=True)
class _Look:
    """What one read of the log shows: some events, up to which id that is all, and how the log and the job stand."""

    events: tuple[Event, ...]
    reached: int
    at_end: bool
    dropped_to: int
    job: Job | None = None


class EventStream:
    """One reader's way through the log. Open it, take from it until it is over, close it.

    A reader that is far behind reads the table by itself, and joins the tail when it is nearly there.
    """

    def __init__(self, db: Database, tail: Tail, wanted: Wanted, after: int | None) -> None:
        self._db = db
        self._tail = tail
        self._wanted = wanted
        self._after = after
        self._position = after or 0
        self._reader: Reader | None = None
        self._ready: list[Event] = []
        self._in_step = False
        self.over = False
        """Whether nothing will come any more."""

    async def open(self) -> None:
        """Take the first look, or for a stream that begins now, note what now is; call it before ``take``. NotFound."""
        if self._wanted.job_id is not None or self._after is None:
            self._reader = await self._tail.join(self._wanted)
        if self._wanted.job_id is None and self._after is None:
            self._position = await self._db.read(event_rows.last_id)
            self._in_step = True
        else:
            await self._look(first=True)

    async def take(self, seconds: float) -> list[Event]:
        """The next events, oldest first; nothing where nothing came in so many seconds, or it is ``over``."""
        events = await self._live(seconds) if self._in_step and not self._ready else []
        while not self._ready and not self._in_step and not self.over:
            await self._look()
        ready, self._ready = self._ready, []
        return ready or events

    async def _live(self, seconds: float) -> list[Event]:
        """What the tail has for us. Where that is too much, we are behind again."""
        assert self._reader is not None
        try:
            events = [event for event in await self._reader.take(seconds) if event.id > self._position]
        except TooSlow:
            self._tail.leave(self._reader)
            self._reader, self._in_step = None, False
            return []
        return self._cut_at_the_end(events)

    @property
    def has_more(self) -> bool:
        """Whether something is there that ``take`` answers at once."""
        return bool(self._ready)

    def close(self) -> None:
        """Let go of the tail."""
        if self._reader is not None:
            self._tail.leave(self._reader)

    async def _look(self, first: bool = False) -> None:
        """Read one page of the table; what the last one did not show comes from the tail."""
        joined = self._reader is not None
        look = await self._db.read(_look, self._wanted, self._position)
        if first and self._wanted.job_id is not None and look.job is None:
            raise NotFound(f"There is no job {self._wanted.job_id}.")
        self._position = look.reached
        if first and self._after is not None and self._after < look.dropped_to:
            self._ready.append(_gap(self._wanted, self._after, look.dropped_to))
        self._ready += self._cut_at_the_end(list(look.events))
        if self.over or not look.at_end:
            return
        if self._wanted.job_id is not None and (look.job is None or is_final(look.job.status)):
            self._end_without_event(look)
        elif joined:
            self._in_step = True
        else:
            self._reader = await self._tail.join(self._wanted)

    def _cut_at_the_end(self, events: list[Event]) -> list[Event]:
        """The events up to the one that ends the stream, if it is among them."""
        if events:
            self._position = max(self._position, events[-1].id)
        if self._wanted.job_id is not None:
            for number, event in enumerate(events):
                if event.type in JOB_FINAL:
                    self.over = True
                    return events[: number + 1]
        return events

    def _end_without_event(self, look: _Look) -> None:
        """The job is final, and no event behind our position says so: the reader has it, or the log was cut off."""
        self.over = True
        unseen = self._after is None or self._after < look.dropped_to
        if unseen and look.job is not None:
            self._ready.append(_final_state(look.job, max(self._position, look.dropped_to)))


class Events:
    """Live streams over the event log."""

    def __init__(self, db: Database, hints: Hints, poll_seconds: float = 1.0, tail: Tail | None = None) -> None:
        """``tail`` is shared with whoever else listens in this process."""
        self._db = db
        self._tail = tail if tail is not None else Tail(db, hints, poll_seconds)

    async def open(self, wanted: Wanted, after: int | None = None) -> EventStream:
        """A stream of what is wanted, behind the event ``after``; close it.

        Without ``after`` a job's stream begins with its first event and any other one with what happens from now on.
        A job's stream ends after its final event - or, where the log no longer has that, after one that is made from
        the job; it has nothing at all where the reader has seen the final event. Other streams never end. Where the
        log was cut off behind ``after``, the first event is a ``stream.gap``. NotFound where there is no such job.
        """
        stream = EventStream(self._db, self._tail, wanted, after)
        try:
            await stream.open()
        except BaseException:
            stream.close()
            raise
        return stream

    async def stream(
        self,
        project_id: str,
        *,
        job_id: str | None = None,
        character_id: str | None = None,
        after: int | None = None,
    ) -> AsyncIterator[Event]:
        """The same event by event."""
        stream = await self.open(Wanted(project_id, job_id, character_id), after)
        try:
            while True:
                for event in await stream.take(LONG_SECONDS):
                    yield event
                if stream.over:
                    return
        finally:
            stream.close()


def _look(c: Connection, wanted: Wanted, position: int) -> _Look:
    """One page behind a position. What is rare in the log is looked for a stretch at a time."""
    dropped_to = event_rows.dropped_to(c)
    position = max(position, dropped_to)
    newest = event_rows.last_id(c)
    rare = wanted.job_id is None and (wanted.character_id is not None or bool(wanted.types))
    up_to = min(newest, position + event_rows.WINDOW) if rare else newest
    found = event_rows.after(
        c, wanted.project_id, position, wanted.job_id, wanted.character_id, PAGE, up_to, wanted.types
    )
    full = len(found) == PAGE
    job = job_rows.get(c, wanted.project_id, wanted.job_id) if wanted.job_id is not None else None
    reached = found[-1].id if full else max(up_to, position)
    return _Look(tuple(found), reached, not full and up_to >= newest, dropped_to, job)


def _gap(wanted: Wanted, after: int, dropped_to: int) -> Event:
    detail = "Events behind the one you know are no longer kept: read what you follow anew."
    told = {"after": after, "dropped_to": dropped_to, "detail": detail}
    return Event(dropped_to, wanted.project_id, STREAM_GAP, told, time.time(), wanted.job_id, wanted.character_id)


def _final_state(job: Job, event_id: int) -> Event:
    told = {"job_id": job.id, "kind": job.kind, "status": job.status, "progress": dict(job.progress)}
    if job.error is not None:
        told["error"] = dict(job.error)
    if job.result is not None:
        told["result"] = dict(job.result)
    moment = job.finished_at or job.created_at
    return Event(event_id, job.project_id, f"job.{job.status}", told, moment, job.id, job.character_id)
