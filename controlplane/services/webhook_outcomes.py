"""What comes of an attempt to deliver a webhook: noted, tried again later, given up, or the webhook is disabled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from controlplane.db import outbox
from controlplane.db import webhooks as webhook_rows
from controlplane.domain.events import WEBHOOK_DISABLED
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
from controlplane.ports import PostAnswer
from controlplane.services.events import append

GIVEN_UP = "given_up"


@dataclass(frozen=True)
class Taken:
    """One attempt to be made: the message, and the address as it was when the attempt was claimed."""

    delivery: Delivery
    webhook: Webhook
    body: str


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
