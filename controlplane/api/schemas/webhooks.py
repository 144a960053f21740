"""Webhooks: what is asked for, how they are shown, and what became of each delivery."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from controlplane.api.schemas.base import Links, PageQuery, Reply, Request, Timestamp
from controlplane.domain.events import TYPES
from controlplane.domain.webhooks import DEFAULT_TYPES


def _known(types: list[str]) -> list[str]:
    unknown = sorted(set(types) - set(TYPES))
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)[:200]}; known: {', '.join(TYPES)}")
    return list(dict.fromkeys(types))


Url = Annotated[str, Field(min_length=1, max_length=2000, description="https, on the public internet.")]
Description = Annotated[str, Field(max_length=500)]
Types = Annotated[
    list[str],
    Field(min_length=1, max_length=len(TYPES), description="Types of events; `job.progress` only where it is named."),
    AfterValidator(_known),
]


class CreateWebhook(Request):
    """Who is to be told of what."""

    url: Url
    types: Types = Field(default_factory=lambda: list(DEFAULT_TYPES))
    description: Description = ""


class PatchWebhook(Request):
    """What is to be changed; what is absent or null stays."""

    url: Url | None = None
    types: Types | None = None
    description: Description | None = None
    enabled: bool | None = Field(None, description="Enabling one that was disabled forgives its failures.")


class Webhook(Reply):
    """An address that is told of events, without its secret."""

    id: str
    url: str
    types: list[str]
    description: str
    enabled: bool
    disabled_reason: str | None = None
    failing_since: Timestamp | None = Field(None, description="Null while the last attempt went well.")
    previous_secret_until: Timestamp | None = Field(
        None, description="Until then messages carry a signature by the previous secret as well."
    )
    created_at: Timestamp
    updated_at: Timestamp


class WebhookSecret(Reply):
    """A webhook and its secret, which is shown here and never again."""

    webhook: Webhook
    secret: str = Field(description="`whsec_` and base64: the key of Standard Webhooks' signatures.")
    links: Links


class WebhookPage(Reply):
    """All webhooks, oldest first."""

    items: list[Webhook]
    next_cursor: str | None = None


class DeliveryAttempt(Reply):
    """One try."""

    at: Timestamp
    status: int | None = Field(None, description="HTTP status of the answer, null where there was none.")
    seconds: float
    error: str | None = None
    answer: str = Field(description="The first 500 bytes of the answer.")


class WebhookDelivery(Reply):
    """One message for one webhook and what became of it."""

    id: str = Field(description="The `webhook-id` of every try.")
    webhook_id: str
    event_id: int | None = Field(None, description="Null for a test.")
    type: str
    state: Literal["waiting", "delivered", "failed"]
    attempts: list[DeliveryAttempt] = Field(description="The last ones, oldest first.")
    next_at: Timestamp | None = Field(None, description="When it is tried next, null where it is over.")
    body: str | None = Field(None, description="What is sent; null in lists and before the first try.")
    created_at: Timestamp
    finished_at: Timestamp | None = None


class DeliveryPage(Reply):
    """Deliveries, newest first."""

    items: list[WebhookDelivery]
    next_cursor: str | None = None


class DeliveryReply(Reply):
    """A delivery, and where to follow it."""

    delivery: WebhookDelivery
    links: Links


class DeliveriesQuery(PageQuery):
    """Which deliveries to list."""

    state: Literal["waiting", "delivered", "failed"] | None = None
