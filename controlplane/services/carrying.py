"""Carrying: one held job from its attempt to its outcome; submit, follow, stop, collect."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from sqlalchemy import Connection

from controlplane.db import pods as pod_rows
from controlplane.db.database import Database
from controlplane.domain.jobs import (
    COLLECTING,
    DEAD_DEVICE,
    RUNNING,
    Attempt,
    Failure,
    Job,
    cut_log,
    failure_of_error,
)
from controlplane.domain.pods import READY, SUSPECT, Pod
from controlplane.errors import PodRefused, PodUnreachable, TroupeError
from controlplane.ports import Clock, HandedOver, PodAddress, Provider, Update, Work
from controlplane.services import outcomes
from controlplane.services.claiming import Claimed
from controlplane.services.events import Hints
from controlplane.services.outcomes import Hooks
from controlplane.settings import Settings

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0
STOP_SECONDS = 60.0
STOP_PAUSES = (0.1, 0.3, 0.6, 1.0)
STOP_PAUSE = 2.0

ABSENT = "attempt_absent"

RAN = frozenset({"running", "progress", "succeeded", "failed", "interrupted"})
"""Updates that say that the pod has begun, even where its beginning was missed."""

Order = Literal["cancel", "deadline", "stalled", "pod_lost", "moved"]


@dataclass
class Held:
    """One job in this process's hands; the watcher gives orders, the carrier obeys them."""

    job: Job
    attempt: Attempt
    pod: Pod
    resumed: bool
    order: Order | None = None
    ordered: asyncio.Event = field(default_factory=asyncio.Event)
    last_sign: float = field(default_factory=time.monotonic)
    """Monotonic time of the last thing heard of the attempt."""
    seen_progress: Mapping[str, Any] = field(default_factory=dict)
    away_at: float | None = None
    """Monotonic time at which nothing listened at the pod's address."""

    def give(self, order: Order) -> None:
        """Interrupt whatever the carrier waits for. A cancel is never replaced by another order."""
        if self.order != "cancel":
            self.order = order
            self.ordered.set()

    @property
    def claim(self) -> tuple[str, int]:
        """What fences every write: job id and claim number."""
        return self.job.id, self.job.claim_no

    @property
    def address(self) -> PodAddress:
        """The pod in the provider's words."""
        return PodAddress(self.pod.id, self.pod.address, self.pod.token, self.pod.kind)

    @property
    def work(self) -> Work:
        """The attempt in the provider's words."""
        nodes = tuple(str(one["node"]) for one in self.job.outputs if "node" in one)
        files = tuple(self.job.files)
        return Work(self.attempt.id, self.attempt.client_id, self.address, self.job.graph, files, nodes)

    def heard(self, update: Update) -> None:
        """Take an update as a sign of life, where it is one."""
        if update.kind == "away":
            self.away_at = time.monotonic()
        elif not (update.kind == "running" and self.attempt.status == "running" and self.job.kind == "train"):
            # That a training's process lives is not enough: only steps and reports show that it does something.
            self.last_sign = time.monotonic()


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
    ) -> None:
        self._db = db
        self._providers = providers
        self._settings = settings
        self._clock = clock
        self._hooks = hooks
        self._hints = hints

    async def carry(self, claimed: Claimed) -> Held | None:
        """What there is to carry; None where the claim only had to be settled (no attempt is alive)."""
        job, attempt, pod = claimed.job, claimed.attempt, claimed.pod
        if attempt is not None and attempt.live and pod is not None:
            return Held(job, attempt, pod, claimed.resumed, seen_progress=job.progress)
        await self._write(outcomes.settle, job, self._hooks, self._clock.now())
        self._hints.wake()
        return None

    async def run(self, held: Held) -> None:
        """Bring a held job to its outcome. Raises StaleClaim where another process has it."""
        fresh = held.attempt.status == "created" and not held.resumed
        ending = (await self._submit(held) if fresh else None) or await self._follow(held)
        if _never_arrived(held, ending):
            # The row was written, then the process died before or during POST /prompt: the pod never got it.
            ending = await self._submit(held) or await self._follow(held)
        while held.order == "moved":
            held.order = None
            held.ordered.clear()
            ending = await self._follow(held)
        await self._end(held, ending)
        self._hints.wake()

    async def _submit(self, held: Held) -> Failure | None:
        """Post the prompt; None where it is, or may be, on the pod."""
        try:
            await self._provider(held).start(held.work)
        except PodRefused as error:
            if error.extra.get("unreachable"):
                await self._db.write(_suspect, held.pod)
            specific = bool(error.extra.get("pod_specific"))
            return Failure("refused", PodRefused.code, error.detail, specific)
        except PodUnreachable as error:
            log.info("submit of %s is in doubt: %s", held.attempt.id, error)
            await self._note(held, outcomes.note_doubt)
            return None
        await self._note(held, outcomes.note_submitted)
        held.attempt = replace(held.attempt, status="submitted")
        return None

    async def _follow(self, held: Held) -> Outputs | Failure | None:
        """Follow the attempt to its end; None where an order came first."""
        following = asyncio.create_task(self._listen(held))
        ordered = asyncio.create_task(held.ordered.wait())
        try:
            await asyncio.wait((following, ordered), return_when=asyncio.FIRST_COMPLETED)
            return following.result() if following.done() else None
        finally:
            for task in (following, ordered):
                task.cancel()
            await asyncio.gather(following, ordered, return_exceptions=True)

    async def _listen(self, held: Held) -> Outputs | Failure:
        written = 0.0
        # Every provider's follow is an async generator; the port promises only what its reader needs.
        async with aclosing(self._provider(held).follow(held.work)) as updates:  # type: ignore[type-var]
            async for update in updates:
                held.heard(update)
                if update.kind in RAN:
                    await self._note_running(held)
                if update.kind == "progress" and time.monotonic() - written >= PROGRESS_SECONDS:
                    written = time.monotonic()
                    await self._note_progress(held, update)
                ending = _ending(update)
                if ending is not None:
                    return ending
        return Failure("lost", "attempt_lost", "The pod said nothing more of this attempt.")

    async def _note_running(self, held: Held) -> None:
        if held.attempt.status not in (RUNNING, COLLECTING):
            await self._note(held, outcomes.note_running)
            held.attempt = replace(held.attempt, status="running")

    async def _note_progress(self, held: Held, update: Update) -> None:
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
        held.job = await self._write(outcomes.note_progress, held.job, progress, self._clock.now())
        self._hints.wake(Hints.EVENTS)

    def _eta(self, held: Held, fraction: float) -> float | None:
        if held.job.started_at is None or fraction < 0.05:
            return None
        elapsed = max(0.0, self._clock.now() - held.job.started_at)
        return round(elapsed * (1.0 - fraction) / fraction, 1)

    async def _end(self, held: Held, ending: Outputs | Failure | None) -> None:
        if held.order in ("cancel", "deadline", "stalled"):
            await self._stop(held)
        elif held.order == "pod_lost":
            lost = Failure("lost", "pod_lost", f"Pod {held.pod.name} fell silent.")
            await self._give_up(held, ending if isinstance(ending, Failure) else lost)
        elif isinstance(ending, Outputs):
            await self._collect(held, ending.outputs)
        elif ending is not None:
            await self._give_up(held, ending)

    async def _collect(self, held: Held, outputs: Mapping[str, Any]) -> None:
        """Check that the outputs are stored, then store the outcome in one transaction, then let the pod forget."""
        await self._note(held, outcomes.note_collecting)
        held.attempt = replace(held.attempt, status=COLLECTING)
        self._hints.wake(Hints.JOBS)
        problems = await self._verified(held, outputs)
        if problems is None:
            await self._stop(held)
            return
        if problems:
            failure = Failure("outputs", "outputs_missing", "; ".join(problems))
            await self._give_up(held, failure)
            return
        try:
            now = self._clock.now()
            held.job = await self._write(outcomes.succeed, held.job, held.attempt, outputs, self._hooks, now)
        except TroupeError as error:
            if error.code == "stale_claim":
                raise
            await self._give_up(held, Failure("unusable", error.code, error.detail))
            return
        self._hints.wake()
        await self._provider(held).forget(held.work)

    async def _verified(self, held: Held, outputs: Mapping[str, Any]) -> Sequence[str] | None:
        """What is wrong with the outputs, some of which may be on their way still; None where the job is to be stopped.

        Any other order is no reason to leave: what is in the store is, whatever becomes of the pod.
        """
        checking = asyncio.create_task(self._hooks.verify(held.job, outputs, partial(self._ask, held)))
        try:
            while not checking.done():
                ordered = asyncio.create_task(held.ordered.wait())
                try:
                    await asyncio.wait((checking, ordered), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    ordered.cancel()
                if held.order in ("cancel", "deadline"):
                    return None
                held.ordered.clear()
                if held.order in ("moved", "stalled"):
                    held.order = None
            return checking.result()
        finally:
            checking.cancel()
            await asyncio.gather(checking, return_exceptions=True)

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
            await self._db.write(_suspect, held.pod)
        limit, now = self._settings.max_attempts, self._clock.now()
        await self._write(outcomes.give_up_attempt, held.job, held.attempt, failure, limit, self._hooks, now)
        self._hints.wake()
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
        confirmed = await self._stopped_on_pod(held)
        if not confirmed:
            await self._db.write(_suspect, held.pod)
        log_tail = () if order == "cancel" else cut_log(await self._provider(held).log_tail(held.address))
        now = self._clock.now()
        if order == "cancel":
            warning = "" if confirmed else "The pod did not confirm that it stopped; it may still be working on this."
            await self._write(outcomes.cancelled, held.job, held.attempt, self._hooks, now, warning)
        elif order == "deadline":
            detail = "The job was not finished before its deadline."
            await self._write(outcomes.fail, held.job, "deadline_exceeded", detail, self._hooks, now, log_tail)
        else:
            detail = f"The pod said it was working, but showed no progress for {silent:.0f} s."
            await self._give_up(held, Failure("stalled", "attempt_stalled", detail, log_tail=log_tail))
            return
        self._hints.wake()
        await self._provider(held).forget(held.work)

    async def _stopped_on_pod(self, held: Held) -> bool:
        """Ask again until the pod has it neither waiting nor running: an interrupt is only heard at the next check."""
        end = time.monotonic() + STOP_SECONDS
        pauses = iter(STOP_PAUSES)
        while not await self._provider(held).cancel(held.work):
            if time.monotonic() > end:
                return False
            await asyncio.sleep(next(pauses, STOP_PAUSE))
        return True

    async def _note(self, held: Held, step: Callable[[Connection, Job, Attempt, float], Job]) -> None:
        """Run one of the fenced steps of ``outcomes`` and keep what it returns."""
        held.job = await self._write(step, held.job, held.attempt, self._clock.now())
        self._hints.wake(Hints.EVENTS)

    async def _write(self, step: Callable[..., Job], *arguments: Any) -> Job:
        return await self._db.write(step, *arguments)

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


def _suspect(c: Connection, pod: Pod) -> None:
    """Give a pod that cannot be reached no more work until it shows a sign of life."""
    now = pod_rows.find_locked(c, pod.id)
    if now is not None and now.state == READY:
        pod_rows.change(c, pod.project_id, pod.id, state=SUSPECT)
