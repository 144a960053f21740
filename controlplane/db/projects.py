"""The projects table's statements: reading them, pausing and resuming them."""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from controlplane.db.rows import values_of
from controlplane.db.tables import projects
from controlplane.domain.projects import Project


def get(c: Connection, project_id: str) -> Project | None:
    """One project."""
    row = c.execute(select(projects).where(projects.c.id == project_id)).one_or_none()
    return Project(**values_of(row)) if row else None


def get_locked(c: Connection, project_id: str) -> Project | None:
    """One project that nobody else changes until the transaction ends."""
    row = c.execute(select(projects).where(projects.c.id == project_id).with_for_update()).one_or_none()
    return Project(**values_of(row)) if row else None


def ids(c: Connection) -> list[str]:
    """Every project's id."""
    return list(c.execute(select(projects.c.id).order_by(projects.c.id)).scalars())


def paused(c: Connection) -> frozenset[str]:
    """The ids of the projects of which nothing new may be begun."""
    return frozenset(c.execute(select(projects.c.id).where(projects.c.paused_at.is_not(None))).scalars())


def set_pause(c: Connection, project_id: str, paused_at: float | None, reason: str) -> None:
    """Write since when and why a project is paused; None and no reason resume it."""
    c.execute(update(projects).where(projects.c.id == project_id).values(paused_at=paused_at, pause_reason=reason))
