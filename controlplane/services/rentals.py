"""Rentals: asking a provider for pods, showing what they cost, and ending them.

A row is written before the provider is called and its id right after. The pod's name holds the row's id, so whatever
is lost on the way - an answer, a process - is found again by the reconciler.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Coroutine, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from controlplane.db import rentals as rental_rows
from controlplane.db.database import Database
from controlplane.domain.pages import Page, Position, checked_limit, decode, page_of
from controlplane.domain.rentals import ENDED, ENDING, OPEN, Offer, PodOrder, PodWish, Rental
from controlplane.errors import NoOffer, NotFound, RentingImpossible, TroupeError
from controlplane.ports import Clock, Launcher
from controlplane.services.events import Hints
from controlplane.services.idempotency import Claim
from controlplane.services.rental_books import RentalBooks, RentRequest
from controlplane.settings import Settings

log = logging.getLogger("troupe.rentals")

ANSWER_SECONDS = 45.0
"""A request waits so long for the provider; then it is answered with the rental as it is."""
ASKED_FOR = "it was asked for"


class Rentals:
    """The rentals service. ``launcher`` is None where no provider is set up: then nothing can be rented."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        hints: Hints,
        settings: Settings,
        books: RentalBooks,
        join_token: str,
        launcher: Launcher | None,
    ) -> None:
        self._db = db
        self._clock = clock
        self._hints = hints
        self._settings = settings
        self._books = books
        self._join_token = join_token
        self._launcher = launcher
        self._under_way: set[asyncio.Task[Rental]] = set()

    async def rent(self, project_id: str, wanted: RentRequest, once: Claim | None = None) -> Rental:
        """Rent one pod. Answers it as ``booting``, or as ``requested`` while the provider takes its time.

        ``once`` is the request's claim where it has an Idempotency-Key. Raises RentingImpossible, NoOffer, SpendLimit,
        IdempotencyMismatch, AnsweredBefore, and what the Launcher raises.
        """
        launcher = self._able()
        wish = self._wish(wanted)
        fitting = _fitting(await launcher.offers(wish), wanted.max_price_per_hour)
        rental, offers = await self._db.write(self._books.intend, project_id, launcher.provider, wanted, fitting, once)
        if not offers:
            return rental
        return await self._soon(self._ask(launcher, rental, self._order(rental, wish, wanted), offers, once), rental)

    async def get(self, project_id: str, rental_id: str) -> Rental:
        """One rental; NotFound where there is none."""
        await self._books.note_joins()
        found = await self._db.read(rental_rows.get, project_id, rental_id)
        if found is None:
            raise NotFound(f"There is no rental {rental_id}.")
        return found

    async def list(self, project_id: str, limit: int | None = None, cursor: str | None = None) -> Page[Rental]:
        """Rentals, newest first. Unprocessable where the cursor is none of ours."""
        await self._books.note_joins()
        size, before = checked_limit(limit), decode(cursor)
        found = await self._db.read(rental_rows.page, project_id, size + 1, before)
        return page_of(found, size, [Position(rental.created_at, rental.id) for rental in found])

    def cost(self, rental: Rental) -> float:
        """What a rental has cost so far, US dollars."""
        return rental.cost(self._clock.now())

    async def end(self, project_id: str, rental_id: str) -> Rental:
        """End a rental for good, whatever its pod does; its jobs are tried again on other pods.

        Where the provider cannot be reached it stays ``ending``, and the reconciler goes on trying.
        """
        rental = await self.get(project_id, rental_id)
        if rental.is_open:
            launcher = self._launcher_or_refuse()
            await self._db.write(self._books.begin_end, rental, OPEN, ASKED_FOR)
            rental = await self.get(project_id, rental_id)
            self._hints.wake()
            if rental.state == ENDING and rental.provider_id is not None:
                return await self._soon(self._end_at(launcher, rental.provider_id, rental), rental)
        return rental

    async def stop(self) -> None:
        """Let go of requests that are under way; the reconciler finds what comes of them."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _launcher_or_refuse(self) -> Launcher:
        if self._launcher is None:
            raise RentingImpossible("No provider of pods is set up; set TROUPE_RUNPOD_API_KEY.")
        return self._launcher

    def _able(self) -> Launcher:
        """The launcher, once everything is set that a pod needs to find us."""
        launcher = self._launcher_or_refuse()
        if not self._settings.pod_image:
            raise RentingImpossible("Which image rented pods run is not set; set TROUPE_POD_IMAGE.")
        url = self._settings.effective_public_url
        if not _is_public(url):
            raise RentingImpossible(
                f"A rented pod would be told to call {url}, which only reaches itself or its own network from there. "
                "Set TROUPE_PUBLIC_URL to an address that it can reach."
            )
        return launcher

    def _wish(self, wanted: RentRequest) -> PodWish:
        settings = self._settings
        return PodWish(
            # A GPU that is asked for by name is big enough unless a size is asked for as well.
            min_memory_gb=wanted.min_memory_gb or (1 if wanted.gpus else settings.pod_memory_gb),
            gpus=wanted.gpus,
            gpu_count=wanted.gpu_count,
            cloud=wanted.cloud or settings.pod_cloud,
            data_centres=settings.pod_data_centres if wanted.data_centres is None else wanted.data_centres,
            min_cuda=settings.pod_min_cuda,
        )

    def _order(self, rental: Rental, wish: PodWish, wanted: RentRequest) -> PodOrder:
        settings = self._settings
        secret = settings.pod_join_token_secret
        env = {
            "TROUPE_CONTROL_PLANE_URL": settings.effective_public_url,
            # RunPod puts a secret of the account in the place of such a reference when the pod boots.
            "TROUPE_JOIN_TOKEN": f"{{{{ RUNPOD_SECRET_{secret} }}}}" if secret else self._join_token,
            "TROUPE_POD_PORT": str(settings.pod_port),
            "TROUPE_POD_LABELS": ",".join(wanted.labels),
        }
        if settings.pod_volume_id or settings.pod_volume_gb:
            env["TROUPE_VOLUME"] = settings.pod_volume_path
        return PodOrder(
            name=rental.name,
            image=settings.pod_image,
            wish=wish,
            port=settings.pod_port,
            env=env,
            disk_gb=settings.pod_disk_gb,
            volume_gb=settings.pod_volume_gb,
            volume_id=settings.pod_volume_id,
            volume_path=settings.pod_volume_path,
            registry=settings.pod_registry,
        )

    async def _ask(
        self, launcher: Launcher, rental: Rental, order: PodOrder, offers: Sequence[Offer], once: Claim | None
    ) -> Rental:
        try:
            pod = await launcher.rent(order, offers)
        except TroupeError as error:
            await self._db.write(self._books.not_created, rental.id, error.detail, once)
            raise
        price = pod.price_per_hour or next((o.price_per_hour for o in offers if o.gpu == pod.gpu), None)
        if not await self._db.write(self._books.created, rental.id, dataclasses.replace(pod, price_per_hour=price)):
            # It was ended meanwhile, or the reconciler gave it another pod: this one is nobody's.
            return await self._end_at(launcher, pod.id, rental)
        return await self.get(rental.project_id, rental.id)

    async def _end_at(self, launcher: Launcher, provider_id: str, rental: Rental) -> Rental:
        """Terminate a pod and finish its rental if that is ending; what fails is left to the reconciler."""
        try:
            await launcher.end(provider_id)
        except TroupeError as error:
            log.warning("pod %s of rental %s is not ended yet: %s", provider_id, rental.id, error.detail)
        else:
            current = await self.get(rental.project_id, rental.id)
            if current.provider_id == provider_id:
                await self._db.write(self._books.finish, rental.id, (ENDING,), ENDED, current.reason)
            self._hints.wake()
        return await self.get(rental.project_id, rental.id)

    async def _soon(self, work: Coroutine[Any, Any, Rental], rental: Rental) -> Rental:
        """What the work answers, or the rental as it is now where that takes long; the work goes on by itself then."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._is_over)
        done, _ = await asyncio.wait({task}, timeout=ANSWER_SECONDS)
        return task.result() if done else rental

    def _is_over(self, task: asyncio.Task[Rental]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("a pod was not rented: %s", task.exception())


def _fitting(offers: Sequence[Offer], max_price: float | None) -> Sequence[Offer]:
    """The offers that come into question; NoOffer with what was wrong with each where none does."""
    told, fitting = [], []
    for offer in offers:
        obstacle = offer.obstacle
        if not obstacle and max_price is not None and offer.price_per_hour > max_price:
            obstacle = f"costs {offer.price_per_hour:.2f} dollars per hour"
        if obstacle:
            told.append(f"{offer.name} {obstacle}")
        else:
            fitting.append(offer)
    if not fitting:
        raise NoOffer(f"Nothing fits: {'; '.join(told[:8])}{' …' if len(told) > 8 else ''}.")
    return fitting


def _is_public(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_global
    except ValueError:
        return host not in ("", "localhost") and not host.endswith((".localhost", ".local"))
