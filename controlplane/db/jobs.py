"""The jobs table's statements: storing, listing, claiming, and writes fenced by the claim number."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, bindparam, func, insert, or_, select, update

from controlplane.db.rows import merged, newest_first, values_of
from controlplane.db.tables import characters, jobs
from controlplane.domain.jobs import CANCELLING, CLAIMED, HELD, KINDS, NEXT, QUEUED, Job
from controlplane.domain.pages import Position
from controlplane.domain.placement import lane_of
from controlplane.errors import StaleClaim

_ADD = insert(jobs)
_GET = select(jobs).where(jobs.c.project_id == bindparam("project"), jobs.c.id == bindparam("id"))
_GET_LOCKED = _GET.with_for_update()
_PLACES = select(jobs.c.id, jobs.c.created_at)


def _job(row: Row[Any]) -> Job:
    values = values_of(row)
    values["files"] = tuple((str(name), str(key)) for name, key in values["files"])
    return Job(**values)


def add(c: Connection, project_id: str, job: Job) -> Job:
    """Write a new job, with the lane that it waits in."""
    waiting = replace(
        job,
        project_id=project_id,
        lane=lane_of(project_id, job.kind, job.needs, job.base_model),
        lora_sha256=job.needs.get("lora_sha256"),
    )
    c.execute(_ADD, vars(waiting))
    return waiting


def get(c: Connection, project_id: str, job_id: str) -> Job | None:
    """One job."""
    row = c.execute(_GET, {"project": project_id, "id": job_id}).one_or_none()
    return _job(row) if row else None


def get_locked(c: Connection, project_id: str, job_id: str) -> Job | None:
    """One job that nobody else changes until the transaction ends, for writes that depend on what it says."""
    row = c.execute(_GET_LOCKED, {"project": project_id, "id": job_id}).one_or_none()
    return _job(row) if row else None


def page(
    c: Connection,
    project_id: str,
    limit: int,
    before: Position | None = None,
    character_id: str | None = None,
    kind: str | None = None,
    statuses: Collection[str] = (),
    created_from: float | None = None,
    created_before: float | None = None,
) -> list[Job]:
    """Jobs, newest first, strictly after ``before``; no ``statuses`` mean any.

    However many jobs there are, and however rare those that are asked for, an index leads to the rows that are shown;
    only the jobs of one character are looked through, in their index.
    """
    if created_before is not None and (before is None or created_before <= before.created_at):
        before = Position(created_before, "")  # the place before everything of that moment
    since = created_from if created_from is not None else 0.0
    mine = _PLACES.where(jobs.c.project_id == project_id, jobs.c.created_at >= since)
    if character_id is not None:
        mine = mine.where(jobs.c.character_id == character_id)
        if kind is not None:
            mine = mine.where(jobs.c.kind == kind)
        if statuses:
            mine = mine.where(jobs.c.status.in_(list(statuses)))
        return _placed(c, c.execute(newest_first(mine, jobs, before, limit)).all())
    if kind is None and not statuses:
        return _placed(c, c.execute(newest_first(mine, jobs, before, limit)).all())
    # One stretch of the index for each kind and status, and the newest of all of them.
    stretches = (
        newest_first(mine.where(jobs.c.kind == one, jobs.c.status == status), jobs, before, limit)
        for one in ((kind,) if kind is not None else KINDS)
        for status in (statuses or NEXT)
    )
    found = (c.execute(stretch).all() for stretch in stretches)
    return _placed(c, merged(found, limit, lambda row: (row.created_at, row.id)))


def latest_of_characters(c: Connection, project_id: str, character_ids: Collection[str]) -> dict[str, Job]:
    """The newest job of each character; characters without jobs are absent."""
    newest = jobs.alias("newest")
    moment = (
        select(func.max(newest.c.created_at))
        .where(newest.c.project_id == characters.c.project_id, newest.c.character_id == characters.c.id)
        .scalar_subquery()
    )
    query = (
        select(jobs)
        .select_from(characters)
        .join(
            jobs,
            and_(
                jobs.c.project_id == characters.c.project_id,
                jobs.c.character_id == characters.c.id,
                jobs.c.created_at == moment,
            ),
        )
        .where(characters.c.project_id == project_id, characters.c.id.in_(list(character_ids)))
        .order_by(jobs.c.id)
    )
    return {str(job.character_id): job for job in _all(c, query)}


def _placed(c: Connection, places: Sequence[Row[Any]]) -> list[Job]:
    """The jobs with these ids, in their order."""
    found = {job.id: job for job in _all(c, select(jobs).where(jobs.c.id.in_([place.id for place in places])))}
    return [found[place.id] for place in places]


def due(c: Connection, now: float, per_group: int) -> list[Job]:
    """Queued jobs of every project whose time has come, highest priority first, then oldest.

    Jobs of one project, template and base model ask the same of a pod, so only the first ``per_group`` of each such
    group come: thousands of jobs that nothing can serve never hide one that a pod waits for. Locked on PostgreSQL.
    """
    order = (jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)
    group = (jobs.c.project_id, jobs.c.template, jobs.c.template_digest, jobs.c.base_model)
    place = func.row_number().over(partition_by=group, order_by=order).label("place")
    ranked = select(jobs.c.id, place).where(jobs.c.status == QUEUED, jobs.c.not_before <= now).subquery()
    firsts = select(ranked.c.id).where(ranked.c.place <= per_group)
    query = select(jobs).where(jobs.c.id.in_(firsts), jobs.c.status == QUEUED).order_by(*order)
    return _all(c, query.with_for_update(skip_locked=True))


def overdue(c: Connection, now: float, limit: int) -> list[Job]:
    """Queued jobs whose deadline has passed."""
    query = select(jobs).where(jobs.c.status == QUEUED, jobs.c.deadline_at <= now).limit(limit)
    return _all(c, query.with_for_update(skip_locked=True))


def claim(c: Connection, project_id: str, job_id: str, owner: str, lease_until: float) -> Job | None:
    """Take a queued job; None where somebody else was quicker. Raises ``claim_no``, which fences later writes."""
    return _one(
        c.execute(
            update(jobs)
            .where(jobs.c.project_id == project_id, jobs.c.id == job_id, jobs.c.status == QUEUED)
            .values(
                status=CLAIMED,
                claimed_by=owner,
                lease_until=lease_until,
                claim_no=jobs.c.claim_no + 1,
            )
            .returning(*jobs.c)
        )
    )


def take_over(
    c: Connection, owner: str, lease_until: float, now: float, except_for: Collection[str] = ()
) -> Job | None:
    """Take one job whose owner let its lease run out, whatever its state; its status stays.

    ``except_for`` names jobs that the caller is still at work on, its own lease being late.
    """
    expired = (
        select(jobs.c.id)
        .where(
            jobs.c.status.in_(HELD),
            or_(jobs.c.lease_until.is_(None), jobs.c.lease_until < now),
            jobs.c.id.not_in(list(except_for)),
        )
        .order_by(jobs.c.lease_until)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    return _one(
        c.execute(
            update(jobs)
            .where(jobs.c.id == expired)
            .values(claimed_by=owner, lease_until=lease_until, claim_no=jobs.c.claim_no + 1)
            .returning(*jobs.c)
        )
    )


def renew(c: Connection, claims: Sequence[tuple[str, int]], lease_until: float) -> list[Job]:
    """Prolong the leases of (job id, claim_no) pairs and return the jobs that are still held by them."""
    kept = []
    for job_id, claim_no in claims:
        job = _one(
            c.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.claim_no == claim_no, jobs.c.status.in_(HELD))
                .values(lease_until=lease_until)
                .returning(*jobs.c)
            )
        )
        if job is not None:
            kept.append(job)
    return kept


def release(c: Connection, claims: Sequence[tuple[str, int]], lease_until: float) -> None:
    """Let leases end at ``lease_until``, so that somebody else may take over then."""
    for job_id, claim_no in claims:
        c.execute(
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.claim_no == claim_no, jobs.c.status.in_(HELD))
            .values(lease_until=lease_until)
        )


def held(c: Connection, claims: Sequence[tuple[str, int]]) -> list[Job]:
    """The jobs still held by these (job id, claim_no) pairs, as they are now."""
    wanted = dict(claims)
    rows = _all(c, select(jobs).where(jobs.c.id.in_(list(wanted)), jobs.c.status.in_(HELD)))
    return [job for job in rows if job.claim_no == wanted[job.id]]


def change(c: Connection, job: Job, **values: Any) -> Job:
    """Write columns of a job under the claim it was read with; StaleClaim where somebody has claimed it since."""
    changed = _one(
        c.execute(
            update(jobs)
            .where(jobs.c.project_id == job.project_id, jobs.c.id == job.id, jobs.c.claim_no == job.claim_no)
            .values(**values)
            .returning(*jobs.c)
        )
    )
    if changed is None:
        raise StaleClaim(f"Job {job.id} is no longer held by claim {job.claim_no}.")
    return changed


def request_cancel(c: Connection, project_id: str, job_id: str, now: float) -> Job | None:
    """Mark a held job as cancelling; None where it is not held."""
    return _one(
        c.execute(
            update(jobs)
            .where(jobs.c.project_id == project_id, jobs.c.id == job_id, jobs.c.status.in_(HELD))
            .values(status=CANCELLING, cancel_requested_at=now)
            .returning(*jobs.c)
        )
    )


def note_progress(c: Connection, project_id: str, job_id: str, progress: dict[str, Any]) -> None:
    """Write a progress report that a pod sent by itself; such a report changes nothing else."""
    c.execute(update(jobs).where(jobs.c.project_id == project_id, jobs.c.id == job_id).values(progress=progress))


def note_warnings(c: Connection, project_id: str, job_id: str, warnings: Sequence[str]) -> None:
    """Write a job's warnings with one that a pod told by itself; as with progress, it changes nothing else."""
    c.execute(update(jobs).where(jobs.c.project_id == project_id, jobs.c.id == job_id).values(warnings=list(warnings)))


def note_placement(c: Connection, project_id: str, job_id: str, placement: dict[str, Any]) -> None:
    """Write why a job still waits."""
    c.execute(
        update(jobs)
        .where(jobs.c.project_id == project_id, jobs.c.id == job_id, jobs.c.status == QUEUED)
        .values(placement=placement)
    )


def _all(c: Connection, query: Select[Any]) -> list[Job]:
    return [_job(row) for row in c.execute(query)]


def _one(result: Any) -> Job | None:
    row = result.one_or_none()
    return _job(row) if row else None
