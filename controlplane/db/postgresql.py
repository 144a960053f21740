"""PostgreSQL's own matters: its URLs, the limits of its sessions, and which errors mean that somebody was quicker."""

from __future__ import annotations

import os

from sqlalchemy import make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError

STATEMENT_SECONDS = 60
LOCK_SECONDS = 20
IDLE_IN_TRANSACTION_SECONDS = 60
"""A replica that hangs in a transaction must not hold its locks for ever."""
CONNECT_SECONDS = 10

_RACES = frozenset({"40001", "40P01", "23505"})
"""SQLSTATE of a serialization failure, a deadlock, and a unique key that another transaction took."""
_ENDED = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03", "25P04", "25006"})
"""A server that stops, crashes or starts, a session that it ended, and one that has become a standby."""
_OVERLOADED = frozenset({"55P03", "57014"})
"""A lock, or a statement, that took longer than it may."""


def with_driver(url: str) -> URL:
    """``postgres://`` and ``postgresql://``, as hosting companies hand them out, with the driver that we use."""
    parsed = make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def connect_options(url: str) -> dict[str, object]:
    """What every connection is opened with; ``options`` of the URL itself come last, and so win."""
    limits = {
        "statement_timeout": STATEMENT_SECONDS * 1000,
        "lock_timeout": LOCK_SECONDS * 1000,
        "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_SECONDS * 1000,
    }
    told = with_driver(url).query.get("options", "")
    ours = [f"-c {name}={value}" for name, value in limits.items()]
    return {
        "options": " ".join([*ours, told if isinstance(told, str) else " ".join(told)]).strip(),
        "connect_timeout": CONNECT_SECONDS,
        "application_name": f"troupe {os.getpid()}",
    }


def is_lost(error: DBAPIError) -> bool:
    """Whether the connection is gone, or none could be made: what was not committed is undone, a new one may help."""
    state = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated or state in _ENDED or (state or "").startswith("08"):
        return True
    return state is None and isinstance(error, OperationalError)  # no server answered


def is_away(error: DBAPIError) -> bool:
    """Whether the server cannot be used just now: gone, out of room or connections, or too slow."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return is_lost(error) or state in _OVERLOADED or state.startswith("53")


def is_race(error: DBAPIError) -> bool:
    """Whether running the same transaction again has a chance, and is safe: nothing of it was committed."""
    return getattr(error.orig, "sqlstate", None) in _RACES
