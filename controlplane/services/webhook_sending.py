"""Sending webhooks: deliveries are claimed, sent, noted, and tried again until they arrive or a day is over.

A process that dies between sending and noting leaves a delivery that is sent again, under the same webhook-id. However
many deliveries wait for an address that does not answer, only a few of them are under way at a time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection
from standardwebhooks import Webhook as Signing

from controlplane import failpoints
from controlplane.db import events as event_rows
from controlplane.db import outbox
from controlplane.db import webhooks as webhook_rows
from controlplane.db.database import Database
from controlplane.domain.events import Event
from controlplane.domain.webhooks import Delivery, Webhook
from controlplane.errors import WebhookUnreachable
from controlplane.ports import Clock, PostAnswer, WebhookPost
from controlplane.services.events import Hints
from controlplane.services.webhook_bodies import WebhookBodies, message
from controlplane.services.webhook_outcomes import GIVEN_UP, Outcome, Taken, claim_deliveries, note_outcome

log = logging.getLogger("troupe.webhooks")

LEASE_SECONDS = 60.0
"""Longer than an attempt may take: after it a delivery counts as not sent."""
AT_ONCE = 128
EACH_AT_ONCE = 16
FAILING_AT_ONCE = 1
"""Attempts under way for one address in one process; an address that fails gets fewer."""
LOOKED_AT = 100
IDLE_SECONDS = 30.0
"""How late the first webhook of all is noticed at worst, where the hint from another replica got lost."""
PAUSE_SECONDS = 0.02
"""Between two looks, however much happens."""
STOP_SECONDS = 3.0
USER_AGENT = "Troupe-Webhooks"


@dataclass(frozen=True)
class _Look:
    """What there is to do: deliveries to send, to whom, what they tell of, and when the next one is due.

    ``strays`` are webhooks that were disabled or removed at the moment in which somebody asked for a delivery.
    """

    chosen: Sequence[Delivery]
    webhooks: Mapping[str, Webhook]
    events: Mapping[int, Event]
    next_at: float | None
    strays: Collection[str]


class WebhookSender:
    """Sends what is due, for as long as ``run`` runs. Any number of processes may do so on one database."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        hints: Hints,
        post: WebhookPost,
        bodies: WebhookBodies,
        give_up_seconds: float,
    ) -> None:
        self._db = db
        self._clock = clock
        self._hints = hints
        self._post = post
        self._bodies = bodies
        self._give_up_seconds = give_up_seconds
        self._under_way: dict[asyncio.Task[None], str] = {}
        self._bell = asyncio.Event()
        self._webhooks: Mapping[str, Webhook] = {}
        self._next_at: float | None = None
        self.counts: Counter[str] = Counter()
        """Attempts since the process started, by what came of them: ``delivered``, ``failed``, ``given_up``."""
        hints.on(Hints.WEBHOOKS, self._bell.set)
        hints.on(Hints.EVENTS, self._told)

    async def run(self) -> None:
        """Send until cancelled; what is under way then has a moment to end."""
        try:
            while True:
                begun = time.monotonic()
                self._bell.clear()
                if not await self._take_on():
                    await self._rest()
                    await asyncio.sleep(max(0.0, begun + PAUSE_SECONDS - time.monotonic()))
        finally:
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=STOP_SECONDS)
            for task in list(self._under_way):
                task.cancel()

    async def waiting(self) -> int:
        """How many deliveries wait for their next try, over all projects."""
        return await self._db.read(outbox.waiting)

    def _told(self) -> None:
        if self._webhooks:
            self._bell.set()

    async def _rest(self) -> None:
        """Sleep until something may be due."""
        seconds = IDLE_SECONDS if self._next_at is None else self._next_at - self._clock.now()
        try:
            async with asyncio.timeout(min(max(seconds, 0.0), IDLE_SECONDS)):
                await self._bell.wait()
        except TimeoutError:
            pass

    async def _take_on(self) -> bool:
        """Claim and begin what is due; False where there is nothing to do for now."""
        self._next_at = None  # the end of an attempt rings the bell
        if len(self._under_way) >= AT_ONCE:
            return False
        busy = Counter(self._under_way.values())
        full = [webhook_id for webhook_id, number in busy.items() if number >= _share(self._webhooks.get(webhook_id))]
        look = await self._db.read(_look, self._clock.now(), full, busy, AT_ONCE - len(self._under_way))
        self._webhooks = look.webhooks
        for webhook_id in look.strays:
            await self._db.write(outbox.give_up, webhook_id, self._clock.now())
        if not look.chosen:
            self._next_at = look.next_at
            return bool(look.strays)  # they may have hidden others
        ready = await asyncio.gather(*(self._with_body(one, look) for one in look.chosen))
        now = self._clock.now()
        taken = await self._db.write(claim_deliveries, ready, now + LEASE_SECONDS, now)
        for delivery in taken:
            self._begin(Taken(delivery, look.webhooks[delivery.webhook_id], delivery.body or ""))
        if not taken:
            self._next_at = now  # another process was quicker each time; look again in a moment
        return bool(taken)

    async def _with_body(self, delivery: Delivery, look: _Look) -> Delivery:
        if delivery.body is not None:
            return delivery
        event = look.events.get(delivery.event_id or 0)
        if event is None:  # dropped from the log before it was ever sent
            return dataclasses.replace(delivery, body=message(delivery.type, delivery.created_at, {}))
        return dataclasses.replace(delivery, body=await self._bodies.of(event))

    def _begin(self, taken: Taken) -> None:
        task = asyncio.create_task(self._send(taken))
        self._under_way[task] = taken.webhook.id
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._bell.set()
        if not task.cancelled() and task.exception() is not None:
            # Its lease runs out, and somebody tries again.
            log.warning("the outcome of a delivery is not noted: %s", task.exception())

    async def _send(self, taken: Taken) -> None:
        at, started = self._clock.now(), time.monotonic()
        answer: PostAnswer | None = None
        fault = ""
        try:
            await failpoints.areach("webhook before send")
            answer = await self._posted(taken, at)
            if failpoints.twice("webhook send"):
                answer = await self._posted(taken, at)
            await failpoints.areach("webhook after send")
        except WebhookUnreachable as error:
            fault = error.detail
        except failpoints.Cut as cut:
            answer, fault = None, str(cut)
        outcome = Outcome(taken, at, time.monotonic() - started, answer, fault, self._give_up_seconds, random.random())
        came_of_it = await self._db.write(note_outcome, outcome, self._clock.now())
        self.counts[came_of_it] += 1
        if came_of_it == GIVEN_UP:
            log.warning("webhook %s: delivery %s is given up: %s", taken.webhook.id, taken.delivery.id, outcome.fault)
            self._hints.wake(Hints.EVENTS, Hints.WEBHOOKS)

    async def _posted(self, taken: Taken, now: float) -> PostAnswer:
        headers = signed(taken.delivery.id, taken.body, taken.webhook.secrets(now), now)
        return await self._post.post(taken.webhook.url, taken.body.encode(), headers)


def _share(webhook: Webhook | None) -> int:
    """How many attempts for one address may be under way."""
    return EACH_AT_ONCE if webhook is not None and webhook.failing_since is None else FAILING_AT_ONCE


def _chosen(
    due: Sequence[Delivery], webhooks: Mapping[str, Webhook], busy: Mapping[str, int], room: int
) -> list[Delivery]:
    """What may be sent now: no address gets more than its share, nor do all together."""
    under_way = Counter(busy)
    chosen: list[Delivery] = []
    for delivery in due:
        webhook = webhooks.get(delivery.webhook_id)
        if webhook is not None and under_way[webhook.id] < _share(webhook) and len(chosen) < room:
            under_way[webhook.id] += 1
            chosen.append(delivery)
    return chosen


def signed(message_id: str, body: str, secrets: Collection[str], now: float) -> dict[str, str]:
    """The headers of Standard Webhooks, with one signature for each secret."""
    at = datetime.fromtimestamp(int(now), UTC)
    return {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": " ".join(Signing(secret).sign(message_id, at, body) for secret in secrets),
    }


def _look(c: Connection, now: float, full: Sequence[str], busy: Mapping[str, int], room: int) -> _Look:
    webhooks = webhook_rows.enabled(c)
    due = outbox.due(c, now, full, LOOKED_AT)
    chosen = _chosen(due, webhooks, busy, room)
    unwritten = [one.event_id for one in chosen if one.event_id is not None and one.body is None]
    return _Look(
        chosen=chosen,
        webhooks=webhooks,
        events=event_rows.of_ids(c, unwritten) if unwritten else {},
        next_at=None if due else outbox.next_due(c, full),
        strays={one.webhook_id for one in due if one.webhook_id not in webhooks},
    )
