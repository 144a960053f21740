"""SQLite's own matters: how its connections are opened, and which errors mean that it cannot be used just now."""

from __future__ import annotations

import sqlite3

from sqlalchemy import create_engine, event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

BUSY_SECONDS = 10
"""How long a transaction waits for another process that writes."""
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY")

_AWAY = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOMEM,
    }
)
_NOTHING_DONE = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM})


def make_engine(url: str) -> Engine:
    """An engine whose transactions begin where we say so."""
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: sqlite3.Connection, _record: object) -> None:
        # The driver must not open transactions by itself: we say BEGIN or BEGIN IMMEDIATE.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


def is_away(error: DBAPIError) -> bool:
    """Whether the file cannot be used just now: locked by another process, the disk full or failing."""
    return _code(error) in _AWAY


def is_undone(error: DBAPIError) -> bool:
    """Whether a COMMIT that failed so has certainly changed nothing; after a failing disk nobody knows."""
    return _code(error) in _NOTHING_DONE


def _code(error: DBAPIError) -> int:
    """SQLite's primary result code."""
    return int(getattr(error.orig, "sqlite_errorcode", 0)) & 0xFF
