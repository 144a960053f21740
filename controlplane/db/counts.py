"""Counts over whole tables, for readiness and metrics."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from controlplane.db.tables import jobs, pods


def jobs_by_status(c: Connection) -> dict[str, int]:
    """How many jobs of all projects are in each status."""
    rows = c.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
    return {status: count for status, count in rows}


def pods_by_state(c: Connection) -> dict[str, int]:
    """How many pods of all projects are in each state."""
    rows = c.execute(select(pods.c.state, func.count()).group_by(pods.c.state))
    return {state: count for state, count in rows}
