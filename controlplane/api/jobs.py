"""Jobs: list, read, cancel, and the answer that every accepted request shares."""

from __future__ import annotations

from aiohttp import web

from controlplane.api.auth import authenticate
from controlplane.api.context import services
from controlplane.api.reading import query, wait_seconds
from controlplane.api.replies import json_reply, page_reply
from controlplane.api.schemas.jobs import JobsQuery
from controlplane.api.views import job_links, views
from controlplane.domain.jobs import is_final
from controlplane.services.jobs import JobView


async def list_jobs(request: web.Request) -> web.Response:
    """One page of jobs, newest first."""
    wanted = query(request, JobsQuery)
    page = await services(request).jobs.list(
        authenticate(request).project_id,
        character_id=wanted.character_id,
        kind=wanted.kind,
        status=wanted.status,
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


async def reply_with_job(request: web.Request, project: str, job_id: str) -> web.Response:
    """202 with the job; with ``Prefer: wait=N`` 200 where it is final in time."""
    seconds = wait_seconds(request, services(request).settings.prefer_wait_max_seconds)
    jobs = services(request).jobs
    view = await (jobs.wait(project, job_id, seconds) if seconds else jobs.get(project, job_id))
    status = 200 if seconds and is_final(view.job.status) else 202
    return _job_reply(request, view, status, _applied(seconds))


def _applied(seconds: float | None) -> dict[str, str]:
    return {} if seconds is None else {"Preference-Applied": f"wait={seconds:g}"}


def _job_reply(request: web.Request, view: JobView, status: int, headers: dict[str, str] | None = None) -> web.Response:
    links = job_links(view.job)
    body = {"job": views(request).job(view), "links": links}
    return json_reply(body, status, {"Location": links["self"], **(headers or {})})
