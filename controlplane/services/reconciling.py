"""Reconciling: what the provider of pods has and what our books say are brought together.

Any number of replicas may do this at once: every write is fenced by the state it was decided on, and terminating a
pod twice does no harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.db.database import Database
from controlplane.domain.rentals import ENDED, ENDING, FAILED, REQUESTED, Limits, Rental, RentedPod, Step, plan
from controlplane.errors import RentingImpossible, TroupeError
from controlplane.ports import Clock, Launcher
from controlplane.services.events import Hints
from controlplane.services.rental_books import RentalBooks
from controlplane.settings import Settings

log = logging.getLogger("troupe.rentals")


@dataclass(frozen=True)
class Report:
    """What a reconciliation did. ``problems`` are the steps that could not be done, in words; the next one tries."""

    done: tuple[Step, ...] = ()
    problems: tuple[str, ...] = ()

    def of(self, kind: str) -> tuple[Step, ...]:
        """The steps of one kind."""
        return tuple(step for step in self.done if step.kind == kind)


class Reconciler:
    """Ends what is not ours to keep at the provider, and writes down what is no longer there."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        hints: Hints,
        settings: Settings,
        books: RentalBooks,
        launcher: Launcher | None,
    ) -> None:
        self._db = db
        self._clock = clock
        self._hints = hints
        self._settings = settings
        self._books = books
        self._launcher = launcher
        self._since = clock.now()

    async def reconcile(self) -> Report:
        """Bring the provider and the books together: see ``domain.rentals.plan``. Raises what the Launcher raises."""
        launcher = self._launcher
        if launcher is None:
            raise RentingImpossible("No provider of pods is set up; set TROUPE_RUNPOD_API_KEY.")
        # In this order: a request is in the books before its pod can be in the list.
        pods = await launcher.list()
        await self._books.note_joins()
        installation, books, heard = await self._db.read(self._books.read, launcher.provider, pods)
        steps = plan(pods, books, heard, installation, self._clock.now(), self._limits())
        # At once, so that one that the provider keeps us waiting for does not hold up the others.
        outcomes = await asyncio.gather(*(self._try(launcher, step, books, pods) for step in steps))
        done = tuple(step for step, outcome in zip(steps, outcomes, strict=True) if outcome is True)
        if done:
            self._hints.wake()
        return Report(done, tuple(outcome for outcome in outcomes if isinstance(outcome, str)))

    async def sweep(self) -> None:
        """Reconcile from time to time; a provider that does not answer is told in the log, once each time."""
        if self._launcher is None:
            return
        try:
            for problem in (await self.reconcile()).problems:
                log.warning("%s", problem)
        except TroupeError as error:
            log.warning("rented pods were not reconciled: %s", error.detail)

    def _limits(self) -> Limits:
        settings = self._settings
        return Limits(
            grace=settings.rental_grace_seconds,
            asking=settings.rental_asking_seconds,
            join=settings.pod_join_seconds,
            silence=settings.pod_silence_seconds,
            since=self._since,
        )

    async def _try(
        self, launcher: Launcher, step: Step, books: Sequence[Rental], pods: Sequence[RentedPod]
    ) -> bool | str:
        """Do one step; False where somebody else was quicker, words where it cannot be done now."""
        try:
            done = await self._do(launcher, step, books, pods)
        except TroupeError as error:
            return f"{step.name or step.pod}: {error.detail}"
        if done:
            log.info("%s %s (%s): %s", step.kind, step.pod or step.rental, step.name, step.reason)
        return done

    async def _do(self, launcher: Launcher, step: Step, books: Sequence[Rental], pods: Sequence[RentedPod]) -> bool:
        """Do one step; False where somebody else was quicker."""
        rental = next((one for one in books if one.id == step.rental), None)
        pod = next((one for one in pods if one.id == step.pod), None)
        if step.kind == "adopt" and pod is not None and rental is not None:
            return await self._db.write(self._books.created, rental.id, pod)
        if step.kind == "give_up" and rental is not None:
            over = FAILED if rental.state == REQUESTED else ENDED
            return await self._db.write(self._books.finish, rental.id, (rental.state,), over, step.reason)
        if step.kind == "gone" and rental is not None and step.pod is not None:
            if await launcher.find(step.pod) is not None:
                return False
            return await self._db.write(self._books.finish, rental.id, (rental.state,), ENDED, _told(rental, step))
        return await self._end(launcher, step, rental, str(step.pod))

    async def _end(self, launcher: Launcher, step: Step, rental: Rental | None, provider_id: str) -> bool:
        if rental is None:
            return await launcher.end(provider_id)
        # Only from the state in which this was decided: a pod that joined in the last moment is kept.
        if not await self._db.write(self._books.begin_end, rental, (rental.state,), _told(rental, step)):
            return False
        await launcher.end(provider_id)
        await self._db.write(self._books.finish, rental.id, (ENDING,), ENDED, _told(rental, step))
        return True


def _told(rental: Rental, step: Step) -> str:
    """Why a rental ends: what was said when it began to end, if it had."""
    return rental.reason or step.reason
