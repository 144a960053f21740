"""Webhooks: who is told of what happens, each telling with its tries, and when to try again."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.domain.events import CHARACTER_FAILED, CHARACTER_READY, JOB_CANCELLED, JOB_FAILED, JOB_SUCCEEDED

WAITING = "waiting"
DELIVERED = "delivered"
FAILED = "failed"

TEST = "webhook.test"
"""The type of a message that somebody asked for to see whether it arrives; nothing has happened."""

DEFAULT_TYPES = (JOB_SUCCEEDED, JOB_FAILED, JOB_CANCELLED, CHARACTER_READY, CHARACTER_FAILED)

OVERLAP_SECONDS = 24 * 3600.0
"""After a rotation both secrets sign for so long."""

PAUSES = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 23000.0)
"""Seconds behind the first, second, ... failed try: the last of the eight comes a day after the first."""
JITTER = 0.1
LONGEST_ASKED_PAUSE = 3600.0
"""A receiver may ask for patience, but not for more than this."""

KEPT_ATTEMPTS = 20
GONE = 410


@dataclass(frozen=True)
class Webhook:
    """An address that is told of events of some types. Times are epoch seconds; ``failing_since`` is None while the
    last attempt went well. Both secrets sign until ``previous_until``."""

    id: str
    project_id: str
    url: str
    types: tuple[str, ...]
    secret: str = field(repr=False)
    created_at: float
    updated_at: float
    description: str = ""
    enabled: bool = True
    disabled_reason: str = ""
    previous_secret: str | None = field(default=None, repr=False)
    previous_until: float | None = None
    failing_since: float | None = None

    def secrets(self, now: float) -> tuple[str, ...]:
        """What signs at this moment, the newest first."""
        overlapping = self.previous_secret is not None and (self.previous_until or 0.0) > now
        return (self.secret, self.previous_secret) if overlapping and self.previous_secret else (self.secret,)


@dataclass(frozen=True)
class Delivery:
    """One message for one webhook; its id is the ``webhook-id`` of every try.

    ``next_at`` is when it is tried next, or, while somebody is trying, when that attempt counts as lost. ``tries``
    counts since the message was made or sent again by hand; ``attempts`` are the last ones, oldest first, each
    ``{at, status, seconds, error, answer}``.
    """

    id: str
    project_id: str
    webhook_id: str
    type: str
    state: str
    next_at: float
    created_at: float
    event_id: int | None = None
    body: str | None = None
    tries: int = 0
    claim_no: int = 0
    attempts: tuple[Mapping[str, Any], ...] = ()
    finished_at: float | None = None


def new_secret() -> str:
    """A secret in the form of Standard Webhooks: 192 random bits."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


def pause_after(tries: int, chance: float, asked: float | None = None) -> float | None:
    """Seconds until the next try after ``tries`` failed ones, None where it is given up.

    ``chance`` in 0..1 spreads those that failed together; ``asked`` is what the receiver wants to be left alone.
    """
    if tries > len(PAUSES):
        return None
    pause = PAUSES[tries - 1] * (1.0 - JITTER + 2.0 * JITTER * chance)
    return max(pause, min(asked or 0.0, LONGEST_ASKED_PAUSE))
