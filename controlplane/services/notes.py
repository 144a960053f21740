"""Notes: what is learned about held jobs is gathered and written for all of them in one transaction at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from sqlalchemy import Connection

from controlplane.db.database import Database
from controlplane.domain.jobs import Attempt, Job
from controlplane.errors import DatabaseAway, StaleClaim
from controlplane.ports import Clock
from controlplane.services.events import Hints
from controlplane.services.holding import Held
from controlplane.services.outcomes import NO_NEWS, News, note

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.25
"""What lasts no longer is written with its outcome."""
SOON_SECONDS = 0.1
"""The same for what others wait for."""
PROGRESS_SECONDS = 1.0
"""Progress of one job is written at most so often."""

Item = tuple[Job, Attempt, News]
Freed = Callable[[Job, Attempt], None]
"""Is told once it is written that an attempt has finished on its pod, whose place is somebody else's by then."""


def nobody_cares(job: Job, attempt: Attempt) -> None:
    """The default of ``Freed``."""


class Notes:
    """The notes of one process. Everything is called from the event loop; ``add`` neither waits nor fails."""

    def __init__(self, db: Database, clock: Clock, hints: Hints, freed: Freed = nobody_cares) -> None:
        self._freed = freed
        self._db = db
        self._clock = clock
        self._hints = hints
        self._waiting: dict[str, Held] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._being_written: frozenset[str] = frozenset()

    def add(self, held: Held, news: News, *, soon: bool = False) -> None:
        """Keep what is known of a job by now, and write it in a moment unless ``take`` comes first."""
        held.news = news
        self._waiting[held.job.id] = held
        self._arm(SOON_SECONDS if soon else PAUSE_SECONDS)

    async def take(self, held: Held) -> News:
        """What is not written yet: the caller writes it with what it has to write itself."""
        while held.job.id in self._being_written and self._writing is not None:
            await asyncio.wait([self._writing])
        self._waiting.pop(held.job.id, None)
        news, held.news = held.news, NO_NEWS
        return news

    async def close(self) -> None:
        """Write what is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is not None:
            await asyncio.wait([self._writing])
        await self._write()

    def _arm(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = loop.call_at(due, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._writing is not None:
            self._arm(SOON_SECONDS)
        elif self._waiting:
            self._writing = asyncio.create_task(self._write())
            self._writing.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._writing = None
        self._being_written = frozenset()
        if not task.cancelled() and task.exception() is not None:
            log.error("notes were not written", exc_info=task.exception())

    async def _write(self) -> None:
        batch = self._gathered()
        if not batch:
            return
        items = [(held.job, held.attempt, news) for held, news in batch]
        self._being_written = frozenset(job.id for job, _, _ in items)
        try:
            await self._db.write_fenced(write_notes, items, self._clock.now())
        except DatabaseAway as error:
            log.warning("notes wait for the database: %s", error)
            self._put_back(batch)
            return
        except Exception:  # one of them it must be; the others are not to suffer for it
            log.exception("notes were not written together; each is written by itself")
            await self._write_singly(batch)
        self._tell(items)

    async def _write_singly(self, batch: Sequence[tuple[Held, News]]) -> None:
        for held, news in batch:
            try:
                await self._db.write_fenced(write_notes, [(held.job, held.attempt, news)], self._clock.now())
            except Exception:  # it is tried again with what comes next, at the latest with the outcome
                log.exception("a note on job %s was not written", held.job.id)
                held.news = _joined(news, held.news)

    def _gathered(self) -> list[tuple[Held, News]]:
        """What is to be written now, taken from those who wait; progress that comes too often waits on."""
        waiting, self._waiting = self._waiting, {}
        now = asyncio.get_running_loop().time()
        batch = []
        for held in waiting.values():
            news = held.news
            if news.progress is not None and now - held.progress_at < PROGRESS_SECONDS:
                news, held.news = replace(news, progress=None), News(progress=news.progress)
            else:
                held.news = NO_NEWS
            if news.progress is not None:
                held.progress_at = now
            if news != NO_NEWS:
                batch.append((held, news))
        return batch

    def _put_back(self, batch: Sequence[tuple[Held, News]]) -> None:
        for held, news in batch:
            held.news = _joined(news, held.news)
            self._waiting[held.job.id] = held
        self._arm(PAUSE_SECONDS)

    def _tell(self, items: Sequence[Item]) -> None:
        if any(news.started_at is not None or news.progress is not None for _, _, news in items):
            self._hints.wake(Hints.EVENTS)
        finished = [(job, attempt) for job, attempt, news in items if news.collecting]
        for job, attempt in finished:
            self._freed(job, attempt)
        if finished:
            self._hints.wake(Hints.JOBS)


def write_notes(c: Connection, items: Sequence[Item], now: float) -> None:
    """Write each note under its job's claim; those of jobs that another process has by now are left out."""
    for job, attempt, news in items:
        try:
            note(c, job, attempt, news, now)
        except StaleClaim as stale:
            log.info("%s", stale)


def _joined(older: News, newer: News) -> News:
    return News(
        in_doubt=older.in_doubt or newer.in_doubt,
        submitted_at=older.submitted_at or newer.submitted_at,
        started_at=older.started_at or newer.started_at,
        collecting=older.collecting or newer.collecting,
        progress=newer.progress or older.progress,
    )
