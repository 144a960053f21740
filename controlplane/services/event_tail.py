"""The tail of the event log: read once per process while anybody listens, and handed to every live reader."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from controlplane.db import events as event_rows
from controlplane.db.database import Database
from controlplane.domain.events import Event
from controlplane.services.events import Hints

log = logging.getLogger("troupe.events")

PAGE = 500
PAUSE_SECONDS_EACH = 0.001
PAUSE_SECONDS_EACH_READER = 0.00005
SHORTEST_PAUSE_SECONDS = 0.002
LONGEST_PAUSE_SECONDS = 0.25
"""Between two looks, the longer the more the last one gave to do: few events for few readers arrive at once, a flood
for many in bundles."""
TROUBLE_SECONDS = 1.0
ROOM = 1000
"""Events that are kept for a reader; one that is further behind reads the table."""


class TooSlow(Exception):
    """More happened than is kept for a reader: what it has not taken by now it finds in the table only."""


@dataclass(frozen=True)
class Wanted:
    """What a reader listens to: a whole project, one job of it, or one character; no type means every type."""

    project_id: str
    job_id: str | None = None
    character_id: str | None = None
    types: frozenset[str] = frozenset()

    @property
    def key(self) -> tuple[str, str | None, str | None]:
        """Under what it is found when something happens."""
        return self.project_id, self.job_id, None if self.job_id else self.character_id


class Reader:
    """One live reader: what it has not taken yet, up to a bound."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._waiting: deque[Event] = deque()
        self._bell = asyncio.Event()
        self._cut = False

    def offer(self, event: Event) -> None:
        """Keep an event for the reader if it wants it; one that has let too many lie gets no more of them."""
        if self._cut or (self.wanted.types and event.type not in self.wanted.types):
            return
        if len(self._waiting) >= ROOM:
            self._cut = True
            self._waiting.clear()
        else:
            self._waiting.append(event)
        self._bell.set()

    async def take(self, seconds: float) -> list[Event]:
        """Whatever is there, oldest first; nothing where nothing comes within so many seconds. TooSlow."""
        if not self._waiting and not self._cut:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._bell.wait()
        self._bell.clear()
        if self._cut:
            raise TooSlow(f"{ROOM} events lay waiting")
        taken = list(self._waiting)
        self._waiting.clear()
        return taken


class Tail:
    """Reads what is new in the log, one query per wake however many listen, and none while nobody does."""

    def __init__(self, db: Database, hints: Hints, poll_seconds: float = 1.0) -> None:
        self._db = db
        self._hints = hints
        self._poll_seconds = poll_seconds
        self._readers: dict[tuple[str, str | None, str | None], set[Reader]] = {}
        self._position = 0
        self._task: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    async def join(self, wanted: Wanted) -> Reader:
        """Listen from now on: whatever a read of the log that begins after this does not show, the reader will get."""
        async with self._starting:
            if self._task is None:
                self._position = await self._db.read(event_rows.last_id)
                self._task = asyncio.create_task(self._run())
            reader = Reader(wanted)
            self._readers.setdefault(wanted.key, set()).add(reader)
            return reader

    def leave(self, reader: Reader) -> None:
        """Listen no longer; fine more than once."""
        readers = self._readers.get(reader.wanted.key)
        if readers is None:
            return
        readers.discard(reader)
        if not readers:
            del self._readers[reader.wanted.key]
        if not self._readers and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                await self._read_on()
            except Exception as trouble:
                # Whatever it was - a database that is away, mostly - the readers stay and miss nothing.
                log.warning("the events cannot be read at the moment: %s", trouble)
                await asyncio.sleep(TROUBLE_SECONDS)

    async def _read_on(self) -> None:
        seen, begun = self._hints.count(Hints.EVENTS), time.monotonic()
        page = await self._db.read(event_rows.of_all_projects, self._position, PAGE)
        handed_out = self._hand_out(page)
        if len(page) < PAGE:
            await self._hints.wait(Hints.EVENTS, seen, self._poll_seconds)
            work = max(PAUSE_SECONDS_EACH * len(page), PAUSE_SECONDS_EACH_READER * handed_out)
            pause = min(max(SHORTEST_PAUSE_SECONDS, work), LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(max(0.0, begun + pause - time.monotonic()))

    def _hand_out(self, page: Iterable[Event]) -> int:
        """Offer events to whoever may want them; how often one was offered."""
        offered = 0
        for event in page:
            self._position = event.id
            for key in {
                (event.project_id, None, None),
                (event.project_id, event.job_id, None),
                (event.project_id, None, event.character_id),
            }:
                readers = self._readers.get(key, ())
                offered += len(readers)
                for reader in readers:
                    reader.offer(event)
        return offered
