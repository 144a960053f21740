"""SQL of what is kept for a time only: the rows of jobs that nothing refers to any more."""

from __future__ import annotations

from sqlalchemy import Connection, delete, exists, select, tuple_

from controlplane.db.tables import assets, attempts, jobs, versions
from controlplane.domain.jobs import FINAL
from controlplane.domain.pages import Position


def jobs_from(c: Connection, project_id: str, before: float, after: Position | None, limit: int) -> list[Position]:
    """The places of a project's jobs that were accepted before a moment, oldest first, strictly after one of them."""
    query = select(jobs.c.created_at, jobs.c.id).where(jobs.c.project_id == project_id, jobs.c.created_at < before)
    if after is not None:
        query = query.where(tuple_(jobs.c.created_at, jobs.c.id) > (after.created_at, after.id))
    rows = c.execute(query.order_by(jobs.c.created_at, jobs.c.id).limit(limit))
    return [Position(row.created_at, row.id) for row in rows]


def remove_jobs(c: Connection, project_id: str, ids: list[str], finished_before: float) -> int:
    """Delete those of the jobs, with their attempts, that ended before a moment and that nothing refers to.

    A job stays as long as an asset that it made, in whatever state, or the version that it trained. What another
    process holds at the moment is left to it.
    """
    has_asset = exists().where(assets.c.job_id == jobs.c.id)
    has_version = exists().where(versions.c.project_id == jobs.c.project_id, versions.c.job_id == jobs.c.id)
    over = select(jobs.c.id).where(
        jobs.c.project_id == project_id,
        jobs.c.id.in_(ids),
        jobs.c.status.in_(FINAL),
        jobs.c.finished_at < finished_before,
        ~has_asset,
        ~has_version,
    )
    found = list(c.execute(over.with_for_update(skip_locked=True)).scalars())
    if found:
        c.execute(delete(attempts).where(attempts.c.project_id == project_id, attempts.c.job_id.in_(found)))
        c.execute(delete(jobs).where(jobs.c.project_id == project_id, jobs.c.id.in_(found)))
    return len(found)
