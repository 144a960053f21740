"""Projects: what a tenant is told of itself, and pausing and resuming its work."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from controlplane.db import projects as project_rows
from controlplane.db.database import Database
from controlplane.domain import events
from controlplane.domain.projects import Project, checked_reason
from controlplane.errors import NotFound
from controlplane.ports import Clock
from controlplane.services.events import Hints, append


class Projects:
    """The projects service. While a project is paused its requests are still accepted, and wait."""

    def __init__(self, db: Database, clock: Clock, hints: Hints) -> None:
        self._db = db
        self._clock = clock
        self._hints = hints

    async def get(self, project_id: str) -> Project:
        """One project; NotFound."""
        return await self._db.read(_get, project_id)

    async def pause(self, project_id: str, reason: str = "") -> Project:
        """Let nothing new of a project begin; what runs goes on. Pausing again only changes the reason.

        NotFound, Unprocessable (the reason is too long).
        """
        project = await self._db.write(_pause, project_id, checked_reason(reason), self._clock.now())
        self._hints.wake()
        return project

    async def resume(self, project_id: str) -> Project:
        """Let a project's work begin again; fine where it was not paused. NotFound."""
        project = await self._db.write(_resume, project_id, self._clock.now())
        self._hints.wake()
        return project


def _get(c: Connection, project_id: str) -> Project:
    return _there(project_rows.get(c, project_id), project_id)


def _there(project: Project | None, project_id: str) -> Project:
    if project is None:
        raise NotFound(f"There is no project {project_id}.")
    return project


def _pause(c: Connection, project_id: str, reason: str, now: float) -> Project:
    project = _there(project_rows.get_locked(c, project_id), project_id)
    paused = replace(project, paused_at=project.paused_at or now, pause_reason=reason)
    if paused != project:
        project_rows.set_pause(c, project_id, paused.paused_at, reason)
        told = {"project_id": project_id, "paused_at": paused.paused_at, "reason": reason}
        append(c, project_id, events.PROJECT_PAUSED, told, now=now)
    return paused


def _resume(c: Connection, project_id: str, now: float) -> Project:
    project = _there(project_rows.get_locked(c, project_id), project_id)
    if project.is_paused:
        project_rows.set_pause(c, project_id, None, "")
        append(c, project_id, events.PROJECT_RESUMED, {"project_id": project_id}, now=now)
    return replace(project, paused_at=None, pause_reason="")
