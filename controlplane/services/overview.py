"""Overview: what the whole installation looks like from outside, for readiness and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from controlplane.db import counts
from controlplane.db.database import Database
from controlplane.domain.events import JOB_CANCELLED, JOB_FAILED, JOB_SUCCEEDED
from controlplane.domain.jobs import CANCELLED, FAILED, SUCCEEDED

ENDINGS = {SUCCEEDED: JOB_SUCCEEDED, FAILED: JOB_FAILED, CANCELLED: JOB_CANCELLED}


@dataclass(frozen=True)
class Numbers:
    """What is there, over all projects: jobs that are not over by status, pods by state.

    ``ended`` says how many jobs this process has brought to each final status since it started. The database is not
    asked for that: it would count a million rows to say what has hardly changed.
    """

    jobs: Mapping[str, int]
    pods: Mapping[str, int]
    ended: Mapping[str, int]


class Overview:
    """Counts read from the database; reading them also proves that it answers."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def numbers(self) -> Numbers:
        """The counts as of now."""
        jobs, pods = await self._db.read(_counted)
        return Numbers(jobs, pods, {status: self._db.told[type_] for status, type_ in ENDINGS.items()})

    async def pods(self) -> Mapping[str, int]:
        """The pods by state."""
        return await self._db.read(counts.pods_by_state)


def _counted(c: Connection) -> tuple[Mapping[str, int], Mapping[str, int]]:
    return counts.open_jobs_by_status(c), counts.pods_by_state(c)
