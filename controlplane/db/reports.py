"""The statement that answers a pod's report: whose attempt it is, and whether it is still wanted."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, func, select

from controlplane.db.tables import attempts, jobs
from controlplane.domain.jobs import ATTEMPT_OPEN

_others = attempts.alias("others")
_NEWEST = select(func.max(_others.c.number)).where(_others.c.job_id == attempts.c.job_id).scalar_subquery()
_LOOK = (
    select(
        attempts.c.pod_id,
        attempts.c.job_id,
        attempts.c.status.label("of_attempt"),
        attempts.c.number,
        jobs.c.status.label("of_job"),
        _NEWEST.label("newest"),
    )
    .join(jobs, jobs.c.id == attempts.c.job_id)
    .where(attempts.c.project_id == bindparam("project"), attempts.c.id == bindparam("id"))
)


@dataclass(frozen=True)
class Reporter:
    """The attempt that a report is about, and its job's status."""

    pod_id: str
    job_id: str
    status: str
    live: bool
    is_newest: bool


def look(c: Connection, project_id: str, attempt_id: str) -> Reporter | None:
    """The attempt, None where there is none."""
    row = c.execute(_LOOK, {"project": project_id, "id": attempt_id}).one_or_none()
    if row is None:
        return None
    return Reporter(row.pod_id, row.job_id, row.of_job, row.of_attempt in ATTEMPT_OPEN, row.number == row.newest)
