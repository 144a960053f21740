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
) -> int:
    """Write one event and return its id."""
    if c.dialect.name == "postgresql":
        # A reader resumes by id, so ids must become visible in their order; sequences alone do not promise that.
        c.execute(select(func.pg_advisory_xact_lock(_COMMIT_ORDER_LOCK)))
    row_id = c.execute(
        insert(events)
        .values(
            project_id=project_id,
            type=type,
            data=dict(data),
            job_id=job_id,
            character_id=character_id,
            created_at=now,
        )
        .returning(events.c.id)
    ).scalar_one()
    return int(row_id)


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
