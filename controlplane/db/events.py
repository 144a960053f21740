"""The event log's statements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, func, insert, select

from controlplane.db.rows import values_of
from controlplane.db.tables import events
from controlplane.domain.events import Event

_COMMIT_ORDER_LOCK = 0x74726F75  # any fixed number


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
        _waiting(c).append(row)
    else:
        c.execute(insert(events).values(**row))


def write_waiting(c: Connection) -> None:
    """Write the events that waited for the end of the transaction; the commit edge calls this, nobody else.

    A reader resumes by id, so ids must become visible in their order, which sequences alone do not promise. Hence
    the lock; and hence its being the last one that a transaction takes, else transactions would deadlock over it.
    """
    if c.dialect.name != "postgresql" or not (rows := _waiting(c)):
        return
    c.execute(select(func.pg_advisory_xact_lock(_COMMIT_ORDER_LOCK)))
    for row in rows:
        c.execute(insert(events).values(**row))
    rows.clear()


def _waiting(c: Connection) -> list[dict[str, Any]]:
    """The events of this connection's transaction. ``info`` outlives it: a transaction that fails leaves them there."""
    transaction = c.get_transaction()
    known: tuple[object, list[dict[str, Any]]] | None = c.info.get("waiting events")
    if known is None or known[0] is not transaction:
        known = (transaction, [])
        c.info["waiting events"] = known
    return known[1]


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
