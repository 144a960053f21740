"""Planted bugs: ``python -m tests.chaos.planted`` is ``troupe`` with one safety taken out, for the harness to find."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from controlplane.db import idempotency as key_rows
from controlplane.db import jobs as job_rows
from controlplane.domain.jobs import Job
from controlplane.services import outcomes
from controlplane.services.watching import Watcher

VARIABLE = "TROUPE_CHAOS_PLANTED"


def no_claim_check() -> None:
    """Whoever once held a job may go on writing to it, whoever has taken it over since."""
    fenced = _put(job_rows, "change", lambda c, job, **values: fenced(c, _now(c, job), **values))
    _put(outcomes, "_reread", _now)

    async def never(self: Watcher, held: object) -> bool:
        return False

    _put(Watcher, "_is_stale", never)


def no_key_row() -> None:
    """An Idempotency-Key is read and answered, and nothing is kept of it."""
    _put(key_rows, "keep", lambda *arguments: None)


BUGS: dict[str, Callable[[], None]] = {"no claim check": no_claim_check, "no key row": no_key_row}


def _now(c: Connection, job: Job) -> Job:
    """The job as it is, under whatever claim it is."""
    current = job_rows.get_locked(c, job.project_id, job.id)
    assert current is not None
    return current


def _put(owner: Any, name: str, value: Any) -> Any:
    """Put something in the place of what is there; AttributeError where nothing is: no bug is planted in vain."""
    there = getattr(owner, name)
    setattr(owner, name, value)
    return there


if __name__ == "__main__":
    BUGS[os.environ[VARIABLE]]()
    from controlplane.cli import main

    sys.exit(main())
