"""Durations: what this process remembers of how long jobs took, and what it says of those that wait or run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from controlplane.db import durations as duration_rows
from controlplane.db import jobs as job_rows
from controlplane.domain.durations import (
    REMEMBERED,
    Key,
    Took,
    expected_seconds,
    key_of,
    waiting_seconds,
    work_of,
)
from controlplane.domain.jobs import CANCELLING, COLLECTING, QUEUED, Job, NewJob, is_final

KEYS_KEPT = 4096
SEEDED_FOR_SECONDS = 600.0
"""What other processes have learned is read again after so long."""
JOBS_AHEAD = 256
"""Of a lane's waiting jobs so many are looked at; of those further back nobody can say when they are done."""


@dataclass(frozen=True)
class Outlook:
    """Pods that could do some work: how many, the work they have in hand, and when the first is free. Seconds."""

    pods: int
    busy: float
    soonest: float


class Durations:
    """One per process. Any thread may use it: every step replaces a whole value, and one that is lost is no loss."""

    def __init__(self) -> None:
        self._took: dict[Key, tuple[Took, ...]] = {}
        self._seeded: dict[str, float] = {}

    def expected(self, c: Connection, new: NewJob) -> float:
        """How many seconds a job will take that is about to be stored."""
        now = time.monotonic()
        if now - self._seeded.get(new.project_id, float("-inf")) > SEEDED_FOR_SECONDS:
            self._seed(c, new.project_id, now)
        remembered = self._took.get(key_of(new.template, new.base_model, new.kind))
        if not remembered:
            return new.estimate_seconds
        return expected_seconds(remembered, work_of(new.request), new.estimate_seconds)

    def learn(self, job: Job, seconds: float) -> None:
        """Take note that a job has succeeded, so many seconds after its pod had begun."""
        if seconds >= 0:
            self._remember(key_of(job.template, job.base_model, job.kind), [Took(seconds, work_of(job.request))])

    def _seed(self, c: Connection, project_id: str, now: float) -> None:
        self._seeded[project_id] = now
        found: dict[Key, list[Took]] = {}
        for row in duration_rows.newest(c, project_id):
            key = key_of(row.template, row.base_model, row.kind)
            found.setdefault(key, []).append(Took(row.seconds, work_of(row.request)))
        for key, took in found.items():
            # What another process has done meanwhile is newer than most of what we remember, and has much of that.
            self._remember(key, took)

    def _remember(self, key: Key, took: Sequence[Took]) -> None:
        if len(self._took) >= KEYS_KEPT:
            self._took.clear()
        self._took[key] = (*self._took.get(key, ()), *took)[-REMEMBERED:]


class Forecast:
    """When the jobs that are shown together will be done; made for one reading, within its transaction."""

    def __init__(
        self,
        c: Connection,
        now: float,
        outlook: Callable[[Job], Outlook | None],
        pace: Callable[[str, float], float],
    ) -> None:
        """``outlook`` knows the pods; ``pace`` corrects the estimate of a job of a lane. Neither does I/O."""
        self._c = c
        self._now = now
        self._outlook = outlook
        self._pace = pace
        self._lanes: dict[str, Sequence[job_rows.Candidate]] = {}

    def of(self, job: Job) -> Job:
        """The job with ``eta_seconds`` in its progress, where anything can be said that is not there already."""
        progress = job.progress
        if is_final(job.status) or job.status in (CANCELLING, COLLECTING) or progress.get("percent"):
            return job
        left = self._until_done(job)
        return replace(job, progress={**progress, "eta_seconds": None if left is None else round(left, 1)})

    def _until_done(self, job: Job) -> float | None:
        if job.started_at is not None and job.status != QUEUED:
            left = job.estimate_seconds - (self._now - job.started_at)
            return left if left > 0 else None  # it takes longer than others did, and says nothing of how far it is
        expected = self._pace(job.lane, job.estimate_seconds)
        wait = self._wait(job) if job.status == QUEUED else 0.0
        return None if wait is None else wait + expected

    def _wait(self, job: Job) -> float | None:
        ahead, outlook = self._ahead(job), self._outlook(job)
        if ahead is None or outlook is None:
            return None
        wait = waiting_seconds(ahead, outlook.pods, outlook.busy, outlook.soonest)
        return None if wait is None else max(wait, job.not_before - self._now)

    def _ahead(self, job: Job) -> float | None:
        """Seconds of work before a job in its lane; None where it is too far back to be found."""
        waiting = self._lanes.get(job.lane)
        if waiting is None:
            # Those that are tried again later are not before anybody.
            waiting = self._lanes[job.lane] = job_rows.first_of_lane(self._c, job.lane, self._now, JOBS_AHEAD)
        ahead = 0.0
        for job_id, _, _, estimate, *_ in waiting:
            if job_id == job.id:
                return ahead
            ahead += self._pace(job.lane, estimate)
        return ahead if len(waiting) < JOBS_AHEAD else None
