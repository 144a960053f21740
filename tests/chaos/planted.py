"""Planted bugs: ``python -m tests.chaos.planted`` is ``troupe`` with one safety taken out, for the harness to find."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from controlplane.db import held as held_rows
from controlplane.db import idempotency as key_rows
from controlplane.db import jobs as job_rows
from controlplane.domain.jobs import Job
from controlplane.services import outcomes
from controlplane.services.watching import Watcher

VARIABLE = "TROUPE_CHAOS_PLANTED"


def no_claim_check() -> None:
    """Whoever once held a job may go on writing to it, whoever has taken it over since."""
    standing, put = held_rows.standing, held_rows.put
    _put(held_rows, "standing", lambda c, job: standing(c, _under_any_claim(c, job)))
    _put(held_rows, "put", lambda c, job, **values: put(c, _under_any_claim(c, job), **values))
    _put(outcomes, "_reread", held_rows.standing)

    async def never(self: Watcher, lost: object) -> None:
        return None

    _put(Watcher, "_drop", never)


def no_key_row() -> None:
    """An Idempotency-Key is read and answered, and nothing is kept of it."""
    _put(key_rows, "keep", lambda *arguments: None)


BUGS: dict[str, Callable[[], None]] = {"no claim check": no_claim_check, "no key row": no_key_row}


def _under_any_claim(c: Connection, job: Job) -> Job:
    current = job_rows.get(c, job.project_id, job.id)
    assert current is not None
    return replace(job, claim_no=current.claim_no)


def _put(owner: Any, name: str, value: Any) -> None:
    """Put something in the place of what is there; AttributeError where nothing is: no bug is planted in vain."""
    getattr(owner, name)
    setattr(owner, name, value)


if __name__ == "__main__":
    BUGS[os.environ[VARIABLE]]()
    from controlplane.cli import main

    sys.exit(main())
