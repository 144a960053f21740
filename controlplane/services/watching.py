"""Watching: renews the leases of held jobs and gives orders on cancels, deadlines, lost pods and stalls."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from sqlalchemy import Connection

from controlplane.db import held as held_rows
from controlplane.db.database import Database
from controlplane.db.held import Look, Whereabouts
from controlplane.domain.jobs import CANCELLING, RUNNING, is_final, patience_with
from controlplane.domain.pods import LOST
from controlplane.ports import Clock
from controlplane.services.events import Hints
from controlplane.services.holding import Held
from controlplane.settings import Settings

log = logging.getLogger(__name__)

AWAY_SECONDS = 5.0
MISSED_HEARTBEATS = 1.5
"""Heartbeats come at least once in their interval; after this many intervals one is missing."""
HINT_PAUSE_SECONDS = 0.05
"""Between two looks for cancels, however many hints there are."""


class Watcher:
    """Looks at the jobs that this process holds, whose dict is the scheduler's and changes under our eyes.

    A hint costs one small query for those that are being cancelled. Everything else is looked at in every poll
    interval, and only in jobs that have been held for as long: most are over by then.
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
        self._renewed = self._looked = time.monotonic()

    async def run(self) -> None:
        """Look at the held jobs on every hint and in every poll interval until cancelled."""
        while True:
            seen = self._hints.count(Hints.CANCELS)
            try:
                await self._watch()
            except Exception:  # a database that is away for a moment must not end the scheduler
                log.exception("watching failed")
                await asyncio.sleep(self._settings.poll_seconds)
            await asyncio.sleep(min(HINT_PAUSE_SECONDS, self._settings.poll_seconds))
            rest = self._looked + self._settings.poll_seconds - time.monotonic()
            await self._hints.wait(Hints.CANCELS, seen, max(rest, 0.0))

    async def _watch(self) -> None:
        now = time.monotonic()
        if now - self._renewed >= self._settings.lease_seconds / 3:
            await self._renew()
            self._renewed = now
        if self._held:
            await self._pass_on_cancels()
        if now - self._looked >= self._settings.poll_seconds:
            self._looked = now
            await self._look([held for held in self._held.values() if now - held.since >= self._settings.poll_seconds])

    async def _renew(self) -> None:
        watched = list(self._held.values())
        if watched:
            until = self._clock.now() + self._settings.lease_seconds
            kept = await self._db.write_fenced(held_rows.renew, [held.claim for held in watched], until)
            await self._drop([held for held in watched if held.claim not in kept])

    async def _pass_on_cancels(self) -> None:
        for job_id, claim_no in await self._db.read(held_rows.cancelling):
            held = self._held.get(job_id)
            if held is not None and held.job.claim_no == claim_no:
                held.give("cancel")

    async def _look(self, watched: Iterable[Held]) -> None:
        by_id = {held.job.id: held for held in watched}
        if not by_id:
            return
        looks, pods = await self._db.read(_read, list(by_id), {held.pod.id for held in by_id.values()})
        for job_id, held in by_id.items():
            look = looks.get(job_id)
            if look is None or look.claim_no != held.job.claim_no:
                await self._drop([held])
            elif not is_final(look.status):
                self._judge(held, look, pods.get(held.pod.id))

    async def _drop(self, lost: Iterable[Held]) -> None:
        """Let go of those that another claim has; some of them may merely have ended while we looked."""
        still = [held for held in lost if self._held.get(held.job.id) is held]
        if not still:
            return
        looks = await self._db.read(held_rows.looks, [held.job.id for held in still])
        for held in still:
            look = looks.get(held.job.id)
            if look is not None and look.claim_no != held.job.claim_no and self._held.get(held.job.id) is held:
                log.warning("job %s is held by another process now", held.job.id)
                self._let_go(held)

    def _judge(self, held: Held, look: Look, pod: Whereabouts | None) -> None:
        if look.progress != held.seen_progress:
            held.seen_progress, held.last_sign = look.progress, time.monotonic()
        silent = time.monotonic() - held.last_sign
        if look.status == CANCELLING:
            # Whoever asks the pod to stop must ask where it is now: a new process there has never heard of the prompt.
            _has_moved(held, pod)
            held.give("cancel")
        elif held.order is not None:
            return
        elif self._clock.now() > held.job.deadline_at:
            held.give("deadline")
        elif pod is None or pod.state == LOST or self._is_gone(held, pod):
            held.give("pod_lost")
        elif _has_moved(held, pod):
            # It has registered again; follow it there, and learn whether it still knows the prompt.
            held.give("moved")
        elif held.attempt.status == RUNNING and silent > patience_with(
            held.job.kind, look.progress, self._settings.stall_seconds
        ):
            held.give("stalled")

    def _is_gone(self, held: Held, pod: Whereabouts) -> bool:
        """Nothing listens at the pod's address and a heartbeat is missing: that needs no further waiting.

        Neither alone would do: an address may be wrong for a moment, and a pod may be too busy to speak.
        """
        if held.away_at is None or time.monotonic() - held.away_at > AWAY_SECONDS:
            return False
        silent = self._clock.now() - max(pod.last_heartbeat_at, self._listening_since)
        return silent > MISSED_HEARTBEATS * self._settings.heartbeat_seconds


def _has_moved(held: Held, pod: Whereabouts | None) -> bool:
    """Whether the pod is elsewhere by now; if so, that is where it is asked from here on."""
    if pod is None or (pod.address, pod.token) == (held.pod.address, held.pod.token):
        return False
    held.pod = replace(held.pod, address=pod.address, token=pod.token, state=pod.state)
    return True


def _read(c: Connection, job_ids: list[str], pod_ids: set[str]) -> tuple[dict[str, Look], dict[str, Whereabouts]]:
    return held_rows.looks(c, job_ids), held_rows.whereabouts(c, pod_ids)
