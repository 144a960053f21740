"""Outcomes: the transactions that move a held job on or end it, each fenced by the claim it was read with."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from controlplane.db import attempts as attempt_rows
from controlplane.db import jobs as job_rows
from controlplane.domain import events
from controlplane.domain.jobs import (
    CANCELLED,
    CANCELLING,
    COLLECTING,
    EMPTY_PROGRESS,
    FAILED,
    QUEUED,
    RUNNING,
    SUBMIT_UNKNOWN,
    SUBMITTED,
    SUCCEEDED,
    Attempt,
    Failure,
    Job,
    JobResult,
    decide_retry,
    fault,
    may_follow,
    story,
)
from controlplane.errors import StaleClaim
from controlplane.services.arrivals import Ask
from controlplane.services.events import append_of_job
from controlplane.services.jobs import Ending

Completion = Callable[[Connection, Job, Attempt, Mapping[str, Any], float], JobResult]
"""``(connection, job, attempt, outputs, now)``: what a kind stores in the transaction in which its job succeeds."""

Verification = Callable[[Job, Mapping[str, Any], Ask], Coroutine[Any, Any, Sequence[str]]]
"""``(job, outputs, ask)``: what is wrong with the outputs, in words; it runs before that transaction and may do I/O.

``ask`` asks the pod about files that are still on their way. The carrier cancels it where the job is to be stopped."""


async def nothing_wrong(job: Job, outputs: Mapping[str, Any], ask: Ask) -> Sequence[str]:
    """The verification of kinds whose outputs need none."""
    return ()


@dataclass(frozen=True)
class Hooks:
    """What the job kinds add to the life of a job, by kind."""

    complete: Mapping[str, Completion] = field(default_factory=dict)
    on_failed: Mapping[str, Ending] = field(default_factory=dict)
    on_cancelled: Mapping[str, Ending] = field(default_factory=dict)
    verify: Verification = nothing_wrong


def advance(c: Connection, job: Job, status: str, **values: Any) -> Job:
    """Move a job on and write ``values``; a job that is being cancelled keeps that status. StaleClaim."""
    now = _reread(c, job)
    if may_follow(now.status, status):
        values["status"] = status
    return job_rows.change(c, now, **values)


def note_submitted(c: Connection, job: Job, attempt: Attempt, now: float) -> Job:
    """The pod has the prompt."""
    changed = advance(c, job, SUBMITTED)
    attempt_rows.change(c, job.project_id, attempt.id, status="submitted", submitted_at=now)
    return changed


def note_doubt(c: Connection, job: Job, attempt: Attempt, now: float) -> Job:
    """The pod may or may not have the prompt; the attempt's row keeps saying ``created``."""
    return advance(c, job, SUBMIT_UNKNOWN)


def note_running(c: Connection, job: Job, attempt: Attempt, now: float) -> Job:
    """The pod has begun; of an attempt that has finished there that is no news."""
    current = _reread(c, job)
    if attempt.status == COLLECTING:
        return current
    progress = dict(current.progress)
    if progress.get("phase") == QUEUED:
        progress["phase"] = RUNNING
    attempt_rows.change(c, job.project_id, attempt.id, status="running", started_at=now)
    changed = advance(c, current, RUNNING, started_at=current.started_at or now, progress=progress)
    append_of_job(c, changed, events.JOB_STARTED, now, attempt=attempt.number, pod_id=attempt.pod_id)
    return changed


def note_collecting(c: Connection, job: Job, attempt: Attempt, now: float) -> Job:
    """The pod has finished and is free for others; its outputs are about to be checked, once they are there."""
    changed = advance(c, job, COLLECTING)
    attempt_rows.change(c, job.project_id, attempt.id, status=COLLECTING)
    return changed


def note_progress(c: Connection, job: Job, progress: Mapping[str, Any], now: float) -> Job:
    """How far the whole graph is."""
    changed = job_rows.change(c, _reread(c, job), progress=dict(progress))
    append_of_job(c, changed, events.JOB_PROGRESS, now)
    return changed


def succeed(c: Connection, job: Job, attempt: Attempt, outputs: Mapping[str, Any], hooks: Hooks, now: float) -> Job:
    """Store the outcome: what the kind makes of it, the job, the attempt and the event, all or nothing.

    A job that was cancelled in the meantime ends as cancelled instead.
    """
    current = _reread(c, job)
    if current.status == CANCELLING:
        return cancelled(c, job, attempt, hooks, now)
    completion = hooks.complete.get(job.kind)
    made = completion(c, current, attempt, outputs, now) if completion else JobResult({})
    attempt_rows.change(c, job.project_id, attempt.id, status="succeeded", finished_at=now)
    ended = job_rows.change(
        c,
        current,
        status=SUCCEEDED,
        result=dict(made.result),
        warnings=[*current.warnings, *made.warnings],
        progress={**current.progress, "phase": "done", "percent": 100.0, "eta_seconds": 0.0},
        finished_at=now,
        lease_until=None,
    )
    for warning in made.warnings:
        append_of_job(c, ended, events.JOB_WARNING, now, warning=warning)
    append_of_job(c, ended, events.JOB_SUCCEEDED, now, result=dict(made.result))
    return ended


def give_up_attempt(
    c: Connection, job: Job, attempt: Attempt, failure: Failure, max_attempts: int, hooks: Hooks, now: float
) -> Job:
    """Note a failed attempt and either queue the job for another one or fail it with the story of each."""
    status = "lost" if failure.kind == "lost" else "failed"
    current = _reread(c, job)
    attempt_rows.change(c, job.project_id, attempt.id, status=status, error=failure.as_error(), finished_at=now)
    if current.status == CANCELLING:
        return cancelled(c, job, attempt, hooks, now)
    retry = decide_retry(failure, attempt.number, max_attempts)
    if not retry.again:
        return fail(c, job, failure.code, failure.detail, hooks, now, failure.log_tail)
    queued = requeue(c, current, now + retry.delay)
    told = fault(failure.code, failure.detail)
    append_of_job(c, queued, events.JOB_RETRYING, now, attempt=attempt.number, error=told)
    return queued


def settle(c: Connection, job: Job, hooks: Hooks, now: float) -> Job:
    """End a held job without a live attempt if it is to be cancelled, else hand it back to the queue."""
    current = _reread(c, job)
    if current.cancel_requested_at is not None:
        return cancelled(c, current, None, hooks, now)
    return requeue(c, current, now)


def requeue(c: Connection, job: Job, not_before: float) -> Job:
    """Hand a held job back to the queue."""
    return job_rows.change(
        c,
        job,
        status=QUEUED,
        not_before=not_before,
        claimed_by=None,
        lease_until=None,
        placement=None,
        progress=dict(EMPTY_PROGRESS),
    )


def fail(
    c: Connection, job: Job, code: str, detail: str, hooks: Hooks, now: float, log_tail: Sequence[str] = ()
) -> Job:
    """End a job as failed; with several attempts behind it the detail tells how each of them ended.

    ``log_tail`` is kept on job and attempt only: events and versions do without it.
    """
    current = _reread(c, job)
    attempts = attempt_rows.of_job(c, job.project_id, job.id)
    for attempt in attempts:
        if attempt.live:
            error = fault(code, detail, log_tail)
            attempt_rows.change(c, job.project_id, attempt.id, status="failed", error=error, finished_at=now)
    told = detail if len(attempts) < 2 else f"{detail} ({story(attempts)})"
    error, kept = fault(code, told), fault(code, told, log_tail)
    ended = job_rows.change(c, current, status=FAILED, error=kept, finished_at=now, lease_until=None)
    ending = hooks.on_failed.get(job.kind)
    if ending is not None:
        ending(c, ended, error, now)
    append_of_job(c, ended, events.JOB_FAILED, now, error=error)
    return ended


def cancelled(c: Connection, job: Job, attempt: Attempt | None, hooks: Hooks, now: float, warning: str = "") -> Job:
    """End a job as cancelled."""
    current = _reread(c, job)
    if attempt is not None:
        attempt_rows.change(c, job.project_id, attempt.id, status="cancelled", finished_at=now)
    warnings = [*current.warnings, *([warning] if warning else [])]
    ended = job_rows.change(c, current, status=CANCELLED, warnings=warnings, finished_at=now, lease_until=None)
    ending = hooks.on_cancelled.get(job.kind)
    if ending is not None:
        ending(c, ended, None, now)
    append_of_job(c, ended, events.JOB_CANCELLED, now)
    return ended


def _reread(c: Connection, job: Job) -> Job:
    """The job as it is now and stays until we have written; StaleClaim where somebody has claimed it since."""
    current = job_rows.get_locked(c, job.project_id, job.id)
    if current is None or current.claim_no != job.claim_no:
        raise StaleClaim(f"Job {job.id} is no longer held by claim {job.claim_no}.")
    return current
