"""Jobs: accepting them, showing them, cancelling them, and waiting for them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from controlplane.db import assets as asset_rows
from controlplane.db import attempts as attempt_rows
from controlplane.db import jobs as job_rows
from controlplane.db import projects as project_rows
from controlplane.db.database import Database
from controlplane.domain import events
from controlplane.domain.assets import Asset
from controlplane.domain.ids import new_id
from controlplane.domain.jobs import CANCELLED, EMPTY_PROGRESS, QUEUED, Attempt, Job, NewJob, is_final
from controlplane.domain.pages import Page, Position, checked_limit, decode, page_of
from controlplane.domain.pods import Choice
from controlplane.domain.projects import Project, pause_words
from controlplane.errors import Conflict, NotFound, Unprocessable
from controlplane.ports import Clock
from controlplane.services.durations import Durations, Forecast, Outlook
from controlplane.services.event_tail import Tail, Wanted
from controlplane.services.events import Hints, append_of_job
from controlplane.settings import Settings

LOOK_SECONDS = 5.0
"""Whoever waits for a job looks at it so often, should its last event never be heard."""

Ending = Callable[[Connection, Job, Mapping[str, Any] | None, float], None]
"""``(connection, job, error, now)``: what a kind does in the transaction in which its job failed or was cancelled."""


Explanation = Callable[[Job, Collection[str]], Mapping[str, Any] | None]
"""Why a waiting job, which failed on some pods before, has no pod yet, as ``{pod_id, reason, considered}``; None where
nothing is known of it."""


@dataclass(frozen=True)
class JobView:
    """A job with its attempts (first try first) and its stored assets (by position).

    Why a waiting job has no pod yet is found out when somebody looks, and stands in its ``placement`` here.
    """

    job: Job
    attempts: tuple[Attempt, ...] = ()
    assets: tuple[Asset, ...] = ()


class Jobs:
    """The jobs service.

    ``on_cancelled`` holds, by job kind, what happens in the transaction that cancels a job which no pod has seen.
    ``explain`` and ``outlook`` know the pods, ``pace`` what jobs of a lane take; they must not do I/O.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        hints: Hints,
        on_cancelled: Mapping[str, Ending] | None = None,
        explain: Explanation | None = None,
        tail: Tail | None = None,
        durations: Durations | None = None,
        outlook: Callable[[Job], Outlook | None] = lambda job: None,
        pace: Callable[[str, float], float] = lambda lane, told: told,
    ) -> None:
        self._explain = explain
        self._durations = Durations() if durations is None else durations
        self._outlook = outlook
        self._pace = pace
        self._db = db
        self._clock = clock
        self._hints = hints
        self._tail = tail if tail is not None else Tail(db, hints)
        self._on_cancelled: Mapping[str, Ending] = {} if on_cancelled is None else on_cancelled

    def insert(self, c: Connection, new: NewJob) -> Job:
        """Store an accepted request and its event inside the caller's transaction; wake JOBS and EVENTS after it."""
        new = replace(new, estimate_seconds=self._durations.expected(c, new))
        job = job_rows.add(c, new.project_id, _queued(new, self._clock.now()))
        append_of_job(c, job, events.JOB_QUEUED, job.created_at)
        return job

    async def get(self, project_id: str, job_id: str) -> JobView:
        """One job; NotFound where there is none."""
        return await self._db.read(self._view, project_id, job_id)

    async def list(
        self,
        project_id: str,
        *,
        character_id: str | None = None,
        kind: str | None = None,
        statuses: Collection[str] = (),
        created_from: float | None = None,
        created_before: float | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[JobView]:
        """Jobs, newest first, of one of the ``statuses`` where there are any; times are seconds since the epoch.

        Unprocessable where the cursor is none of ours.
        """
        size, before = checked_limit(limit), decode(cursor)
        wanted = (character_id, kind, statuses, created_from, created_before)

        def list_jobs(c: Connection) -> Sequence[JobView]:
            return self._views(c, project_id, job_rows.page(c, project_id, size + 1, before, *wanted))

        views = await self._db.read(list_jobs)
        return page_of(views, size, [Position(view.job.created_at, view.job.id) for view in views])

    async def cancel(self, project_id: str, job_id: str) -> JobView:
        """Cancel a job: at once where it is queued, else its pod is told to stop and it reads ``cancelling``.

        Asking again is fine; Conflict where it has succeeded or failed, NotFound where there is none.
        """
        view = await self._db.write_fenced(self._cancel, project_id, job_id)
        self._hints.wake(Hints.JOBS, Hints.EVENTS, Hints.CANCELS)
        return view

    async def wait(self, project_id: str, job_id: str, seconds: float) -> JobView:
        """The job once it is final, or as it is after so many seconds. NotFound where there is none."""
        end = time.monotonic() + seconds
        reader = await self._tail.join(Wanted(project_id, job_id, types=events.JOB_FINAL))
        try:
            while (rest := end - time.monotonic()) > 0:
                status = await self._db.read(job_rows.status_of, project_id, job_id)
                if status is None or is_final(status) or await reader.take(min(rest, LOOK_SECONDS)):
                    break
            return await self.get(project_id, job_id)
        finally:
            self._tail.leave(reader)

    def _cancel(self, c: Connection, project_id: str, job_id: str) -> JobView:
        job = job_rows.get_locked(c, project_id, job_id) or _get(c, project_id, job_id)
        now = self._clock.now()
        if job.status == QUEUED:
            job = job_rows.change(c, job, status=CANCELLED, cancel_requested_at=now, finished_at=now)
            ending = self._on_cancelled.get(job.kind)
            if ending is not None:
                ending(c, job, None, now)
            append_of_job(c, job, events.JOB_CANCELLED, now)
        elif not is_final(job.status) and job.cancel_requested_at is None:
            job_rows.request_cancel(c, project_id, job_id, now)
        elif is_final(job.status) and job.status != CANCELLED:
            raise Conflict(f"The job has already {job.status}; it cannot be cancelled any more.")
        return self._view(c, project_id, job_id)

    def _view(self, c: Connection, project_id: str, job_id: str) -> JobView:
        return self._views(c, project_id, [_get(c, project_id, job_id)])[0]

    def _views(self, c: Connection, project_id: str, jobs: Sequence[Job]) -> Sequence[JobView]:
        ids = [job.id for job in jobs]
        attempts = attempt_rows.of_jobs(c, project_id, ids)
        assets: dict[str, list[Asset]] = {}
        for asset in asset_rows.of_jobs(c, project_id, ids):
            assets.setdefault(asset.job_id or "", []).append(asset)
        waits = any(job.status == QUEUED for job in jobs)
        project = project_rows.get(c, project_id) if waits else None
        forecast = Forecast(c, self._clock.now(), self._outlook_for(project), self._pace)
        foretold = [forecast.of(job) for job in jobs]
        explained = [
            self._explained(job, project, attempts.get(job.id, ())) if job.status == QUEUED else job for job in foretold
        ]
        return [JobView(job, tuple(attempts.get(job.id, ())), tuple(assets.get(job.id, ()))) for job in explained]

    def _outlook_for(self, project: Project | None) -> Callable[[Job], Outlook | None]:
        """What may be expected of the pods; nothing while the project is paused."""
        return (lambda job: None) if project is not None and project.is_paused else self._outlook

    def _explained(self, job: Job, project: Project | None, attempts: Sequence[Attempt]) -> Job:
        return replace(job, placement=self._placement(job, project, attempts))

    def _placement(self, job: Job, project: Project | None, attempts: Sequence[Attempt]) -> Mapping[str, Any] | None:
        if project is not None and project.is_paused:
            return Choice(None, pause_words(project)).as_placement()
        rest = job.not_before - self._clock.now()
        if rest > 0:
            return Choice(None, f"it is tried again in {math.ceil(rest)} s").as_placement()
        failed_on = {attempt.pod_id for attempt in attempts if attempt.status in ("failed", "lost")}
        return (self._explain(job, failed_on) if self._explain is not None else None) or job.placement


def checked_deadline(wanted: float | None, usual: float, settings: Settings) -> float:
    """How many seconds a job may take, waiting included; Unprocessable beyond ``TROUPE_MAX_DEADLINE_SECONDS``."""
    if wanted is not None and wanted > settings.max_deadline_seconds:
        detail = f"at most {settings.max_deadline_seconds:g} seconds are given here"
        raise Unprocessable(detail, errors=[{"pointer": "/deadline_seconds", "detail": detail}])
    return usual if wanted is None else wanted


def _queued(new: NewJob, now: float) -> Job:
    return Job(
        id=new.id or new_id("job"),
        project_id=new.project_id,
        kind=new.kind,
        status=QUEUED,
        character_id=new.character_id,
        version=new.version,
        base_model=new.base_model,
        template=new.template,
        template_digest=new.template_digest,
        seed=new.seed,
        request=_plain(new.request),
        graph=_plain(new.graph),
        files=tuple(new.files),
        needs=_plain(new.needs),
        outputs=tuple(_plain(one) for one in new.outputs),
        estimate_seconds=new.estimate_seconds,
        priority=new.priority,
        metadata=_plain(new.metadata),
        end_user=new.end_user,
        rating=new.rating,
        progress=dict(EMPTY_PROGRESS),
        warnings=tuple(new.warnings),
        claim_no=0,
        not_before=0.0,
        deadline_at=now + new.deadline_seconds,
        created_at=now,
    )


_LEAVES = frozenset({str, int, float, bool, type(None)})


def _plain(value: Any) -> Any:
    """The same JSON value made of dicts and lists, whatever mappings and sequences it came as."""
    if type(value) in _LEAVES:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    return value


def _get(c: Connection, project_id: str, job_id: str) -> Job:
    job = job_rows.get(c, project_id, job_id)
    if job is None:
        raise NotFound(f"There is no job {job_id}.")
    return job
