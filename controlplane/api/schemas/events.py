"""Event streams: what may be asked for, tickets, and an event as clients see it."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from controlplane.api.schemas.base import FreeJson, Links, Reply, Request, Timestamp
from controlplane.domain.events import TYPES

_AFTER = Field(None, ge=0, le=2**62, description="Only events after this id; `Last-Event-ID` wins.")
_TICKET = Field(None, max_length=1000, description="A ticket of `POST /events/ticket`, in place of other credentials.")


class OneStreamQuery(Request):
    """From where to read the events of one thing."""

    after: int | None = _AFTER
    ticket: str | None = _TICKET


class EventsQuery(OneStreamQuery):
    """From where to read events, and which."""

    character_id: str | None = Field(None, max_length=80)
    types: str | None = Field(
        None, max_length=1000, description="Types of events, with commas between; without it all of them."
    )

    @field_validator("types")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        unknown = set((value or TYPES[0]).split(",")) - set(TYPES)
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))[:200]}; known: {', '.join(TYPES)}")
        return value

    @property
    def type_set(self) -> frozenset[str]:
        """The types that are wanted, none for all of them."""
        return frozenset(self.types.split(",")) if self.types else frozenset()


class TicketRequest(Request):
    """Which stream a ticket is to open; without a name every stream of the project."""

    job_id: str | None = Field(None, max_length=40)
    character_id: str | None = Field(None, max_length=80)

    @model_validator(mode="after")
    def _one_of_them(self) -> TicketRequest:
        if self.job_id is not None and self.character_id is not None:
            raise ValueError("name a job or a character, not both")
        return self


class Ticket(Reply):
    """What opens a stream without any other credentials, once or more often, until it expires."""

    ticket: str
    expires_at: Timestamp = Field(description="After this it opens no stream; one that is open goes on.")
    links: Links


class Event(Reply):
    """The `data` line of one server-sent event."""

    id: int
    type: str
    job_id: str | None = None
    character_id: str | None = None
    created_at: Timestamp
    data: FreeJson
