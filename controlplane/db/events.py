"""The event log's statements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, func, insert, select

from controlplane.db.rows import values_of
from controlplane.db.tables import events
from controlplane.domain.events import Event

_COMMIT_ORDER_LOCK = 0x74726F75  # any fixed number
_WAITING = "waiting events"


def append(
    c: Connection,
    project_id: str,
    type: str,
    data: Mapping[str, Any],
    job_id: str | None,
    character_id: str | None,
    now: float,
) -> None:
    """Write one event with the transaction; on PostgreSQL it waits until the transaction is about to end."""
    row = {
        "project_id": project_id,
        "type": type,
        "data": dict(data),
        "job_id": job_id,
        "character_id": character_id,
        "created_at": now,
    }
    if c.dialect.name == "postgresql":
        c.info[_WAITING].append(row)
    else:
        c.execute(insert(events).values(**row))


def begin(c: Connection) -> None:
    """No event waits yet; the commit edge calls this, as a connection outlives a transaction that failed."""
    c.info[_WAITING] = []


def write_waiting(c: Connection) -> None:
    """Write the events that waited for the end of the transaction; the commit edge calls this, nobody else.

    A reader resumes by id, so ids must become visible in their order, which sequences alone do not promise. Hence
    the lock; and hence its being the last one that a transaction takes, else transactions would deadlock over it.
    """
    rows = c.info[_WAITING]
    if rows:
        c.execute(select(func.pg_advisory_xact_lock(_COMMIT_ORDER_LOCK)))
        for row in rows:
            c.execute(insert(events).values(**row))


def after(
    c: Connection,
    project_id: str,
    after_id: int,
    job_id: str | None = None,
    character_id: str | None = None,
    limit: int = 200,
) -> list[Event]:
    """Events with a greater id, oldest first."""
    query = select(events).where(events.c.project_id == project_id, events.c.id > after_id)
    if job_id is not None:
        query = query.where(events.c.job_id == job_id)
    if character_id is not None:
        query = query.where(events.c.character_id == character_id)
    return [Event(**values_of(row)) for row in c.execute(query.order_by(events.c.id).limit(limit))]


def last_id(c: Connection, project_id: str) -> int:
    """The newest event's id, 0 where there is none."""
    newest = c.execute(select(func.max(events.c.id)).where(events.c.project_id == project_id)).scalar()
    return int(newest or 0)
