"""The only commit edge: reads and writes run as plain functions in worker threads, each in one transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import create_engine, event
from sqlalchemy.engine import Engine, make_url

T = TypeVar("T")

SQLITE_BUSY_SECONDS = 30


class Database:
    """One engine; lives as long as the application.

    ``await db.read(fn, *args)`` and ``await db.write(fn, *args)`` call ``fn(connection, *args)`` in a thread. ``fn``
    is synchronous, so a network call that awaits inside a transaction is impossible. SQLite gets one writer thread:
    writers never meet the busy handler inside this process.
    """

    def __init__(self, url: str) -> None:
        """Open ``url`` (SQLAlchemy form); nothing is created here, see ``migrate``."""
        self.url = url
        self.engine: Engine = _make_engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="db-read")
        self._writers = ThreadPoolExecutor(1 if self.is_sqlite else 8, thread_name_prefix="db-write")

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
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN")
            try:
                return fn(connection, *args)
            finally:
                connection.rollback()

    def write_sync(self, fn: Callable[..., T], *args: Any) -> T:
        """The same as ``write`` for code that has no event loop."""
        with self.engine.connect() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                result = fn(connection, *args)
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


def _make_engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, pool_size=12)
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
