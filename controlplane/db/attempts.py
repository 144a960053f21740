"""The attempts table's statements."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from controlplane.db.rows import values_of
from controlplane.db.tables import attempts, jobs
from controlplane.domain.jobs import ATTEMPT_LIVE, HELD, Attempt
from controlplane.domain.pods import Load

_of_project = attempts.c.project_id == bindparam("project")
# Composed once, not each time: every job asks them.
_ADD = insert(attempts)
_GET = select(attempts).where(_of_project, attempts.c.id == bindparam("id"))
_OF_JOBS = (
    select(attempts)
    .where(_of_project, attempts.c.job_id.in_(bindparam("jobs", expanding=True)))
    .order_by(attempts.c.job_id, attempts.c.number)
)
_CURRENT = (
    select(attempts)
    .where(_of_project, attempts.c.job_id == bindparam("job"))
    .order_by(attempts.c.number.desc())
    .limit(1)
)
_CHANGE = update(attempts).where(attempts.c.project_id == bindparam("of_project"), attempts.c.id == bindparam("of_id"))


def add(c: Connection, project_id: str, attempt: Attempt) -> Attempt:
    """Write a new attempt. (job_id, number) is unique: two claims cannot both make the same try."""
    c.execute(_ADD, {**vars(attempt), "project_id": project_id})
    return attempt


def get(c: Connection, project_id: str, attempt_id: str) -> Attempt | None:
    """One attempt by its id (= prompt_id)."""
    row = c.execute(_GET, {"project": project_id, "id": attempt_id}).one_or_none()
    return Attempt(**values_of(row)) if row else None


def of_job(c: Connection, project_id: str, job_id: str) -> list[Attempt]:
    """A job's attempts, first try first."""
    return of_jobs(c, project_id, [job_id]).get(job_id, [])


def of_jobs(c: Connection, project_id: str, job_ids: Collection[str]) -> dict[str, list[Attempt]]:
    """Attempts by job id, first try first; jobs without any are absent."""
    found: dict[str, list[Attempt]] = {}
    if not job_ids:
        return found
    for row in c.execute(_OF_JOBS, {"project": project_id, "jobs": list(job_ids)}):
        attempt = Attempt(**values_of(row))
        found.setdefault(attempt.job_id, []).append(attempt)
    return found


def current(c: Connection, project_id: str, job_id: str) -> Attempt | None:
    """The job's newest attempt."""
    row = c.execute(_CURRENT, {"project": project_id, "job": job_id}).one_or_none()
    return Attempt(**values_of(row)) if row else None


def change(c: Connection, project_id: str, attempt_id: str, **values: Any) -> None:
    """Write columns of one attempt; the caller has checked its claim in the same transaction."""
    c.execute(_CHANGE, {"of_project": project_id, "of_id": attempt_id, **values})


def raise_progress_seq(c: Connection, project_id: str, attempt_id: str, seq: int) -> bool:
    """Take note of a progress report; False where this or a later one was noted before."""
    changed = c.execute(
        update(attempts)
        .where(attempts.c.project_id == project_id, attempts.c.id == attempt_id, attempts.c.progress_seq < seq)
        .values(progress_seq=seq)
    )
    return changed.rowcount == 1


def loads(c: Connection, project_id: str, pod_ids: Collection[str]) -> dict[str, Load]:
    """The load of some pods, derived from the attempts sent to them; pods without attempts are absent.

    Both statements start from an index, however many attempts there ever were.
    """
    counted = c.execute(
        select(attempts.c.pod_id, func.count())
        .join(jobs, jobs.c.id == attempts.c.job_id)
        .where(jobs.c.status.in_(HELD), attempts.c.project_id == project_id, attempts.c.status.in_(ATTEMPT_LIVE))
        .group_by(attempts.c.pod_id)
    )
    running: dict[str, int] = {row[0]: row[1] for row in counted}
    found = {}
    for pod_id in pod_ids:
        newest = select(attempts.c.base_model, attempts.c.lora_sha256, attempts.c.created_at)
        newest = newest.where(attempts.c.pod_id == pod_id).order_by(attempts.c.created_at.desc()).limit(1)
        row = c.execute(newest).one_or_none()
        if row is not None:
            found[pod_id] = Load(pod_id, running.get(pod_id, 0), row.base_model, row.lora_sha256, row.created_at)
    return found
