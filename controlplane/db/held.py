"""The statements about jobs in a process's hands: small columns only, fenced by the claim number.

They are made once and not for every call: the engine runs several of them for each job.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, text, tuple_, update

from controlplane.db.tables import HELD_ROWS, attempts, jobs, pods
from controlplane.domain.jobs import CANCELLING, HELD, Job
from controlplane.errors import StaleClaim

CLAIMS_AT_ONCE = 400
"""Claims in one statement: each is two parameters, of which SQLite may take no more than 999."""

_STANDING = (
    select(
        jobs.c.status,
        jobs.c.claim_no,
        jobs.c.progress,
        jobs.c.warnings,
        jobs.c.started_at,
        jobs.c.cancel_requested_at,
    )
    .where(jobs.c.id == bindparam("job_id"))
    .with_for_update()
)
_PUT = update(jobs).where(jobs.c.id == bindparam("job_id"), jobs.c.claim_no == bindparam("held_by"))
_PUT_ATTEMPT = update(attempts).where(attempts.c.id == bindparam("attempt_id"))
_REMOVE_ATTEMPT = delete(attempts).where(attempts.c.id == bindparam("attempt_id"))
_CLAIMS = tuple_(jobs.c.id, jobs.c.claim_no).in_(bindparam("claims", expanding=True))
_RENEW = (
    update(jobs)
    .where(_CLAIMS, jobs.c.status.in_(HELD))
    .values(lease_until=bindparam("until"))
    .returning(jobs.c.id, jobs.c.claim_no)
)
_LOOK = select(jobs.c.id, jobs.c.claim_no, jobs.c.status, jobs.c.progress).where(
    jobs.c.id.in_(bindparam("ids", expanding=True))
)
_WHEREABOUTS = select(pods.c.id, pods.c.address, pods.c.token, pods.c.state, pods.c.last_heartbeat_at).where(
    pods.c.id.in_(bindparam("ids", expanding=True))
)
_CANCELLING = select(jobs.c.id, jobs.c.claim_no).where(text(HELD_ROWS), jobs.c.status == CANCELLING)


@dataclass(frozen=True)
class Look:
    """What there is to be seen of a held job from time to time."""

    claim_no: int
    status: str
    progress: Mapping[str, Any]


@dataclass(frozen=True)
class Whereabouts:
    """Where a pod is and whether it is there."""

    address: str
    token: str = field(repr=False)
    state: str
    last_heartbeat_at: float


def standing(c: Connection, job: Job) -> Job | None:
    """The job with whatever changes while it is held read again; None where another claim has it, or it is gone.

    Nobody else changes it until the transaction ends.
    """
    row = c.execute(_STANDING, {"job_id": job.id}).one_or_none()
    if row is None or row.claim_no != job.claim_no:
        return None
    return replace(
        job,
        status=row.status,
        progress=row.progress,
        warnings=tuple(row.warnings),
        started_at=row.started_at,
        cancel_requested_at=row.cancel_requested_at,
    )


def put(c: Connection, job: Job, **values: Any) -> Job:
    """Write columns of a job under the claim it was read with; StaleClaim where somebody has claimed it since."""
    changed = c.execute(_PUT, {**values, "job_id": job.id, "held_by": job.claim_no})
    if changed.rowcount != 1:
        raise StaleClaim(f"Job {job.id} is no longer held by claim {job.claim_no}.")
    as_read: dict[str, Any] = {name: tuple(value) if type(value) is list else value for name, value in values.items()}
    return replace(job, **as_read)


def put_attempt(c: Connection, attempt_id: str, **values: Any) -> None:
    """Write columns of one attempt; the caller has checked its claim in the same transaction."""
    c.execute(_PUT_ATTEMPT, {**values, "attempt_id": attempt_id})


def remove_attempt(c: Connection, attempt_id: str) -> None:
    """Remove an attempt that no pod has begun; the caller has checked its claim in the same transaction."""
    c.execute(_REMOVE_ATTEMPT, {"attempt_id": attempt_id})


def renew(c: Connection, claims: Sequence[tuple[str, int]], lease_until: float) -> set[tuple[str, int]]:
    """Prolong the leases of (job id, claim_no) pairs; returns the pairs that still hold their job."""
    kept: set[tuple[str, int]] = set()
    for start in range(0, len(claims), CLAIMS_AT_ONCE):
        some = list(claims[start : start + CLAIMS_AT_ONCE])
        kept.update((row.id, row.claim_no) for row in c.execute(_RENEW, {"claims": some, "until": lease_until}))
    return kept


def looks(c: Connection, job_ids: Collection[str]) -> dict[str, Look]:
    """What is to be seen of some jobs, by their ids."""
    ids, found = list(job_ids), {}
    for start in range(0, len(ids), CLAIMS_AT_ONCE):
        for row in c.execute(_LOOK, {"ids": ids[start : start + CLAIMS_AT_ONCE]}):
            found[row.id] = Look(row.claim_no, row.status, row.progress)
    return found


def whereabouts(c: Connection, pod_ids: Collection[str]) -> dict[str, Whereabouts]:
    """Where some pods are, by their ids; those that are known no more are absent."""
    ids, found = list(pod_ids), {}
    for start in range(0, len(ids), CLAIMS_AT_ONCE):
        for row in c.execute(_WHEREABOUTS, {"ids": ids[start : start + CLAIMS_AT_ONCE]}):
            found[row.id] = Whereabouts(row.address, row.token, row.state, row.last_heartbeat_at)
    return found


def cancelling(c: Connection) -> set[tuple[str, int]]:
    """The (job id, claim_no) of all jobs that are being cancelled, whoever holds them; found through a small index."""
    return {(row.id, row.claim_no) for row in c.execute(_CANCELLING)}
