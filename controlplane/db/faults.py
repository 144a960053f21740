"""Faults: what an error of the database's driver means to whoever asked for the transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy.exc import DataError, DBAPIError

from controlplane.db import postgresql, sqlite
from controlplane.errors import BadRequest, CommitUnknown, DatabaseAway

RETRY_AFTER = {"Retry-After": "2"}


def name_of(fn: Callable[..., Any]) -> str:
    """What a transaction is called, in the names of failpoints."""
    while isinstance(fn, partial):
        fn = fn.func
    return str(getattr(fn, "__name__", type(fn).__name__)).lstrip("_")


def of_statement(error: DBAPIError) -> Exception:
    """What a failed statement or BEGIN is told as: nothing of its transaction was committed."""
    if isinstance(error, DataError):
        # PostgreSQL refuses a NUL, an over-long text or an over-large number where SQLite would take it.
        return BadRequest("A value of this request cannot be stored: too long, too large, or a text with NUL in it.")
    if is_away(error):
        return DatabaseAway(f"The database cannot be used just now ({_first_line(error)}).", headers=RETRY_AFTER)
    return error


def of_commit(error: DBAPIError) -> Exception:
    """What a failed COMMIT is told as."""
    undone = sqlite.is_undone(error) if isinstance(error.orig, sqlite3.Error) else not postgresql.is_lost(error)
    return of_statement(error) if undone else unknown(_first_line(error))


def unknown(why: str = "") -> CommitUnknown:
    """The answer to a COMMIT that got none."""
    said = f" ({why})" if why else ""
    return CommitUnknown(
        f"The database went away while this was being stored{said}, so it may or may not have been done. Repeat the "
        "request with the same Idempotency-Key: what was done is then answered, and not done twice.",
        headers=RETRY_AFTER,
    )


def is_away(error: DBAPIError) -> bool:
    """Whether the database, not the statement, is what is wrong."""
    return sqlite.is_away(error) if isinstance(error.orig, sqlite3.Error) else postgresql.is_away(error)


def _first_line(error: DBAPIError) -> str:
    """The driver's own words; they name no password."""
    lines = str(error.orig).strip().splitlines()
    return lines[0][:200] if lines else type(error.orig).__name__
