"""The caller's own project: read it, pause it, resume it."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from controlplane.api.auth import authenticate
from controlplane.api.context import services
from controlplane.api.reading import json_body
from controlplane.api.replies import json_reply
from controlplane.api.schemas.projects import PatchProject
from controlplane.api.views import moment, moment_or_none
from controlplane.domain.projects import Project
from controlplane.errors import Unprocessable


async def get_project(request: web.Request) -> web.Response:
    """The project that the caller belongs to."""
    return json_reply(_body(await services(request).projects.get(authenticate(request).project_id)))


async def patch_project(request: web.Request) -> web.Response:
    """Pause or resume: while it is paused, requests are accepted and wait; what runs goes on."""
    body, project_id = await json_body(request, PatchProject), authenticate(request).project_id
    projects = services(request).projects
    if body.paused:
        return json_reply(_body(await projects.pause(project_id, body.reason or "")))
    if body.reason:
        detail = "a reason belongs to a pause"
        raise Unprocessable(detail, errors=[{"pointer": "/reason", "detail": detail}])
    return json_reply(_body(await projects.resume(project_id)))


def _body(project: Project) -> dict[str, Any]:
    return {
        "id": project.id,
        "name": project.name,
        "paused": project.is_paused,
        "paused_at": moment_or_none(project.paused_at),
        "pause_reason": project.pause_reason or None,
        "created_at": moment(project.created_at),
    }
