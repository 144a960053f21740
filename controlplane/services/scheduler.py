"""The scheduler: claims jobs, holds them by lease, watches them, and lets the carrier bring each to its outcome."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Mapping

from sqlalchemy import Connection

from controlplane.db import jobs as job_rows
from controlplane.db.database import Database
from controlplane.errors import StaleClaim
from controlplane.ports import Clock, Provider
from controlplane.services.carrying import Carrier
from controlplane.services.claiming import Claimed, claim_next, fail_overdue, take_over
from controlplane.services.events import Hints
from controlplane.services.holding import Held
from controlplane.services.outcomes import Hooks
from controlplane.services.watching import Watcher
from controlplane.settings import Settings

log = logging.getLogger(__name__)

CRASH_PAUSE_SECONDS = 5.0


class Scheduler:
    """One per process; any number of processes may run one on the same database.

    ``provider_by_kind`` maps a pod's kind to who speaks to it. ``run()`` works until it is cancelled; then its leases
    end at once, and whoever runs next re-attaches to what the pods are still doing.
    """

    def __init__(
        self,
        db: Database,
        provider_by_kind: Mapping[str, Provider],
        settings: Settings,
        clock: Clock,
        hooks: Hooks,
        hints: Hints,
    ) -> None:
        self._db = db
        self._settings = settings
        self._clock = clock
        self._hooks = hooks
        self._hints = hints
        self._carrier = Carrier(db, provider_by_kind, settings, clock, hooks, hints)
        self._held: dict[str, Held] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._claims: dict[str, int] = {}
        self._watcher = Watcher(db, settings, clock, hints, self._held, self._lose)
        self.owner = f"{socket.gethostname()[:40]}:{os.getpid()}:{secrets.token_hex(4)}"

    @property
    def held_jobs(self) -> int:
        """How many jobs are in this process's hands."""
        return len(self._tasks)

    async def run(self) -> None:
        """Work until cancelled."""
        loops = [asyncio.create_task(self._claiming()), asyncio.create_task(self._watcher.run())]
        try:
            await asyncio.gather(*loops)
        finally:
            await self._let_go([*loops, *self._tasks.values()])

    async def _let_go(self, tasks: list[asyncio.Task[None]]) -> None:
        claims = list(self._claims.items())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._carrier.close()
        await self._db.write(job_rows.release, claims, self._clock.now() - 1.0)

    async def _claiming(self) -> None:
        while True:
            seen = self._hints.count(Hints.JOBS)
            try:
                claimed = await self._claim_one()
            except Exception:  # a database that is away for a moment must not end the scheduler
                log.exception("claiming failed")
                claimed = False
            if not claimed:
                await self._hints.wait(Hints.JOBS, seen, self._settings.poll_seconds)

    async def _claim_one(self) -> bool:
        if len(self._tasks) >= self._settings.max_running_jobs:
            return False
        claimed = await self._db.write(self._claim, tuple(self._tasks))
        if claimed is None:
            return False
        self._hints.wake(Hints.EVENTS)
        task = asyncio.create_task(self._carry(claimed), name=f"job {claimed.job.id}")
        self._tasks[claimed.job.id] = task
        self._claims[claimed.job.id] = claimed.job.claim_no
        return True

    def _claim(self, c: Connection, carried: tuple[str, ...]) -> Claimed | None:
        now = self._clock.now()
        lease_until = now + self._settings.lease_seconds
        fail_overdue(c, self._hooks, now)
        expired = take_over(c, self.owner, lease_until, now, carried)
        return expired or claim_next(c, self.owner, lease_until, now)

    async def _carry(self, claimed: Claimed) -> None:
        job_id = claimed.job.id
        try:
            held = await self._carrier.carry(claimed)
            if held is not None:
                self._held[job_id] = held
                await self._carrier.run(held)
        except StaleClaim as stale:
            log.info("%s", stale)
        except Exception:  # whatever it was, the job must not be lost: somebody re-attaches once the lease ends
            log.exception("carrying job %s failed", job_id)
            await self._release_later(claimed)
        finally:
            self._held.pop(job_id, None)
            if self._tasks.get(job_id) is asyncio.current_task():
                del self._tasks[job_id], self._claims[job_id]
            self._hints.wake(Hints.JOBS)

    async def _release_later(self, claimed: Claimed) -> None:
        until = self._clock.now() + CRASH_PAUSE_SECONDS
        try:
            await self._db.write(job_rows.release, [(claimed.job.id, claimed.job.claim_no)], until)
        except Exception:  # the lease ends by itself as well, only later
            log.exception("releasing job %s failed", claimed.job.id)

    def _lose(self, held: Held) -> None:
        """Stop at once: another process has this job."""
        task = self._tasks.get(held.job.id)
        if task is not None:
            task.cancel()
