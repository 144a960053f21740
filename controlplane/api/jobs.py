"""Jobs: list, read, cancel, and the answer that every accepted request for a picture or a video shares."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

from aiohttp import web

from controlplane.api.auth import authenticate
from controlplane.api.context import services
from controlplane.api.reading import query, wait_seconds
from controlplane.api.repeating import answered_once, claim_of
from controlplane.api.replies import json_reply, page_reply
from controlplane.api.schemas.jobs import JobsQuery
from controlplane.api.views import job_links, views
from controlplane.domain.jobs import Job, is_final
from controlplane.services.idempotency import Claim
from controlplane.services.jobs import JobView

W = TypeVar("W")


async def list_jobs(request: web.Request) -> web.Response:
    """One page of jobs, newest first."""
    wanted = query(request, JobsQuery)
    page = await services(request).jobs.list(
        authenticate(request).project_id,
        character_id=wanted.character_id,
        kind=wanted.kind,
        statuses=wanted.statuses,
        created_from=_seconds(wanted.created_from),
        created_before=_seconds(wanted.created_before),
        limit=wanted.limit,
        cursor=wanted.cursor,
    )
    return page_reply([views(request).job(job) for job in page.items], page.next_cursor)


async def get_job(request: web.Request) -> web.Response:
    """One job; ``Prefer: wait=N`` holds the answer until it is final."""
    project, job_id = authenticate(request).project_id, request.match_info["job_id"]
    seconds = wait_seconds(request, services(request).settings.prefer_wait_max_seconds)
    jobs = services(request).jobs
    view = await (jobs.wait(project, job_id, seconds) if seconds else jobs.get(project, job_id))
    return json_reply(views(request).job(view), headers=_applied(seconds))


async def cancel_job(request: web.Request) -> web.Response:
    """Cancel a job: 200 where it is cancelled at once, 202 while its pod still has to stop."""
    view = await services(request).jobs.cancel(authenticate(request).project_id, request.match_info["job_id"])
    return _job_reply(request, view, 200 if is_final(view.job.status) else 202)


async def accept(
    request: web.Request, wanted: W, submit: Callable[[str, W, Claim | None], Awaitable[Job]]
) -> web.Response:
    """202 with the job that ``submit`` makes; with ``Prefer: wait=N`` 200 where it is final in time.

    Without waiting the answer is made of the new row itself, and kept with the Idempotency-Key in its transaction.
    """
    project = authenticate(request).project_id
    seconds = wait_seconds(request, services(request).settings.prefer_wait_max_seconds)
    at_once: dict[str, web.Response] = {}

    def accepted(job: Job) -> web.Response:
        at_once[job.id] = _job_reply(request, JobView(job), 202, _applied(seconds))
        return at_once[job.id]

    once = claim_of(request, wanted, at_once=None if seconds else accepted)

    async def work() -> web.Response:
        job = await submit(project, wanted, once)
        if not seconds and (once is None or job.id in at_once):
            return at_once.get(job.id) or accepted(job)
        # Held, or a repeated request whose first one has no answer yet: the job may be anywhere in its life.
        view = await services(request).jobs.wait(project, job.id, seconds or 0.0)
        status = 200 if seconds and is_final(view.job.status) else 202
        return _job_reply(request, view, status, _applied(seconds))

    # The transaction that makes the job looks for an earlier answer first.
    return await answered_once(request, once, work, look=False, kept=at_once.values())


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _applied(seconds: float | None) -> dict[str, str]:
    return {} if seconds is None else {"Preference-Applied": f"wait={seconds:g}"}


def _job_reply(request: web.Request, view: JobView, status: int, headers: dict[str, str] | None = None) -> web.Response:
    links = job_links(view.job)
    body = {"job": views(request).job(view), "links": links}
    return json_reply(body, status, {"Location": links["self"], **(headers or {})})
