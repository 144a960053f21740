"""The scheduler: claims jobs, holds them by lease, watches them, and lets the carrier bring each to its outcome."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Mapping

from sqlalchemy import Connection

from controlplane.db import jobs as job_rows
from controlplane.db import pods as pod_rows
from controlplane.db.database import Database
from controlplane.domain.jobs import CANCELLING, Job, patience_with
from controlplane.domain.pods import LOST, Pod
from controlplane.errors import StaleClaim
from controlplane.ports import Clock, Provider
from controlplane.services.carrying import Carrier, Held
from controlplane.services.claiming import Claimed, claim_next, fail_overdue, take_over
from controlplane.services.events import Hints
from controlplane.services.outcomes import Hooks
from controlplane.settings import Settings

log = logging.getLogger(__name__)

CRASH_PAUSE_SECONDS = 5.0
AWAY_SECONDS = 5.0
MISSED_HEARTBEATS = 1.5
"""Heartbeats come at least once in their interval; after this many intervals one is missing."""


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
        self._listening_since = clock.now()
        self.owner = f"{socket.gethostname()[:40]}:{os.getpid()}:{secrets.token_hex(4)}"

    @property
    def held_jobs(self) -> int:
        """How many jobs are in this process's hands."""
        return len(self._tasks)

    async def run(self) -> None:
        """Work until cancelled."""
        loops = [asyncio.create_task(self._claiming()), asyncio.create_task(self._watching())]
        try:
            await asyncio.gather(*loops)
        finally:
            await self._let_go([*loops, *self._tasks.values()])

    async def _let_go(self, tasks: list[asyncio.Task[None]]) -> None:
        claims = list(self._claims.items())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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

    async def _watching(self) -> None:
        """Look at the held jobs on every wake: renew leases, pass on cancels, deadlines, lost pods and stalls."""
        renewed = time.monotonic()
        while True:
            seen = self._hints.count(Hints.JOBS)
            try:
                renew = time.monotonic() - renewed >= self._settings.lease_seconds / 3
                await self._watch(renew)
                if renew:
                    renewed = time.monotonic()
            except Exception:  # a database that is away for a moment must not end the scheduler
                log.exception("watching failed")
                await asyncio.sleep(self._settings.poll_seconds)
            await self._hints.wait(Hints.JOBS, seen, self._settings.poll_seconds)

    async def _watch(self, renew: bool) -> None:
        watched = dict(self._held)
        if not watched:
            return
        claims = [held.claim for held in watched.values()]
        if renew:
            await self._db.write(job_rows.renew, claims, self._clock.now() + self._settings.lease_seconds)
        jobs, pods = await self._db.read(_look, claims)
        for job_id, held in watched.items():
            if job_id in jobs:
                self._judge(held, jobs[job_id], pods.get(held.pod.id))
            elif self._held.get(job_id) is held and await self._is_stale(held):
                log.warning("job %s is held by another process now", job_id)
                self._tasks[job_id].cancel()

    async def _is_stale(self, held: Held) -> bool:
        """Whether another claim has the job; False where it merely ended while we looked."""
        job = await self._db.read(job_rows.get, held.job.project_id, held.job.id)
        return job is not None and job.claim_no != held.job.claim_no and job.id in self._tasks

    def _judge(self, held: Held, job: Job, pod: Pod | None) -> None:
        if job.progress != held.seen_progress:
            held.seen_progress, held.last_sign = job.progress, time.monotonic()
        silent = time.monotonic() - held.last_sign
        if job.status == CANCELLING:
            held.give("cancel")
        elif held.order is not None:
            return
        elif self._clock.now() > job.deadline_at:
            held.give("deadline")
        elif pod is None or pod.state == LOST or self._is_gone(held, pod):
            held.give("pod_lost")
        elif (pod.address, pod.token) != (held.pod.address, held.pod.token):
            # It has registered again; follow it there, and learn whether it still knows the prompt.
            held.pod = pod
            held.give("moved")
        elif held.attempt.status == "running" and silent > self._patience(job):
            held.give("stalled")

    def _patience(self, job: Job) -> float:
        return patience_with(job.kind, job.progress, self._settings.stall_seconds)

    def _is_gone(self, held: Held, pod: Pod) -> bool:
        """Nothing listens at the pod's address and a heartbeat is missing: that needs no further waiting.

        Neither alone would do: an address may be wrong for a moment, and a pod may be too busy to speak.
        """
        if held.away_at is None or time.monotonic() - held.away_at > AWAY_SECONDS:
            return False
        silent = self._clock.now() - max(pod.last_heartbeat_at, self._listening_since)
        return silent > MISSED_HEARTBEATS * self._settings.heartbeat_seconds


def _look(c: Connection, claims: list[tuple[str, int]]) -> tuple[dict[str, Job], dict[str, Pod]]:
    jobs = {job.id: job for job in job_rows.held(c, claims)}
    return jobs, {pod.id: pod for pod in pod_rows.list_all(c)}
