"""Watching: renews the leases of held jobs and gives orders on cancels, deadlines, lost pods and stalls."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from sqlalchemy import Connection

from controlplane.db import jobs as job_rows
from controlplane.db import pods as pod_rows
from controlplane.db.database import Database
from controlplane.domain.jobs import CANCELLING, Job, patience_with
from controlplane.domain.pods import LOST, Pod
from controlplane.ports import Clock
from controlplane.services.carrying import Held
from controlplane.services.events import Hints
from controlplane.settings import Settings

log = logging.getLogger(__name__)

AWAY_SECONDS = 5.0
MISSED_HEARTBEATS = 1.5
"""Heartbeats come at least once in their interval; after this many intervals one is missing."""


class Watcher:
    """Looks at the jobs that this process holds, whose dict is the scheduler's and changes under our eyes.

    ``let_go`` is called with a job that another process has taken over: nothing more may be done for it here.
    """

    def __init__(
        self,
        db: Database,
        settings: Settings,
        clock: Clock,
        hints: Hints,
        held: Mapping[str, Held],
        let_go: Callable[[Held], None],
    ) -> None:
        self._db = db
        self._settings = settings
        self._clock = clock
        self._hints = hints
        self._held = held
        self._let_go = let_go
        self._listening_since = clock.now()

    async def run(self) -> None:
        """Look at the held jobs on every wake until cancelled."""
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
                self._let_go(held)

    async def _is_stale(self, held: Held) -> bool:
        """Whether another claim has the job; False where it merely ended while we looked."""
        job = await self._db.read(job_rows.get, held.job.project_id, held.job.id)
        return job is not None and job.claim_no != held.job.claim_no and self._held.get(job.id) is held

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
