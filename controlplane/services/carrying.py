"""Carrying: one held job from its attempt to its outcome; submit, follow, stop, collect."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import Connection

from controlplane.db import pods as pod_rows
from controlplane.db.database import Database
from controlplane.domain.durations import Countdown
from controlplane.domain.jobs import (
    COLLECTING,
    DEAD_DEVICE,
    RUNNING,
    SUBMITTED,
    Failure,
    Job,
    cut_log,
    failure_of_error,
)
from controlplane.domain.pods import READY, SUSPECT, Pod
from controlplane.errors import DatabaseAway, PodRefused, PodUnreachable, StaleClaim, TroupeError
from controlplane.ports import Clock, HandedOver, Provider, Update
from controlplane.services import outcomes
from controlplane.services.claiming import Claimed
from controlplane.services.durations import Durations
from controlplane.services.events import Hints
from controlplane.services.holding import EVERY_ORDER, STOPPING, Held
from controlplane.services.notes import Freed, Notes, nobody_cares
from controlplane.services.outcomes import Hooks
from controlplane.services.previews import Previews
from controlplane.settings import Settings

log = logging.getLogger(__name__)

STOP_SECONDS = 60.0
STOP_PAUSES = (0.1, 0.3, 0.6, 1.0)
STOP_PAUSE = 2.0
DOUBT_SECONDS = 1.0
"""How long a prompt that may be on its way is looked for before it counts as stopped."""

ABSENT = "attempt_absent"

RAN = frozenset({"running", "progress", "succeeded", "failed", "interrupted"})
"""Updates that say that the pod has begun, even where its beginning was missed."""


@dataclass(frozen=True)
class Outputs:
    """The attempt succeeded; ComfyUI's ui dicts by node id."""

    outputs: Mapping[str, Any]


class Carrier:
    """Carries held jobs. Stateless but for its collaborators; every write is fenced by the job's claim."""

    def __init__(
        self,
        db: Database,
        providers: Mapping[str, Provider],
        settings: Settings,
        clock: Clock,
        hooks: Hooks,
        hints: Hints,
        freed: Freed = nobody_cares,
        durations: Durations | None = None,
        previews: Previews | None = None,
    ) -> None:
        self._previews = Previews(None) if previews is None else previews
        self._durations = Durations() if durations is None else durations
        self._db = db
        self._providers = providers
        self._settings = settings
        self._clock = clock
        self._hooks = hooks
        self._hints = hints
        self._notes = Notes(db, clock, hints, freed)

    async def carry(self, claimed: Claimed) -> Held | None:
        """What there is to carry; None where the claim only had to be settled (no attempt is alive)."""
        job, attempt, pod = claimed.job, claimed.attempt, claimed.pod
        if attempt is not None and attempt.live and pod is not None:
            sent = claimed.resumed or attempt.status != "created"
            previews = self._previews.wanted(job)
            return Held(job, attempt, pod, claimed.resumed, sent=sent, seen_progress=job.progress, previews=previews)
        await self._previews.drop(job)
        await self._db.write_fenced(outcomes.settle, job, self._hooks, self._clock.now())
        self._tell()
        return None

    async def run(self, held: Held) -> None:
        """Bring a held job to its outcome. Raises StaleClaim where another process has it."""
        ending = None
        while ending is None and held.order in (None, "moved", "take_back"):
            ending = await self._brought(held)
            if held.order == "moved":
                held.obeyed("moved")
                if not isinstance(ending, Outputs):
                    ending = None  # at its new address the pod may know better
            elif held.order == "take_back":
                if ending is None and await self._taken_back(held):
                    return
                held.stay()
        await self._end(held, ending)

    async def close(self) -> None:
        """Write what was learned and not written yet."""
        await self._notes.close()

    async def _brought(self, held: Held) -> Outputs | Failure | None:
        """Submit the attempt, if need be, and follow it to its end; None where an order came first."""
        if held.order is not None:
            return None
        ending = (None if held.sent else await self._submit(held)) or await self._follow(held)
        if _never_arrived(held, ending):
            # The row was written, then the process died before or during POST /prompt: the pod never got it.
            ending = await self._submit(held) or await self._follow(held)
        return ending

    async def _submit(self, held: Held) -> Failure | None:
        """Post the prompt; None where it is, or may be, on the pod."""
        held.sent = True
        try:
            await self._provider(held).start(held.work)
        except PodRefused as error:
            held.sent = False
            if error.extra.get("unreachable"):
                await self._suspect(held)
            specific = bool(error.extra.get("pod_specific"))
            return Failure("refused", PodRefused.code, error.detail, specific)
        except PodUnreachable as error:
            log.info("submit of %s is in doubt: %s", held.attempt.id, error)
            self._notes.add(held, replace(held.news, in_doubt=True))
            return None
        now = self._clock.now()
        held.attempt = replace(held.attempt, status=SUBMITTED, submitted_at=now)
        self._notes.add(held, replace(held.news, submitted_at=now))
        return None

    async def _follow(self, held: Held) -> Outputs | Failure | None:
        """Follow the attempt to its end; None where an order came first."""
        return await held.unless(EVERY_ORDER, partial(self._listen, held))

    async def _listen(self, held: Held) -> Outputs | Failure:
        # Every provider's follow is an async generator; the port promises only what its reader needs.
        async with aclosing(self._provider(held).follow(held.work)) as updates:  # type: ignore[type-var]
            async for update in updates:
                held.heard(update)
                if update.kind in RAN and not held.begun:
                    now = self._clock.now()
                    held.attempt = replace(held.attempt, status=RUNNING, started_at=now)
                    self._notes.add(held, replace(held.news, started_at=now))
                if update.kind == "progress":
                    self._note_progress(held, update)
                elif update.kind == "preview":
                    self._previews.take(held.job, update.picture, partial(self._note_preview, held))
                ending = _ending(update)
                if ending is not None:
                    return ending
        return Failure("lost", "attempt_lost", "The pod said nothing more of this attempt.")

    def _note_progress(self, held: Held, update: Update) -> None:
        # A training reports by itself, with its own phases; the node's bar says less.
        if held.job.kind == "train" or update.fraction is None:
            return
        progress = {
            "phase": RUNNING,
            "percent": round(100.0 * update.fraction, 1),
            "eta_seconds": self._eta(held, update.fraction),
            "step": update.step,
            "total_steps": update.total_steps,
            "loss": None,
        }
        if held.progress is not None and "preview" in held.progress:
            progress["preview"] = held.progress["preview"]
        held.progress = progress
        self._notes.add(held, replace(held.news, progress=progress))

    def _note_preview(self, held: Held, key: str) -> None:
        held.progress = {**(held.progress or held.job.progress), "phase": RUNNING, "preview": key}
        if held.attempt.status == RUNNING:
            self._notes.add(held, replace(held.news, progress=held.progress))

    def _eta(self, held: Held, fraction: float) -> float | None:
        started_at = held.attempt.started_at
        if started_at is None:
            return None
        now = self._clock.now()
        before = held.countdown or Countdown.begun(held.job.estimate_seconds, started_at)
        held.countdown = before.after(now, max(0.0, now - started_at), fraction)
        return round(held.countdown.left, 1)

    async def _end(self, held: Held, ending: Outputs | Failure | None) -> None:
        if held.previews:
            # Before the outcome is stored: whoever dies in between leaves the job to somebody who drops them again.
            await self._previews.drop(held.job)
        if held.order in ("cancel", "deadline", "stalled"):
            await self._stop(held)
        elif isinstance(ending, Outputs):
            await self._collect(held, ending.outputs)
        else:
            lost = Failure("lost", "pod_lost", f"Pod {held.pod.name} fell silent.")
            await self._give_up(held, ending or lost)

    async def _collect(self, held: Held, outputs: Mapping[str, Any]) -> None:
        """Check that the outputs are stored, then store the outcome in one transaction, then let the pod forget."""
        held.reach(COLLECTING)
        self._notes.add(held, replace(held.news, collecting=True), soon=True)
        # Any other order is no reason to leave: what is in the store is, whatever becomes of the pod.
        problems = await held.unless(STOPPING, lambda: self._hooks.verify(held.job, outputs, partial(self._ask, held)))
        if problems is None:
            await self._stop(held)
            return
        if problems:
            failure = Failure("outputs", "outputs_missing", "; ".join(problems))
            await self._give_up(held, failure)
            return
        try:
            now = self._clock.now()
            await self._write(held, outcomes.succeed, outputs, self._hooks, now)
            if held.attempt.started_at is not None:
                self._durations.learn(held.job, now - held.attempt.started_at)
        except (StaleClaim, DatabaseAway):
            raise  # says nothing of the outputs: whoever holds the job next finds them where they are
        except TroupeError as error:
            await self._give_up(held, Failure("unusable", error.code, error.detail))
            return
        await self._provider(held).forget(held.work)

    async def _ask(self, held: Held) -> HandedOver | None:
        """What the pod says of the files that are on their way; None where it says nothing now."""
        if held.order == "pod_lost":
            return HandedOver(gone=f"Pod {held.pod.name} fell silent before it was stored.")
        try:
            told = await self._provider(held).handed_over(held.work)
        except (PodUnreachable, PodRefused) as error:
            if error.extra.get("refused"):
                held.away_at = time.monotonic()
            return None
        held.last_sign = time.monotonic()
        return told

    async def _give_up(self, held: Held, failure: Failure) -> None:
        log.info("attempt %s of job %s failed: %s", held.attempt.id, held.job.id, failure.detail)
        if await self._is_unfit(held, failure):
            await self._suspect(held)
        limit, now = self._settings.max_attempts, self._clock.now()
        await self._write(held, outcomes.give_up_attempt, failure, limit, self._hooks, now)
        if failure.kind != "lost":
            await self._provider(held).forget(held.work)

    async def _is_unfit(self, held: Held, failure: Failure) -> bool:
        """Whether the pod must show life first: the next attempt would only meet a ComfyUI that is not back yet."""
        if held.order == "pod_lost" or failure.code == DEAD_DEVICE:
            return True
        return failure.kind == "lost" and not await self._provider(held).probe(held.address)

    async def _stop(self, held: Held) -> None:
        """Take the prompt off the pod, then end the job as ordered."""
        order, silent = held.order, time.monotonic() - held.last_sign
        confirmed = not held.sent or await self._stopped_on_pod(held)
        if not confirmed:
            await self._suspect(held)
        if order == "cancel":
            warning = "" if confirmed else "The pod did not confirm that it stopped; it may still be working on this."
            await self._write(held, outcomes.cancelled, self._hooks, self._clock.now(), warning)
        else:
            log_tail = cut_log(await self._provider(held).log_tail(held.address)) if held.sent else ()
            if order == "stalled":
                detail = f"The pod said it was working, but showed no progress for {silent:.0f} s."
                await self._give_up(held, Failure("stalled", "attempt_stalled", detail, log_tail=log_tail))
                return
            await self._write(held, outcomes.overdue, self._hooks, self._clock.now(), log_tail)
        if held.sent:
            await self._provider(held).forget(held.work)

    async def _stopped_on_pod(self, held: Held) -> bool:
        """Ask again until the pod has it neither waiting nor running: an interrupt is only heard at the next check.

        A prompt whose submission got no answer may be on its way still: that one has to stay away for a moment.
        """
        end, gone_at = time.monotonic() + STOP_SECONDS, None
        pauses = iter(STOP_PAUSES)
        while True:
            if await self._provider(held).cancel(held.work):
                gone_at = gone_at or time.monotonic()
                if not held.in_doubt or time.monotonic() - gone_at >= DOUBT_SECONDS:
                    return True
            else:
                gone_at = None
            if time.monotonic() > end:
                return False
            await asyncio.sleep(next(pauses, STOP_PAUSE))

    async def _taken_back(self, held: Held) -> bool:
        """Hand the job back to the queue for another pod; False where its pod has begun, or may have."""
        if held.begun or held.in_doubt:
            return False
        if held.sent and not await self._provider(held).withdraw(held.work):
            return False
        await self._write(held, outcomes.take_back, self._hooks, self._clock.now())
        return True

    async def _write(self, held: Held, step: Callable[..., Job], *arguments: Any) -> None:
        """Run one of the fenced steps of ``outcomes`` that end the attempt, with what is not written yet."""
        news = await self._notes.take(held)
        try:
            await self._db.write_fenced(step, held.job, held.attempt, *arguments, news)
        except StaleClaim:
            self._tell()  # it may be stored already, by a commit whose answer got lost
            raise
        except TroupeError:
            held.news = news
            raise
        self._tell()

    def _tell(self) -> None:
        """A pod may be free now, and a job's readers have something to read."""
        self._hints.wake(Hints.JOBS, Hints.EVENTS)

    async def _suspect(self, held: Held) -> None:
        """Give a pod that cannot be reached no more work until it shows a sign of life."""
        await self._db.write_fenced(_mark_suspect, held.pod)
        self._hints.wake(Hints.PODS)

    def _provider(self, held: Held) -> Provider:
        return self._providers[held.pod.kind]


def _never_arrived(held: Held, ending: Outputs | Failure | None) -> bool:
    return (
        held.resumed
        and held.attempt.status == "created"
        and isinstance(ending, Failure)
        and ending.code == ABSENT
        and held.order is None
    )


def _ending(update: Update) -> Outputs | Failure | None:
    """What a final update means; None for any other."""
    error = update.error or {}
    if update.kind == "succeeded":
        return Outputs(update.outputs)
    if update.kind == "failed":
        return failure_of_error(error)
    if update.kind == "interrupted":
        return Failure("interrupted", "interrupted", "Somebody stopped it on the pod.")
    if update.kind == "lost":
        code = ABSENT if error.get("type") == "Absent" else str(error.get("code") or "attempt_lost")
        detail = str(error.get("message") or "The attempt is lost.")
        return Failure("lost", code, detail, log_tail=cut_log(error.get("log_tail") or ()))
    return None


def _mark_suspect(c: Connection, pod: Pod) -> None:
    now = pod_rows.find_locked(c, pod.id)
    if now is not None and now.state == READY:
        pod_rows.change(c, pod.project_id, pod.id, state=SUSPECT)
