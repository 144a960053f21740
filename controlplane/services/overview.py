"""Overview: what the whole installation looks like from outside, for readiness and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from controlplane.db import counts
from controlplane.db.database import Database


@dataclass(frozen=True)
class Numbers:
    """Jobs by status and pods by state, over all projects."""

    jobs: Mapping[str, int]
    pods: Mapping[str, int]


class Overview:
    """Counts read from the database; reading them also proves that it answers."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def numbers(self) -> Numbers:
        """The counts as of now."""
        return await self._db.read(_numbers)


def _numbers(c: Connection) -> Numbers:
    return Numbers(counts.jobs_by_status(c), counts.pods_by_state(c))
