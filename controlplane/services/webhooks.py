"""Webhooks: who is told of what happens, and what became of each telling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection

from controlplane.db import events as event_rows
from controlplane.db import outbox
from controlplane.db import webhooks as webhook_rows
from controlplane.db.database import Database
from controlplane.domain.addresses import url_fault
from controlplane.domain.ids import new_id
from controlplane.domain.pages import Page, Position, checked_limit, decode, page_of
from controlplane.domain.webhooks import (
    DEFAULT_TYPES,
    OVERLAP_SECONDS,
    TEST,
    WAITING,
    Delivery,
    Webhook,
    new_secret,
)
from controlplane.errors import Conflict, NotFound, Unprocessable
from controlplane.ports import Clock
from controlplane.services.events import Hints
from controlplane.services.idempotency import Claim
from controlplane.services.webhook_bodies import message
from controlplane.settings import Settings

T = TypeVar("T")

MAX_WEBHOOKS = 50
"""Of one project."""
DISABLED_BY_HAND = "it was disabled by hand"


class Webhooks:
    """The webhooks service. A webhook's secret is in what ``create`` and ``rotate`` answer; show it nowhere else."""

    def __init__(self, db: Database, clock: Clock, hints: Hints, settings: Settings) -> None:
        self._db = db
        self._clock = clock
        self._hints = hints
        self._private = settings.webhook_private

    async def list(self, project_id: str) -> Sequence[Webhook]:
        """All webhooks of a project, oldest first."""
        return await self._db.read(webhook_rows.of_project, project_id)

    async def get(self, project_id: str, webhook_id: str) -> Webhook:
        """One webhook; NotFound."""
        return await self._db.read(_get, project_id, webhook_id)

    async def create(
        self,
        project_id: str,
        url: str,
        types: tuple[str, ...] = DEFAULT_TYPES,
        description: str = "",
    ) -> Webhook:
        """A new webhook with a new secret. It is told of every event that is committed after this.

        Unprocessable for an address that would never be dialled, Conflict where there are too many.
        """
        self._check(url)
        now = self._clock.now()
        webhook = Webhook(
            id=new_id("webhook"),
            project_id=project_id,
            url=url,
            types=types,
            secret=new_secret(),
            created_at=now,
            updated_at=now,
            description=description,
        )

        def create_webhook(c: Connection) -> Webhook:
            if webhook_rows.count(c, project_id) >= MAX_WEBHOOKS:
                raise Conflict(f"There are {MAX_WEBHOOKS} webhooks already; remove one first.")
            webhook_rows.add(c, webhook)
            _in_force(c)
            return webhook

        return await self._changed(create_webhook)

    async def change(self, project_id: str, webhook_id: str, **values: Any) -> Webhook:
        """Change ``url``, ``types``, ``description`` or ``enabled``; enabling one forgives its failures.

        NotFound; Unprocessable for an address that would never be dialled.
        """
        if "url" in values:
            self._check(values["url"])

        def change_webhook(c: Connection) -> Webhook:
            webhook, now = _get(c, project_id, webhook_id, locked=True), self._clock.now()
            told = dict(values)
            if told.get("enabled") is True:
                told |= {"disabled_reason": "", "failing_since": None}
            elif told.get("enabled") is False and webhook.enabled:
                told |= {"disabled_reason": DISABLED_BY_HAND}
                outbox.give_up(c, webhook_id, now)
            changed = dataclasses.replace(webhook, **told, updated_at=now)
            webhook_rows.change(c, webhook, **{**told, "updated_at": now})
            _in_force(c)
            return changed

        return await self._changed(change_webhook)

    async def remove(self, project_id: str, webhook_id: str) -> None:
        """Remove a webhook with its deliveries; NotFound."""

        def remove_webhook(c: Connection) -> None:
            webhook = _get(c, project_id, webhook_id, locked=True)
            webhook_rows.remove(c, webhook)
            outbox.drop_of(c, webhook_id)
            _in_force(c)

        await self._db.write(remove_webhook)
        self._hints.wake(Hints.WEBHOOKS)

    async def rotate(self, project_id: str, webhook_id: str) -> Webhook:
        """Give a webhook a new secret; the old one signs as well for a day. NotFound."""
        secret = new_secret()

        def rotate_secret(c: Connection) -> Webhook:
            webhook, now = _get(c, project_id, webhook_id, locked=True), self._clock.now()
            values: dict[str, Any] = {
                "secret": secret,
                "previous_secret": webhook.secret,
                "previous_until": now + OVERLAP_SECONDS,
                "updated_at": now,
            }
            webhook_rows.change(c, webhook, **values)
            return dataclasses.replace(webhook, **values)

        return await self._changed(rotate_secret)

    async def test(self, project_id: str, webhook_id: str) -> Delivery:
        """Send a message that says nothing, whatever the webhook's types. NotFound; Conflict where it is disabled."""
        now = self._clock.now()
        body = message(TEST, now, {"webhook_id": webhook_id, "detail": "This is a test; nothing has happened."})
        made = Delivery(new_id("msg"), project_id, webhook_id, TEST, WAITING, now, now, body=body)

        def send_test(c: Connection) -> Delivery:
            _sending(c, project_id, webhook_id)
            return outbox.add(c, made)

        return await self._changed(send_test)

    async def deliveries(
        self,
        project_id: str,
        webhook_id: str,
        state: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Delivery]:
        """What a webhook was told, newest first. NotFound; Unprocessable where the cursor is none of ours."""
        size, before = checked_limit(limit), decode(cursor)

        def read(c: Connection) -> Sequence[Delivery]:
            _get(c, project_id, webhook_id)
            return outbox.page(c, webhook_id, size + 1, before, state)

        found = await self._db.read(read)
        return page_of(found, size, [Position(one.created_at, one.id) for one in found])

    async def delivery(self, project_id: str, webhook_id: str, delivery_id: str) -> Delivery:
        """One message and what became of it; NotFound."""

        def read(c: Connection) -> Delivery:
            _get(c, project_id, webhook_id)
            return _delivery(c, webhook_id, delivery_id)

        return await self._db.read(read)

    async def redeliver(
        self, project_id: str, webhook_id: str, delivery_id: str, once: Claim | None = None
    ) -> Delivery:
        """Send a message again, with its old id and all its tries anew; one that waits is tried at once.

        NotFound; Conflict where the webhook is disabled.
        """

        def redeliver(c: Connection) -> Delivery:
            _sending(c, project_id, webhook_id)
            delivery, now = _delivery(c, webhook_id, delivery_id, locked=True), self._clock.now()
            if once is not None:
                if once.first_answer(c) is not None:
                    return delivery
                once.keep(c, {"delivery_id": delivery_id}, now)
            # Whoever is at it right now is fenced off: what comes of that is not written any more.
            again: dict[str, Any] = {"state": WAITING, "tries": 0, "next_at": now, "finished_at": None}
            outbox.change(c, delivery, **again, claim_no=delivery.claim_no + 1)
            return dataclasses.replace(delivery, **again)

        return await self._changed(redeliver)

    async def _changed(self, write: Callable[[Connection], T]) -> T:
        made = await self._db.write(write)
        self._hints.wake(Hints.WEBHOOKS)
        return made

    def _check(self, url: str) -> None:
        fault = url_fault(url, private=self._private)
        if fault:
            detail = f"{fault}; TROUPE_WEBHOOK_PRIVATE=true allows our own network and http, for development"
            raise Unprocessable(
                f"Nothing would be sent to this address: {detail}.", errors=[{"pointer": "/url", "detail": detail}]
            )


def _in_force(c: Connection) -> None:
    """What was changed counts for every event that is committed after this transaction, on every replica."""
    webhook_rows.renew_version(c)
    event_rows.commit_in_order(c)


def _get(c: Connection, project_id: str, webhook_id: str, *, locked: bool = False) -> Webhook:
    webhook = webhook_rows.get(c, project_id, webhook_id, locked=locked)
    if webhook is None:
        raise NotFound(f"There is no webhook {webhook_id}.")
    return webhook


def _sending(c: Connection, project_id: str, webhook_id: str) -> None:
    if not _get(c, project_id, webhook_id).enabled:
        raise Conflict("The webhook is disabled; enable it first.")


def _delivery(c: Connection, webhook_id: str, delivery_id: str, *, locked: bool = False) -> Delivery:
    delivery = outbox.get(c, webhook_id, delivery_id, locked=locked)
    if delivery is None:
        raise NotFound(f"There is no delivery {delivery_id}.")
    return delivery
