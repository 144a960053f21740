"""The only commit edge: reads and writes run as plain functions in worker threads, each in one transaction."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DataError, DBAPIError

from controlplane.db import events
from controlplane.db.postgresql import connect_options, is_race, with_driver
from controlplane.errors import BadRequest, TroupeError

T = TypeVar("T")

SQLITE_BUSY_SECONDS = 30
READERS = 4
WRITERS = 8
TRIES = 6
"""How often a write is run that met another one on PostgreSQL."""
LONGEST_PAUSE_SECONDS = 0.05


class Database:
    """One engine; lives as long as the application.

    ``await db.read(fn, *args)`` and ``await db.write(fn, *args)`` call ``fn(connection, *args)`` in a thread. ``fn``
    is synchronous, so a network call that awaits inside a transaction is impossible. SQLite gets one writer thread:
    writers never meet the busy handler inside this process.

    A read sees one moment of the database, however many statements it makes. Writes of other processes are kept out
    by SQLite; on PostgreSQL (READ COMMITTED) every statement sees what was committed before it, and a write that
    decides on what it has read locks those rows (``with_for_update``, nothing on SQLite). A write that met another
    one all the same - a deadlock, a unique key that was free a moment ago - is run again and sees what the other
    did, so ``fn`` may run more than once and must leave no trace outside its transaction.
    """

    def __init__(self, url: str) -> None:
        """Open ``url`` (SQLAlchemy form); nothing is created here, see ``migrate``."""
        self.url = url
        self.engine: Engine = _make_engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="db-read")
        self._writers = ThreadPoolExecutor(1 if self.is_sqlite else WRITERS, thread_name_prefix="db-write")

    async def read(self, fn: Callable[..., T], *args: Any) -> T:
        """Run ``fn(connection, *args)`` on a read-only transaction."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read_sync, fn, *args)

    async def write(self, fn: Callable[..., T], *args: Any) -> T:
        """Run ``fn(connection, *args)`` and commit; an exception rolls everything back.

        The transaction is shielded: a cancelled caller never leaves it half-known.
        """
        future = asyncio.get_running_loop().run_in_executor(self._writers, self.write_sync, fn, *args)
        return await asyncio.shield(future)

    def read_sync(self, fn: Callable[..., T], *args: Any) -> T:
        """The same as ``read`` for code that has no event loop."""
        with self.engine.connect() as connection:
            self._begin_read(connection)
            try:
                return fn(connection, *args)
            except DataError as error:
                raise _unstorable() from error
            finally:
                connection.rollback()

    def write_sync(self, fn: Callable[..., T], *args: Any) -> T:
        """The same as ``write`` for code that has no event loop."""
        for tried in range(1, TRIES):
            try:
                return self._write_once(fn, *args)
            except DBAPIError as error:
                if not is_race(error):
                    raise
            time.sleep(random.uniform(0.0, LONGEST_PAUSE_SECONDS * tried))
        return self._write_once(fn, *args)

    def _begin_read(self, connection: Connection) -> None:
        if self.is_sqlite:
            connection.exec_driver_sql("BEGIN")
        else:
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def _write_once(self, fn: Callable[..., T], *args: Any) -> T:
        with self.engine.connect() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            events.begin(connection)
            try:
                result = fn(connection, *args)
                events.write_waiting(connection)
            except DataError as error:
                connection.rollback()
                raise _unstorable() from error
            except BaseException:
                connection.rollback()
                raise
            connection.commit()
            return result

    async def close(self) -> None:
        """Wait for running transactions and close every connection."""
        await asyncio.to_thread(self._readers.shutdown)
        await asyncio.to_thread(self._writers.shutdown)
        self.engine.dispose()


def _unstorable() -> BadRequest:
    """PostgreSQL refuses a NUL, an over-long text or an over-large number where SQLite would take it."""
    return BadRequest("A value of this request cannot be stored: too long, too large, or a text with NUL in it.")


def _make_engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return _make_postgresql_engine(url)
    engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: sqlite3.Connection, _record: object) -> None:
        # The driver must not open transactions by itself: we say BEGIN or BEGIN IMMEDIATE.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


def _make_postgresql_engine(url: str) -> Engine:
    try:
        # The default of a server may be stricter; what is locked here is thought out for this level.
        return create_engine(
            with_driver(url),
            isolation_level="READ COMMITTED",
            pool_pre_ping=True,
            pool_size=READERS + WRITERS,
            max_overflow=2,
            connect_args=connect_options(url),
        )
    except ModuleNotFoundError as missing:
        raise TroupeError(f"This database needs {missing.name}: pip install 'troupe-studio[postgres]'") from missing
