"""Outcomes: the transactions that move a held job on or end it, each fenced by the claim it was read with."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection

from controlplane.db import attempts as attempt_rows
from controlplane.db import held as held_rows
from controlplane.domain import events
from controlplane.domain.jobs import (
    CANCELLED,
    CANCELLING,
    COLLECTING,
    EMPTY_PROGRESS,
    FAILED,
    HELD,
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


@dataclass(frozen=True)
class News:
    """What the process that carries an attempt has learned of it and not written yet. Times are epoch seconds.

    What happens to a short job is written with its outcome; only what goes on for a moment gets a transaction before.
    """

    in_doubt: bool = False
    """The pod may or may not have the prompt; the attempt's row keeps saying ``created``."""
    submitted_at: float | None = None
    started_at: float | None = None
    collecting: bool = False
    """The pod has finished and is free for others; its outputs are about to be checked, once they are there."""
    progress: Mapping[str, Any] | None = None

    @property
    def status(self) -> str | None:
        """How far the job is by this, None where this says nothing of it."""
        if self.collecting:
            return COLLECTING
        if self.started_at is not None:
            return RUNNING
        if self.submitted_at is not None:
            return SUBMITTED
        return SUBMIT_UNKNOWN if self.in_doubt else None

    def of_attempt(self) -> dict[str, Any]:
        """The columns of the attempt that this changes."""
        times = {"submitted_at": self.submitted_at, "started_at": self.started_at}
        values: dict[str, Any] = {name: time for name, time in times.items() if time is not None}
        if self.status not in (None, SUBMIT_UNKNOWN):
            values["status"] = self.status
        return values


NO_NEWS = News()


def note(c: Connection, job: Job, attempt: Attempt, news: News, now: float) -> Job:
    """Write how far an attempt is; a job that is being cancelled stays that. StaleClaim."""
    current, values = _with(c, _reread(c, job), attempt, news, now)
    if news.status is not None and may_follow(current.status, news.status):
        values["status"] = news.status
    of_attempt = news.of_attempt()
    if of_attempt:
        held_rows.put_attempt(c, attempt.id, **of_attempt)
    changed = held_rows.put(c, current, **values) if values else current
    if news.progress is not None:
        append_of_job(c, changed, events.JOB_PROGRESS, now)
    return changed


def succeed(
    c: Connection,
    job: Job,
    attempt: Attempt,
    outputs: Mapping[str, Any],
    hooks: Hooks,
    now: float,
    news: News = NO_NEWS,
) -> Job:
    """Store the outcome: what the kind makes of it, the job, the attempt and the event, all or nothing.

    A job that was cancelled in the meantime ends as cancelled instead.
    """
    current = _reread(c, job)
    if current.status == CANCELLING:
        return cancelled(c, current, attempt, hooks, now, news=news)
    current, values = _with(c, current, attempt, news, now)
    completion = hooks.complete.get(job.kind)
    made = completion(c, current, attempt, outputs, now) if completion else JobResult({})
    held_rows.put_attempt(c, attempt.id, **{**news.of_attempt(), "status": "succeeded", "finished_at": now})
    values |= {
        "status": SUCCEEDED,
        "result": dict(made.result),
        "progress": {**current.progress, "phase": "done", "percent": 100.0, "eta_seconds": 0.0},
        "finished_at": now,
        "lease_until": None,
    }
    if made.warnings:
        values["warnings"] = [*current.warnings, *made.warnings]
    ended = held_rows.put(c, current, **values)
    for warning in made.warnings:
        append_of_job(c, ended, events.JOB_WARNING, now, warning=warning)
    append_of_job(c, ended, events.JOB_SUCCEEDED, now, result=dict(made.result))
    return ended


def give_up_attempt(
    c: Connection,
    job: Job,
    attempt: Attempt,
    failure: Failure,
    max_attempts: int,
    hooks: Hooks,
    now: float,
    news: News = NO_NEWS,
) -> Job:
    """Note a failed attempt and either queue the job for another one or fail it with the story of each."""
    status = "lost" if failure.kind == "lost" else "failed"
    current = note(c, job, attempt, news, now)
    held_rows.put_attempt(c, attempt.id, status=status, error=failure.as_error(), finished_at=now)
    if current.status == CANCELLING:
        return cancelled(c, current, attempt, hooks, now)
    retry = decide_retry(failure, attempt.number, max_attempts)
    if not retry.again:
        return fail(c, current, failure.code, failure.detail, hooks, now, failure.log_tail)
    queued = requeue(c, current, now + retry.delay)
    told = fault(failure.code, failure.detail)
    append_of_job(c, queued, events.JOB_RETRYING, now, attempt=attempt.number, error=told)
    return queued


def take_back(c: Connection, job: Job, attempt: Attempt, hooks: Hooks, now: float, news: News = NO_NEWS) -> Job:
    """Hand a job back to the queue whose attempt its pod has never begun: that was no try, and leaves no trace."""
    current = _reread(c, job)
    if current.cancel_requested_at is not None:
        return cancelled(c, current, attempt, hooks, now, news=news)
    held_rows.remove_attempt(c, attempt.id)
    return requeue(c, current, now)


def settle(c: Connection, job: Job, hooks: Hooks, now: float) -> Job:
    """End a held job without a live attempt if it is to be cancelled, else hand it back to the queue."""
    current = _reread(c, job)
    if current.cancel_requested_at is not None:
        return cancelled(c, current, None, hooks, now)
    return requeue(c, current, now)


def requeue(c: Connection, job: Job, not_before: float) -> Job:
    """Hand a held job back to the queue."""
    return held_rows.put(
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
            held_rows.put_attempt(c, attempt.id, status="failed", error=error, finished_at=now)
    told = detail if len(attempts) < 2 else f"{detail} ({story(attempts)})"
    error, kept = fault(code, told), fault(code, told, log_tail)
    ended = held_rows.put(c, current, status=FAILED, error=kept, finished_at=now, lease_until=None)
    ending = hooks.on_failed.get(job.kind)
    if ending is not None:
        ending(c, ended, error, now)
    append_of_job(c, ended, events.JOB_FAILED, now, error=error)
    return ended


def overdue(
    c: Connection,
    job: Job,
    attempt: Attempt,
    hooks: Hooks,
    now: float,
    log_tail: Sequence[str] = (),
    news: News = NO_NEWS,
) -> Job:
    """End a job that was still at work at its deadline."""
    current = note(c, job, attempt, news, now)
    return fail(c, current, "deadline_exceeded", "The job was not finished before its deadline.", hooks, now, log_tail)


def cancelled(
    c: Connection,
    job: Job,
    attempt: Attempt | None,
    hooks: Hooks,
    now: float,
    warning: str = "",
    news: News = NO_NEWS,
) -> Job:
    """End a job as cancelled."""
    current, values = _with(c, _reread(c, job), attempt, news, now)
    if attempt is not None:
        held_rows.put_attempt(c, attempt.id, **{**news.of_attempt(), "status": "cancelled", "finished_at": now})
    if warning:
        values["warnings"] = [*current.warnings, warning]
    ended = held_rows.put(c, current, **{**values, "status": CANCELLED, "finished_at": now, "lease_until": None})
    ending = hooks.on_cancelled.get(job.kind)
    if ending is not None:
        ending(c, ended, None, now)
    append_of_job(c, ended, events.JOB_CANCELLED, now)
    return ended


def _with(c: Connection, job: Job, attempt: Attempt | None, news: News, now: float) -> tuple[Job, dict[str, Any]]:
    """The job with the news, which columns of it those change, and the event that it has begun, where it has."""
    values: dict[str, Any] = {}
    progress = dict(job.progress if news.progress is None else news.progress)
    if news.started_at is not None and progress.get("phase") == QUEUED:
        progress |= {"phase": RUNNING, "eta_seconds": round(job.estimate_seconds, 1)}
    if progress != job.progress:
        values["progress"] = progress
    if news.started_at is not None and job.started_at is None:
        values["started_at"] = news.started_at
    changed = replace(job, **values)
    if news.started_at is not None and attempt is not None:
        begun = changed if job.status == CANCELLING else replace(changed, status=RUNNING)
        append_of_job(c, begun, events.JOB_STARTED, now, attempt=attempt.number, pod_id=attempt.pod_id)
    return changed, values


def _reread(c: Connection, job: Job) -> Job:
    """The job as it is now and stays until we have written.

    StaleClaim where somebody has claimed it since, or it is held no longer: then this was written before.
    """
    current = held_rows.standing(c, job)
    if current is None or (current.status != job.status and current.status not in HELD):
        raise StaleClaim(f"Job {job.id} is no longer held by claim {job.claim_no}.")
    return current
