"""The attempts table's statements."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from controlplane.db.rows import values_of
from controlplane.db.tables import LIVE_ROWS, attempts, jobs
from controlplane.domain.jobs import Attempt, Job
from controlplane.domain.pods import Live, Load

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


_TAKE = {
    "sqlite": sqlite_insert(attempts).on_conflict_do_nothing().returning(attempts.c.id),
    "postgresql": postgresql_insert(attempts).on_conflict_do_nothing().returning(attempts.c.id),
}


def take_slots(c: Connection, wanted: Sequence[Attempt]) -> set[str]:
    """Write new attempts and return the ids of those that got their slot: another one may live there already.

    On PostgreSQL this waits for whoever is about to take the same slot; taking them in one order keeps two from
    waiting for each other.
    """
    if not wanted:
        return set()
    rows = [vars(attempt) for attempt in sorted(wanted, key=lambda one: (one.pod_id, one.slot))]
    return set(c.execute(_TAKE[c.dialect.name], rows if len(rows) > 1 else rows[0]).scalars())


_NEWEST = (
    select(attempts.c.job_id, func.max(attempts.c.number))
    .where(attempts.c.job_id.in_(bindparam("ids", expanding=True)))
    .group_by(attempts.c.job_id)
)


def newest_numbers(c: Connection, job_ids: Collection[str]) -> dict[str, int]:
    """How many attempts jobs have had; those without any are absent."""
    return {job_id: number for job_id, number in c.execute(_NEWEST, {"ids": list(job_ids)})} if job_ids else {}


_TRIED = select(attempts.c.job_id, attempts.c.pod_id).where(
    attempts.c.job_id.in_(bindparam("ids", expanding=True)), attempts.c.status.in_(("failed", "lost"))
)


def failed_on(c: Connection, job_ids: Collection[str]) -> dict[str, frozenset[str]]:
    """The pods on which jobs failed before; jobs without any are absent."""
    found: dict[str, set[str]] = {}
    for job_id, pod_id in c.execute(_TRIED, {"ids": list(job_ids)}) if job_ids else ():
        found.setdefault(job_id, set()).add(pod_id)
    return {job_id: frozenset(pod_ids) for job_id, pod_ids in found.items()}


def newest_of(c: Connection, jobs_taken: Sequence[Job]) -> dict[str, Attempt]:
    """The newest attempt of each job; jobs without any are absent."""
    query = select(attempts).where(attempts.c.job_id.in_([job.id for job in jobs_taken]))
    return {row.job_id: Attempt(**values_of(row)) for row in c.execute(query.order_by(attempts.c.number))}


# pod_id > '' makes SQLite take the partial index, which knows the live ones alone.
_LIVE = text(f"SELECT id FROM attempts WHERE {LIVE_ROWS} AND pod_id > ''")


def live(c: Connection) -> set[str]:
    """The ids of all attempts that occupy a pod."""
    return set(c.execute(_LIVE).scalars())


_OCCUPYING = (
    select(
        attempts.c.id,
        attempts.c.job_id,
        attempts.c.project_id,
        attempts.c.slot,
        jobs.c.kind,
        jobs.c.estimate_seconds,
        attempts.c.created_at,
        attempts.c.pod_id,
        attempts.c.base_model,
        attempts.c.lora_sha256,
    )
    .join(jobs, jobs.c.id == attempts.c.job_id)
    .where(attempts.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(attempts.c.created_at, attempts.c.slot)
)


@dataclass(frozen=True)
class Occupied:
    """A live attempt, its pod, and what it makes resident there."""

    live: Live
    pod_id: str
    base_model: str | None
    lora_sha256: str | None


def occupying(c: Connection, attempt_ids: Collection[str]) -> list[Occupied]:
    """What some live attempts occupy, oldest first."""
    if not attempt_ids:
        return []
    rows = c.execute(_OCCUPYING, {"ids": list(attempt_ids)})
    return [Occupied(Live(*row[:7]), row.pod_id, row.base_model, row.lora_sha256) for row in rows]


_LAST = (
    select(attempts.c.base_model, attempts.c.lora_sha256, attempts.c.created_at)
    .where(attempts.c.pod_id == bindparam("pod"))
    .order_by(attempts.c.created_at.desc())
    .limit(1)
)


def last_load(c: Connection, pod_id: str) -> Load:
    """What the newest attempt on a pod left resident there; from an index, however many there ever were."""
    row = c.execute(_LAST, {"pod": pod_id}).one_or_none()
    return Load(pod_id, (), row.base_model, row.lora_sha256, row.created_at) if row else Load(pod_id)


def occupied_pods(c: Connection) -> set[str]:
    """The pods that have work of ours in hand."""
    query = select(attempts.c.pod_id).where(text(LIVE_ROWS), attempts.c.pod_id > "").distinct()
    return set(c.execute(query).scalars())
