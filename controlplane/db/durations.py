"""The statement that tells how long jobs took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, select

from controlplane.db.tables import jobs
from controlplane.domain.jobs import KINDS, SUCCEEDED

NEWEST = 128
"""So many jobs of each kind are read."""

_DONE = (
    select(jobs.c.template, jobs.c.base_model, jobs.c.kind, jobs.c.request, jobs.c.started_at, jobs.c.finished_at)
    .where(
        jobs.c.project_id == bindparam("project"),
        jobs.c.kind == bindparam("of_kind"),
        jobs.c.status == SUCCEEDED,
    )
    .order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
    .limit(NEWEST)
)


@dataclass(frozen=True)
class Done:
    """A job that succeeded, and in how many seconds on its pod."""

    template: str
    base_model: str | None
    kind: str
    request: Mapping[str, Any]
    seconds: float


def newest(c: Connection, project_id: str) -> list[Done]:
    """The newest jobs of a project that succeeded, oldest first within their kind; found through an index."""
    found = []
    for kind in KINDS:
        rows = c.execute(_DONE, {"project": project_id, "of_kind": kind}).all()
        found += [
            Done(row.template, row.base_model, row.kind, row.request, row.finished_at - row.started_at)
            for row in reversed(rows)
            if row.started_at is not None and row.finished_at is not None and row.finished_at >= row.started_at
        ]
    return found
