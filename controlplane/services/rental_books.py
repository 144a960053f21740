"""The books of rented pods: the writes by which a rental goes from one state to the next, each in one transaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from controlplane.db import pods as pod_rows
from controlplane.db import rentals as rental_rows
from controlplane.db.database import Database
from controlplane.domain import events
from controlplane.domain.ids import new_id
from controlplane.domain.pods import DRAINING, LOST
from controlplane.domain.rentals import (
    BOOTING,
    ENDED,
    ENDING,
    FAILED,
    JOINED,
    REQUESTED,
    Offer,
    Rental,
    RentedPod,
    may_spend,
    tag,
    tagged_rental,
)
from controlplane.errors import NotFound, SpendLimit
from controlplane.ports import Clock
from controlplane.services.events import append
from controlplane.services.idempotency import Claim
from controlplane.settings import Settings


@dataclass(frozen=True)
class RentRequest:
    """The fields of ``POST /rentals``; None means the setting. Prices are US dollars per hour, memory is GB."""

    gpus: tuple[str, ...] = ()
    min_memory_gb: int | None = None
    gpu_count: int = 1
    max_price_per_hour: float | None = None
    max_hours: float | None = None
    cloud: str | None = None
    data_centres: tuple[str, ...] | None = None
    labels: tuple[str, ...] = ()


class RentalBooks:
    """The books. Methods that take a connection run inside ``db.write`` or ``db.read``."""

    def __init__(self, db: Database, clock: Clock, settings: Settings) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings

    def intend(
        self,
        c: Connection,
        project_id: str,
        provider: str,
        wanted: RentRequest,
        fitting: Sequence[Offer],
        repeated: Claim | None,
    ) -> tuple[Rental, Sequence[Offer]]:
        """Write down what is about to be asked for, and at most at what price; answers the offers that may be tried.

        No offers mean that this request was made before: the rental is that one's. Raises SpendLimit and
        IdempotencyMismatch.
        """
        rental_rows.lock_books(c)
        first = repeated.first_answer(c) if repeated is not None else None
        if first is not None:
            return must_get(c, str(first["rental_id"])), ()
        now = self._clock.now()
        running = rental_rows.books(c, provider)
        most = (self._settings.max_pods, self._settings.max_price_per_hour)
        refusals = [may_spend(running, offer.price_per_hour, *most) for offer in fitting]
        offers = [offer for offer, refusal in zip(fitting, refusals, strict=True) if not refusal]
        if not offers:
            raise SpendLimit(f"No pod was rented: {refusals[0]}.")
        rental_id = new_id("rental")
        rental = Rental(
            id=rental_id,
            project_id=project_id,
            provider=provider,
            name=tag(self._installation(c), rental_id),
            gpu=offers[0].gpu,
            state=REQUESTED,
            request={**dataclasses.asdict(wanted), "max_hours": self._max_hours(wanted)},
            price_per_hour=max(offer.price_per_hour for offer in offers),
            created_at=now,
            updated_at=now,
        )
        rental_rows.add(c, project_id, rental)
        if repeated is not None:
            repeated.keep(c, {"rental_id": rental.id}, now)
        return rental, offers

    def created(self, c: Connection, rental_id: str, pod: RentedPod) -> bool:
        """Write down a pod; True when it is the rental's now."""
        values = {"gpu": pod.gpu, "price_per_hour": pod.price_per_hour}
        known = {name: value for name, value in values.items() if value}
        now = self._clock.now()
        if rental_rows.change(c, rental_id, (REQUESTED,), state=BOOTING, provider_id=pod.id, updated_at=now, **known):
            return True
        rental = must_get(c, rental_id)
        if rental.state == ENDING and rental.provider_id is None:
            # Its cost counts from here on; the caller ends it, and should that fail, the reconciler.
            rental_rows.change(c, rental_id, (ENDING,), provider_id=pod.id, updated_at=now, **known)
        return rental.is_open and rental.state != ENDING and rental.provider_id == pod.id

    def not_created(self, c: Connection, rental_id: str, reason: str, once: Claim | None) -> None:
        """Write that the provider gave no pod: unless its request was answered already, it may be made again."""
        if once is not None:
            once.drop(c)
        self.finish(c, rental_id, (REQUESTED,), FAILED, reason)
        rental = must_get(c, rental_id)
        if rental.provider_id is None:
            self.finish(c, rental_id, (ENDING,), ENDED, reason)

    def begin_end(self, c: Connection, rental: Rental, states: Sequence[str], reason: str) -> bool:
        """Turn a rental that is in one of ``states`` to ``ending``; its pod gets no further work."""
        if not rental_rows.change(c, rental.id, states, state=ENDING, reason=reason, updated_at=self._clock.now()):
            return False
        for pod in rental_rows.pods_of(c, rental):
            if pod.state != LOST:
                pod_rows.change(c, pod.project_id, pod.id, state=DRAINING, draining=True)
        return True

    def finish(self, c: Connection, rental_id: str, states: Sequence[str], state: str, reason: str) -> bool:
        """Write that a rental is over. Its pod is lost at once: its jobs need not wait for heartbeats to stay away."""
        now = self._clock.now()
        rental = must_get(c, rental_id)
        if not rental_rows.change(c, rental_id, states, state=state, reason=reason, updated_at=now, ended_at=now):
            return False
        for pod in rental_rows.pods_of(c, rental):
            if pod.state == LOST:
                continue
            pod_rows.change(c, pod.project_id, pod.id, state=LOST, draining=True)
            told = {"pod_id": pod.id, "name": pod.name, "reason": reason}
            append(c, pod.project_id, events.POD_LOST, told, now=now)
        return True

    async def note_joins(self) -> None:
        """Write down which rented pods have registered."""
        if await self._db.read(rental_rows.newly_registered):
            await self._db.write(self._write_joins)

    def _write_joins(self, c: Connection) -> None:
        now = self._clock.now()
        for rental_id, pod_id in rental_rows.newly_registered(c):
            rental_rows.change(c, rental_id, (BOOTING, JOINED), state=JOINED, pod_id=pod_id, updated_at=now)
            rental = must_get(c, rental_id)
            pod = pod_rows.get(c, rental.project_id, pod_id)
            if pod is not None and pod.price_per_hour is None:
                pod_rows.change(c, rental.project_id, pod_id, price_per_hour=rental.price_per_hour)

    def read(
        self, c: Connection, provider: str, pods: Sequence[RentedPod]
    ) -> tuple[str, Sequence[Rental], Mapping[str, float]]:
        installation = self._installation(c)
        named = [rental_id for pod in pods if (rental_id := tagged_rental(installation, pod.name))]
        books = rental_rows.books(c, provider, named, [pod.id for pod in pods])
        return installation, books, rental_rows.heard(c)

    def _installation(self, c: Connection) -> str:
        return self._settings.installation or rental_rows.installation_id(c)

    def _max_hours(self, wanted: RentRequest) -> float | None:
        limits = [hours for hours in (wanted.max_hours, self._settings.max_pod_hours) if hours is not None]
        return min(limits, default=None)


def must_get(c: Connection, rental_id: str) -> Rental:
    """One rental; NotFound where there is none."""
    found = rental_rows.find(c, rental_id)
    if found is None:
        raise NotFound(f"There is no rental {rental_id}.")
    return found
