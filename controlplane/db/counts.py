"""Counts over whole tables, for readiness and metrics, none of which may take longer the more there ever was."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, func, select, text

from controlplane.db.tables import HELD_ROWS, QUEUED_ROWS, jobs, pods
from controlplane.domain.jobs import QUEUED
from controlplane.domain.pods import LOST

_ANY_POD = select(pods.c.id).where(pods.c.project_id == bindparam("project"), pods.c.state != LOST).limit(1)


def open_jobs_by_status(c: Connection) -> dict[str, int]:
    """How many jobs of all projects are waiting, or in each status on the way; those that are over are not counted."""
    waiting = c.execute(select(func.count()).select_from(jobs).where(text(QUEUED_ROWS))).scalar_one()
    held = c.execute(select(jobs.c.status, func.count()).where(text(HELD_ROWS)).group_by(jobs.c.status))
    return {QUEUED: waiting, **{status: count for status, count in held}}


def pods_by_state(c: Connection) -> dict[str, int]:
    """How many pods of all projects are in each state."""
    rows = c.execute(select(pods.c.state, func.count()).group_by(pods.c.state))
    return {state: count for state, count in rows}


def is_any_pod_known(c: Connection, project_id: str) -> bool:
    """Whether a project has a pod that is not lost."""
    return c.execute(_ANY_POD, {"project": project_id}).first() is not None
