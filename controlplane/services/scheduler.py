"""The scheduler: claims jobs, holds them by lease, watches them, and lets the carrier bring each to its outcome."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from controlplane.db import jobs as job_rows
from controlplane.db.database import Database
from controlplane.domain.ids import new_prompt_id
from controlplane.domain.jobs import COLLECTING, Attempt, Job
from controlplane.domain.pods import Choice
from controlplane.domain.projects import pause_words
from controlplane.errors import DatabaseAway, StaleClaim
from controlplane.ports import Clock, PodAddress, Provider
from controlplane.services.carrying import Carrier
from controlplane.services.claiming import (
    BATCH,
    TAKEN_OVER_PER_PASS,
    Claimed,
    Claimer,
    Late,
    fail_overdue,
    occupied,
    overdue,
)
from controlplane.services.durations import Durations
from controlplane.services.events import Hints
from controlplane.services.fleet import Fleet
from controlplane.services.holding import Held
from controlplane.services.outcomes import Hooks, fail
from controlplane.services.previews import Previews
from controlplane.services.taking_back import to_take_back
from controlplane.services.watching import Watcher
from controlplane.settings import Settings

log = logging.getLogger(__name__)

CRASH_PAUSE_SECONDS = 5.0
SHORTEST_PAUSE = 0.01
LONGEST_STEP_ASIDE = 0.02


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
        fleet: Fleet | None = None,
        durations: Durations | None = None,
        previews: Previews | None = None,
    ) -> None:
        self._db = db
        self._providers = provider_by_kind
        self._settings = settings
        self._clock = clock
        self._hooks = hooks
        self._hints = hints
        self._carrier = Carrier(
            db, provider_by_kind, settings, clock, hooks, hints, self._note_done, durations, previews
        )
        self._held: dict[str, Held] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._claims: dict[str, int] = {}
        self._watcher = Watcher(db, settings, clock, hints, self._held, self._lose)
        self.owner = f"{socket.gethostname()[:40]}:{os.getpid()}:{secrets.token_hex(4)}"
        self._fleet = Fleet(db, clock, hints, settings) if fleet is None else fleet
        policy, age_bound = settings.placement, settings.age_bound_seconds
        self._claimer = Claimer(self._fleet, self.owner, self._client_id, policy, age_bound)
        self._tidied_at = float("-inf")

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
                again = await self._claim_some()
            except Exception:  # a database that is away for a moment must not end the scheduler
                log.exception("claiming failed")
                await asyncio.sleep(self._settings.poll_seconds)
                continue
            if not again:
                rest = min(self._settings.poll_seconds, max(self._fleet.seconds_fresh(), SHORTEST_PAUSE))
                await self._hints.wait(Hints.JOBS, seen, rest)

    async def _claim_some(self) -> bool:
        """One pass; True where another one may find more."""
        await self._fleet.refresh()
        if time.monotonic() - self._tidied_at >= self._settings.poll_seconds:
            await self._tidy()
        room = self._settings.max_running_jobs - len(self._tasks)
        if room <= 0 or not self._fleet.has_room:
            return False
        now, most = self._clock.now(), min(room, BATCH)
        kept = self._claimer.kept
        chosen = self._claimer.choose(kept, now, most) if kept else []
        if not chosen:
            waiting = await self._db.read(self._claimer.candidates, now)
            chosen = self._claimer.choose(waiting, now, most) if waiting else []
        if not chosen:
            self._take_back()
            return False
        claimed = await self._db.write_fenced(self._claimer.take, chosen, now + self._settings.lease_seconds, now)
        self._fleet.gave(occupied(claimed, chosen))
        self._begin(claimed)
        if len(claimed) < len(chosen):
            # Another process was quicker, or a pod is not what it seemed: look again, and not in step with it.
            await asyncio.sleep(random.uniform(0.0, LONGEST_STEP_ASIDE))
            await self._fleet.refresh(at_once=True)
            return True
        return len(chosen) == most

    def _take_back(self) -> None:
        """Nothing more waits that idle pods could do; so what waits behind other work may be theirs."""
        for held in to_take_back(self._fleet, self._held, self._clock.now()):
            held.give("take_back")

    async def _tidy(self) -> None:
        """What only time brings about: owners that fell silent, and deadlines that pass before a pod takes the job."""
        self._tidied_at = time.monotonic()
        now = self._clock.now()
        lease_until = now + self._settings.lease_seconds
        taken: Sequence[Claimed] = await self._db.write_fenced(
            self._claimer.take_over, lease_until, now, frozenset(self._tasks)
        )
        self._begin(taken)
        if len(taken) == TAKEN_OVER_PER_PASS:
            self._tidied_at = float("-inf")  # there may be more of them
        late = await self._db.read(overdue, now)
        if late:
            told = [(one.job, self._placement(one)) for one in late]
            await self._db.write_fenced(fail_overdue, told, self._hooks, now)
            self._hints.wake(Hints.EVENTS)

    def _placement(self, late: Late) -> Mapping[str, Any]:
        if late.project is not None and late.project.is_paused:
            return Choice(None, pause_words(late.project)).as_placement()
        return self._fleet.explain(late.job, late.failed_on) or {"reason": "Nobody looked for one."}

    def _begin(self, claimed: Sequence[Claimed]) -> None:
        for one in claimed:
            self._tasks[one.job.id] = asyncio.create_task(self._carry(one), name=f"job {one.job.id}")
            self._claims[one.job.id] = one.job.claim_no

    def _client_id(self, pod: PodAddress) -> str:
        provider = self._providers.get(pod.kind)
        return provider.client_id(pod) if provider is not None else new_prompt_id()

    async def _carry(self, claimed: Claimed) -> None:
        job_id = claimed.job.id
        held: Held | None = None
        try:
            held = await self._carrier.carry(claimed)
            if held is not None:
                self._held[job_id] = held
                await self._carrier.run(held)
                self._note_end(held)
        except StaleClaim as stale:
            log.info("%s", stale)
        except Exception as crash:  # whatever it was, the job must not be lost: somebody re-attaches after the lease
            log.exception("carrying job %s failed", job_id)
            await self._put_aside(claimed, crash)
        finally:
            # Both may be those of a later claim of ours by now, made while this one learned that it had ended.
            if self._held.get(job_id) is held:
                self._held.pop(job_id, None)
            if self._tasks.get(job_id) is asyncio.current_task():
                del self._tasks[job_id], self._claims[job_id]
            self._hints.wake(Hints.JOBS)

    def _note_end(self, held: Held) -> None:
        if held.attempt.status == COLLECTING:
            self._note_done(held.job, held.attempt)
        else:
            self._fleet.ended(held.attempt.id)

    def _note_done(self, job: Job, attempt: Attempt) -> None:
        """Its place on the pod is free, and how long it took tells how long the next one of its lane will take."""
        self._fleet.ended(attempt.id, job.lane, job.estimate_seconds)

    async def _put_aside(self, claimed: Claimed, crash: Exception) -> None:
        """Let somebody try again in a moment; but what is stumbled over each time ends at its deadline."""
        job, now = claimed.job, self._clock.now()
        try:
            if now > job.deadline_at and not isinstance(crash, DatabaseAway):
                detail = (
                    "The job was not finished before its deadline: the server could not go on with it; see its log."
                )
                await self._db.write_fenced(fail, job, "deadline_exceeded", detail, self._hooks, now)
                self._hints.wake(Hints.JOBS, Hints.EVENTS)
            else:
                await self._db.write(job_rows.release, [(job.id, job.claim_no)], now + CRASH_PAUSE_SECONDS)
        except StaleClaim as stale:
            log.info("%s", stale)
        except Exception:  # the lease ends by itself as well, only later
            log.exception("releasing job %s failed", claimed.job.id)

    def _lose(self, held: Held) -> None:
        """Stop at once: another process has this job."""
        task = self._tasks.get(held.job.id)
        if task is not None:
            task.cancel()
