"""The jobs table's statements: storing, listing, claiming, and writes fenced by the claim number."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from sqlalchemy import Connection, Row, Select, and_, bindparam, func, insert, select, text, update

from controlplane.db.rows import merged, newest_first, values_of
from controlplane.db.tables import HELD_ROWS, QUEUED_ROWS, characters, jobs
from controlplane.domain.jobs import CANCELLING, CLAIMED, HELD, KINDS, NEXT, Job
from controlplane.domain.pages import Position
from controlplane.domain.placement import lane_of
from controlplane.errors import StaleClaim

_ADD = insert(jobs)
_QUEUED = text(QUEUED_ROWS)
_GET = select(jobs).where(jobs.c.project_id == bindparam("project"), jobs.c.id == bindparam("id"))
_GET_LOCKED = _GET.with_for_update()
_STATUS = _GET.with_only_columns(jobs.c.status)
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


def status_of(c: Connection, project_id: str, job_id: str) -> str | None:
    """How far one job is, for whoever needs no more of it; None where there is none."""
    return c.execute(_STATUS, {"project": project_id, "id": job_id}).scalar_one_or_none()


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
        # An outer join, so that SQLite begins with the few characters; those without are left out below.
        .outerjoin(
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
    found = (_job(row) for row in c.execute(query) if row.id is not None)
    return {str(job.character_id): job for job in found}


def _placed(c: Connection, places: Sequence[Row[Any]]) -> list[Job]:
    """The jobs with these ids, in their order."""
    found = {job.id: job for job in _all(c, select(jobs).where(jobs.c.id.in_([place.id for place in places])))}
    return [found[place.id] for place in places]


@dataclass(frozen=True)
class Lane:
    """What all jobs of a lane ask alike; ``needs`` is that of one of them, whose LoRA says nothing of the others."""

    id: str
    project_id: str
    kind: str
    base_model: str | None
    needs: Mapping[str, Any]


_LANE_SCAN = text(
    f"""
    WITH RECURSIVE lanes(lane) AS (
        SELECT (SELECT lane FROM jobs WHERE {QUEUED_ROWS} AND lane > :after ORDER BY lane LIMIT 1)
        UNION ALL
        SELECT (SELECT j.lane FROM jobs AS j WHERE j.{QUEUED_ROWS} AND j.lane > lanes.lane ORDER BY j.lane LIMIT 1)
        FROM lanes WHERE lanes.lane IS NOT NULL
    )
    SELECT lane FROM lanes WHERE lane IS NOT NULL LIMIT :most
    """
)


def lanes(c: Connection, after: str, most: int) -> list[str]:
    """The lanes in which jobs wait, in their order behind ``after``: one step in an index for each."""
    return list(c.execute(_LANE_SCAN, {"after": after, "most": most}).scalars())


_LANE = (
    select(jobs.c.project_id, jobs.c.kind, jobs.c.base_model, jobs.c.needs)
    .where(_QUEUED, jobs.c.lane == bindparam("lane"))
    .limit(1)
)


def lane(c: Connection, lane_id: str) -> Lane | None:
    """A lane, as one of the jobs that wait in it says; None where none does any more."""
    row = c.execute(_LANE, {"lane": lane_id}).one_or_none()
    return Lane(lane_id, *row) if row else None


_FIRST = (
    select(jobs.c.id, jobs.c.priority, jobs.c.created_at, jobs.c.estimate_seconds, jobs.c.lora_sha256, jobs.c.claim_no)
    .where(_QUEUED, jobs.c.lane == bindparam("lane"), jobs.c.not_before <= bindparam("now"))
    .order_by(jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)
    .limit(bindparam("most"))
)


Candidate = tuple[str, int, float, float, str | None, int]
"""``(id, priority, created_at, estimate_seconds, lora_sha256, claim_no)`` of a job that waits."""


def first_of_lane(c: Connection, lane_id: str, now: float, most: int) -> Sequence[Candidate]:
    """The next jobs of a lane, highest priority first, then oldest; read from an index alone."""
    return cast(Sequence[Candidate], c.execute(_FIRST, {"lane": lane_id, "now": now, "most": most}).all())


_OVERDUE = (
    select(jobs)
    .where(_QUEUED, jobs.c.deadline_at <= bindparam("now"))
    .order_by(jobs.c.deadline_at)
    .limit(bindparam("most"))
)


def overdue(c: Connection, now: float, most: int) -> list[Job]:
    """Queued jobs whose deadline has passed."""
    return [_job(row) for row in c.execute(_OVERDUE, {"now": now, "most": most})]


_CHOSEN = select(jobs).where(jobs.c.id.in_(bindparam("ids", expanding=True)), _QUEUED).with_for_update(skip_locked=True)


def queued_locked(c: Connection, ids: Sequence[str]) -> dict[str, Job]:
    """Those of the jobs that still wait, locked; one that somebody else is about to take is absent."""
    return {row.id: _job(row) for row in c.execute(_CHOSEN, {"ids": list(ids)})}


_CLAIM = (
    update(jobs)
    .where(jobs.c.id == bindparam("job"), jobs.c.claim_no == bindparam("claim"), _QUEUED)
    .values(
        status=CLAIMED,
        claimed_by=bindparam("owner"),
        lease_until=bindparam("until"),
        claim_no=jobs.c.claim_no + 1,
        placement=bindparam("place"),
    )
)


def claim(
    c: Connection, chosen: Sequence[tuple[Job, Mapping[str, Any] | None]], owner: str, lease_until: float
) -> list[Job]:
    """Take queued, locked jobs, each with its placement. Raises their ``claim_no``, which fences later writes."""
    if not chosen:
        return []
    rows = [
        {"job": job.id, "claim": job.claim_no, "owner": owner, "until": lease_until, "place": placement}
        for job, placement in chosen
    ]
    c.execute(_CLAIM, rows if len(rows) > 1 else rows[0])
    return [
        replace(
            job,
            status=CLAIMED,
            claimed_by=owner,
            lease_until=lease_until,
            claim_no=job.claim_no + 1,
            placement=placement,
        )
        for job, placement in chosen
    ]


_EXPIRED = (
    select(jobs.c.id, jobs.c.claimed_by)
    .where(text(HELD_ROWS), jobs.c.lease_until < bindparam("now"))
    .order_by(jobs.c.lease_until)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_TAKE_OVER = (
    update(jobs)
    .where(jobs.c.id.in_(bindparam("ids", expanding=True)))
    .values(claimed_by=bindparam("owner"), lease_until=bindparam("until"), claim_no=jobs.c.claim_no + 1)
    .returning(*jobs.c)
)


def take_over(
    c: Connection, owner: str, lease_until: float, now: float, except_for: Collection[str] = (), most: int = 1
) -> list[Job]:
    """Take jobs whose owner let its lease run out, whatever their state; their status stays.

    ``except_for`` names jobs that the caller is still at work on, its own lease being late.
    """
    expired = c.execute(_EXPIRED, {"now": now, "most": most + len(except_for)})
    ids = [row.id for row in expired if row.claimed_by != owner or row.id not in except_for][:most]
    if not ids:
        return []
    return [_job(row) for row in c.execute(_TAKE_OVER, {"ids": ids, "owner": owner, "until": lease_until})]


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


def _all(c: Connection, query: Select[Any]) -> list[Job]:
    return [_job(row) for row in c.execute(query)]


def _one(result: Any) -> Job | None:
    row = result.one_or_none()
    return _job(row) if row else None
