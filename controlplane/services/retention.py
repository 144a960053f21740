"""Retention: forgets, in small steps beside the work, what is kept for a time only.

Idempotency-Keys are forgotten after a day. Jobs are kept for ever unless ``TROUPE_JOB_DAYS`` says how long; even then
a job stays as long as anything that it made: a picture can always be traced to its request, and a version to its
training. What goes is the rows of failed and cancelled jobs, and of jobs whose pictures were deleted, with their
attempts. Events and webhook deliveries have an age of their own.
"""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy import Connection

from controlplane.db import idempotency as key_rows
from controlplane.db import projects as project_rows
from controlplane.db import retention as rows
from controlplane.db.database import Database
from controlplane.domain.pages import Position
from controlplane.ports import Clock
from controlplane.services.idempotency import KEPT_SECONDS
from controlplane.settings import Settings

log = logging.getLogger("troupe.retention")

ROWS_AT_ONCE = 200
"""In one transaction: requests must not wait long behind it where the database has one writer."""
PAUSE_SECONDS = 0.01
KEY_STEPS_AT_ONCE = 500
"""With a sweep a minute more keys than any machine here takes in that time."""
JOB_STEPS_AT_ONCE = 100
DAY_SECONDS = 24 * 3600.0


class Retention:
    """The retention service. Several processes may sweep at once; each passes over what another one holds."""

    def __init__(self, db: Database, clock: Clock, settings: Settings) -> None:
        self._db = db
        self._clock = clock
        self._job_seconds = settings.job_days * DAY_SECONDS
        self._reached: dict[str, Position] = {}

    async def sweep(self) -> int:
        """Forget what is too old, a bounded number of rows; says how many went. The next sweep goes on behind them."""
        gone = await self._forget_keys()
        if self._job_seconds:
            for project_id in await self._db.read(project_rows.ids):
                gone += await self._forget_jobs(project_id)
        if gone:
            log.info("%d old rows are forgotten", gone)
        return gone

    async def _forget_keys(self) -> int:
        gone = 0
        for _ in range(KEY_STEPS_AT_ONCE):
            found = await self._db.write(key_rows.forget, self._clock.now() - KEPT_SECONDS, ROWS_AT_ONCE)
            gone += found
            if found < ROWS_AT_ONCE:
                break
            await asyncio.sleep(PAUSE_SECONDS)
        return gone

    async def _forget_jobs(self, project_id: str) -> int:
        """Walk on through the oldest jobs: those that stay are passed once in a while, not in every sweep."""
        before, gone = self._clock.now() - self._job_seconds, 0
        for _ in range(JOB_STEPS_AT_ONCE):
            after = self._reached.get(project_id)
            places = await self._db.read(rows.jobs_from, project_id, before, after, ROWS_AT_ONCE)
            if places:
                gone += await self._db.write(_remove, project_id, places, before)
            if len(places) < ROWS_AT_ONCE:
                self._reached.pop(project_id, None)
                break
            self._reached[project_id] = places[-1]
            await asyncio.sleep(PAUSE_SECONDS)
        return gone


def _remove(c: Connection, project_id: str, places: list[Position], before: float) -> int:
    return rows.remove_jobs(c, project_id, [place.id for place in places], before)
