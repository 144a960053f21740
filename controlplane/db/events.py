"""The event log's statements."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update

from controlplane.db import outbox
from controlplane.db.rows import values_of
from controlplane.db.tables import events, installation
from controlplane.domain.events import JOB_FINAL, JOB_PROGRESS, Event

_COMMIT_ORDER_LOCK = 0x74726F75  # any fixed number
_WAITING = "waiting events"
_IN_ORDER = "commit in the order of events"
_AT_ONCE = 100
"""Events in one INSERT."""

WINDOW = 20_000
"""Ids that one statement looks through at most, so that none goes on for long however rare its matches are."""


def append(
    c: Connection,
    project_id: str,
    type: str,
    data: Mapping[str, Any],
    job_id: str | None,
    character_id: str | None,
    now: float,
) -> None:
    """Write one event with the transaction; it waits until the transaction is about to end."""
    c.info[_WAITING].append((project_id, job_id, character_id, type, json.dumps(dict(data)), now))


def begin(c: Connection) -> None:
    """No event waits yet; the commit edge calls this, as a connection outlives a transaction that failed."""
    c.info[_WAITING] = []
    c.info[_IN_ORDER] = False


def types_of(c: Connection) -> list[str]:
    """The types of the events of this transaction, for whoever counts them once it is committed."""
    return [row[3] for row in c.info[_WAITING]]


def commit_in_order(c: Connection) -> None:
    """Let this transaction take its place among those that write events, though it may write none.

    Whatever is written with an event that becomes visible after this transaction then knows of it.
    """
    c.info[_IN_ORDER] = True


def write_waiting(c: Connection) -> None:
    """Write the events that waited for the end of the transaction; the commit edge calls this, nobody else.

    A reader resumes by id, so ids must become visible in their order, which sequences alone do not promise. Hence
    the lock; and hence its being the last one that a transaction takes, else transactions would deadlock over it.
    What webhooks are to be told of is noted here as well: the transaction that has the event has the delivery.
    """
    rows = c.info[_WAITING]
    if (rows or c.info[_IN_ORDER]) and c.dialect.name == "postgresql":
        c.execute(select(func.pg_advisory_xact_lock(_COMMIT_ORDER_LOCK)))
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        parameters = tuple(value for row in some for value in row)
        written = c.exec_driver_sql(_insertion(c.dialect.name, len(some)), parameters).all()
        outbox.note(c, [outbox.Told(*row) for row in written], some[-1][-1])


@lru_cache(_AT_ONCE * 2)
def _insertion(dialect: str, number: int) -> str:
    """One statement for all rows; composing it anew each time would cost more than running it.

    It also answers, as of its own moment and so behind the lock, which set of webhooks is in force.
    """
    row = "(?, ?, ?, ?, ?, ?)"
    if dialect == "postgresql":
        kinds = ("varchar", "varchar", "varchar", "varchar", "json", "double precision")
        row = f"({', '.join(f'CAST(%s AS {kind})' for kind in kinds)})"
    return (
        "INSERT INTO events (project_id, job_id, character_id, type, data, created_at) "
        f"VALUES {', '.join([row] * number)} "
        "RETURNING id, project_id, type, (SELECT webhooks FROM installation)"
    )


def after(
    c: Connection,
    project_id: str,
    after_id: int,
    job_id: str | None = None,
    character_id: str | None = None,
    limit: int = 200,
    up_to: int | None = None,
    types: Collection[str] = (),
) -> list[Event]:
    """Events with a greater id, at most ``up_to``, oldest first; ``types`` none means every type."""
    query = select(events).where(events.c.project_id == project_id, events.c.id > after_id)
    if up_to is not None:
        query = query.where(events.c.id <= up_to)
    if job_id is not None:
        query = query.where(events.c.job_id == job_id)
    if character_id is not None:
        query = query.where(events.c.character_id == character_id)
    if types:
        query = query.where(events.c.type.in_(sorted(types)))
    return [_event(row) for row in c.execute(query.order_by(events.c.id).limit(limit))]


def of_all_projects(c: Connection, after_id: int, limit: int) -> list[Event]:
    """What is new since an id, oldest first."""
    query = select(events).where(events.c.id > after_id).order_by(events.c.id).limit(limit)
    return [_event(row) for row in c.execute(query)]


def of_ids(c: Connection, ids: Collection[int]) -> dict[int, Event]:
    """Some events by id; what is gone is absent."""
    return {row.id: _event(row) for row in c.execute(select(events).where(events.c.id.in_(sorted(ids))))}


def last_id(c: Connection, project_id: str | None = None) -> int:
    """The newest event's id, of one project or of all; 0 where there is none."""
    query = select(func.max(events.c.id))
    if project_id is not None:
        query = query.where(events.c.project_id == project_id)
    # Where everything was dropped, the next id is still a greater one.
    return max(int(c.execute(query).scalar() or 0), dropped_to(c))


def dropped_to(c: Connection) -> int:
    """Up to which id the log was cut off; 0 where it is whole. Progress may be missing behind it as well."""
    return int(c.execute(select(installation.c.events_dropped_to)).scalar() or 0)


def drop_older(c: Connection, before: float, limit: int) -> int:
    """Cut off the oldest events, at most so many; returns how many went."""
    oldest = c.execute(select(events.c.id, events.c.created_at).order_by(events.c.id).limit(limit)).all()
    old = list(takewhile(lambda row: row.created_at < before, oldest))
    if not old:
        return 0
    last = old[-1].id
    gone = c.execute(delete(events).where(events.c.id <= last)).rowcount
    later = installation.c.events_dropped_to < last
    c.execute(update(installation).where(later).values(events_dropped_to=last))
    return gone


def drop_progress(c: Connection, before: float, limit: int) -> bool:
    """Drop what finished jobs told of their progress, but for the last word of each.

    Goes once through the log, ``limit`` rows at a call, up to what was written before a moment; True where there is
    more to go through.
    """
    done = int(c.execute(select(installation.c.progress_dropped_to)).scalar() or 0)
    query = select(events.c.id, events.c.created_at, events.c.type).where(events.c.id > done).order_by(events.c.id)
    ready = list(takewhile(lambda row: row.created_at < before, c.execute(query.limit(limit)).all()))
    if not ready:
        return False
    ends = [row.id for row in ready if row.type in JOB_FINAL]
    if ends and _drop_progress_of(c, ends, limit) == limit:
        return True
    same = installation.c.progress_dropped_to == done
    c.execute(update(installation).where(same).values(progress_dropped_to=ready[-1].id))
    return len(ready) == limit


def _drop_progress_of(c: Connection, ends: Sequence[int], limit: int) -> int:
    """Drop the progress of the jobs that these final events ended, at most ``limit`` rows."""
    end, told, later = events.alias("ending"), events.alias("told"), events.alias("later")
    superseded = (
        select(later.c.id)
        .where(later.c.job_id == told.c.job_id, later.c.type == JOB_PROGRESS, later.c.id > told.c.id)
        .exists()
    )
    query = (
        select(told.c.id)
        .join(end, (end.c.job_id == told.c.job_id) & (told.c.id < end.c.id))
        .where(end.c.id.in_(ends), told.c.type == JOB_PROGRESS, superseded)
        .limit(limit)
    )
    ids = list(c.execute(query).scalars())
    return c.execute(delete(events).where(events.c.id.in_(ids))).rowcount if ids else 0


def _event(row: Row[Any]) -> Event:
    return Event(**values_of(row))
