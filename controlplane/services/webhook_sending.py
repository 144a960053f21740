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
from controlplane.domain.events import WEBHOOK_DISABLED, Event
from controlplane.domain.webhooks import (
    DELIVERED,
    FAILED,
    GONE,
    KEPT_ATTEMPTS,
    WAITING,
    Delivery,
    Webhook,
    pause_after,
)
from controlplane.errors import WebhookUnreachable
from controlplane.ports import Clock, PostAnswer, WebhookPost
from controlplane.services.events import Hints, append
from controlplane.services.webhook_bodies import WebhookBodies, message

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
class Taken:
    """One attempt to be made: the message, and the address as it was when the attempt was claimed."""

    delivery: Delivery
    webhook: Webhook
    body: str


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
            return False
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


GIVEN_UP = "given_up"


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt: an answer, or why there was none. ``seconds`` it took; ``chance`` in 0..1."""

    taken: Taken
    at: float
    seconds: float
    answer: PostAnswer | None
    no_answer: str
    give_up_seconds: float
    chance: float

    @property
    def arrived(self) -> bool:
        """Whether the receiver has it."""
        return self.answer is not None and 200 <= self.answer.status < 300

    @property
    def fault(self) -> str:
        """Why it did not arrive, "" where it did."""
        if self.answer is None:
            return self.no_answer
        return "" if self.arrived else f"the answer was {self.answer.status}"

    def row(self) -> dict[str, object]:
        """The attempt as the log keeps it."""
        return {
            "at": self.at,
            "status": self.answer.status if self.answer is not None else None,
            "seconds": round(self.seconds, 3),
            "error": self.fault or None,
            "answer": self.answer.head if self.answer is not None else "",
        }


def claim_deliveries(c: Connection, wanted: Sequence[Delivery], until: float, now: float) -> list[Delivery]:
    """Take deliveries on until a moment, each with its body; returns what nobody else took."""
    return [dataclasses.replace(one, claim_no=one.claim_no + 1) for one in outbox.take(c, wanted, until, now)]


def note_outcome(c: Connection, outcome: Outcome, now: float) -> str:
    """Write down what came of an attempt, unless somebody else has claimed the delivery since.

    Returns ``delivered``, ``failed`` or ``given_up``.
    """
    taken = outcome.taken
    webhook = webhook_rows.get(c, taken.webhook.project_id, taken.webhook.id)
    if webhook is not None and (not outcome.arrived or webhook.failing_since is not None):
        # Before its delivery, as it is going to change: whoever disables a webhook locks its deliveries after it.
        webhook = webhook_rows.get(c, webhook.project_id, webhook.id, locked=True)
    delivery = outbox.get(c, taken.webhook.id, taken.delivery.id, locked=True)
    if webhook is None or delivery is None or delivery.claim_no != taken.delivery.claim_no:
        return DELIVERED if outcome.arrived else FAILED
    noted = {
        "tries": delivery.tries + 1,
        "attempts": [*(dict(one) for one in delivery.attempts), outcome.row()][-KEPT_ATTEMPTS:],
    }
    if outcome.arrived:
        if webhook.failing_since is not None:
            webhook_rows.change(c, webhook, failing_since=None)
        outbox.change(c, delivery, state=DELIVERED, finished_at=now, **noted)
        return DELIVERED
    asked = outcome.answer.retry_after if outcome.answer is not None else None
    pause = pause_after(delivery.tries + 1, outcome.chance, asked)
    if _is_disabled(c, webhook, outcome, now) or pause is None:
        outbox.change(c, delivery, state=FAILED, finished_at=now, **noted)
        return GIVEN_UP
    outbox.change(c, delivery, state=WAITING, next_at=now + pause, **noted)
    return FAILED


def _is_disabled(c: Connection, webhook: Webhook, outcome: Outcome, now: float) -> bool:
    """Remember since when a webhook fails, and disable one that wants no more or has failed for too long."""
    if not webhook.enabled:
        return True
    since = webhook.failing_since if webhook.failing_since is not None else outcome.at
    reason = ""
    if outcome.answer is not None and outcome.answer.status == GONE:
        reason = f"it answered {GONE}"
    elif now - since >= outcome.give_up_seconds:
        reason = f"every attempt has failed for {outcome.give_up_seconds / 86400:g} days"
    if not reason:
        webhook_rows.change(c, webhook, failing_since=since)
        return False
    webhook_rows.change(c, webhook, enabled=False, disabled_reason=reason, failing_since=since, updated_at=now)
    webhook_rows.renew_version(c)
    outbox.give_up(c, webhook.id, now)
    told = {"webhook_id": webhook.id, "url": webhook.url, "reason": reason}
    append(c, webhook.project_id, WEBHOOK_DISABLED, told, now=now)
    return True


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
