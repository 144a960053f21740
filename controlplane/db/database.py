"""The only commit edge: reads and writes run as plain functions in worker threads, each in one transaction."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import DBAPIError

from controlplane import failpoints
from controlplane.db import events, sqlite
from controlplane.db.faults import name_of, of_commit, of_statement, unknown
from controlplane.db.group_commit import GroupCommit
from controlplane.db.postgresql import connect_options, is_lost, is_race, with_driver
from controlplane.errors import CommitUnknown, TroupeError

T = TypeVar("T")

READERS = 4
WRITERS = 3
"""On PostgreSQL. Commits with events take their turns, so more threads only take the processor from each other."""
TRIES = 6
"""How often a write is run that met another one on PostgreSQL."""
LONGEST_PAUSE_SECONDS = 0.05
AWAY_SECONDS = 10.0
"""How long a transaction waits for a database server that is gone to come back."""
AWAY_PAUSE_SECONDS = 0.25


class Database:
    """One engine; lives as long as the application.

    ``await db.read(fn, *args)`` and ``await db.write(fn, *args)`` call ``fn(connection, *args)`` in a thread. ``fn``
    is synchronous, so a network call that awaits inside a transaction is impossible. SQLite gets one writer thread,
    which commits together what waits at the same moment: writers never meet the busy handler inside this process.

    A read sees one moment of the database, however many statements it makes. Writes of other processes are kept out
    by SQLite; on PostgreSQL (READ COMMITTED) every statement sees what was committed before it, and a write that
    decides on what it has read locks those rows (``with_for_update``, nothing on SQLite). A write that met another
    one all the same - a deadlock, a unique key that was free a moment ago - is run again and sees what the other
    did, so ``fn`` may run more than once and must leave no trace outside its transaction.

    A server that goes away is waited for, AWAY_SECONDS long: reads, and writes that had not come to their COMMIT, are
    run again on a new connection. Then DatabaseAway is raised: nothing was done. A connection that broke during a
    COMMIT leaves open whether it was done, and raises CommitUnknown; see ``write_fenced``.
    """

    def __init__(self, url: str) -> None:
        """Open ``url`` (SQLAlchemy form); nothing is created here, see ``migrate``."""
        self.url = url
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self.engine: Engine = sqlite.make_engine(url) if self.is_sqlite else _make_postgresql_engine(url)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="db-read")
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="db-write")
        self._group = GroupCommit(self.engine, self._count) if self.is_sqlite else None
        self._counting = threading.Lock()
        self.told: Counter[str] = Counter()
        """How many events of each type this process has written, since it opened the database."""

    async def read(self, fn: Callable[..., T], *args: Any) -> T:
        """Run ``fn(connection, *args)`` on a read-only transaction. DatabaseAway."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read_sync, fn, *args)

    async def write(self, fn: Callable[..., T], *args: Any) -> T:
        """Run ``fn(connection, *args)`` and commit; an exception rolls everything back. DatabaseAway, CommitUnknown.

        The transaction is shielded: a cancelled caller never leaves it half-known.
        """
        if self._group is not None:
            done: T = await self._group.write(fn, args)
            return done
        future = asyncio.get_running_loop().run_in_executor(self._writers, self.write_sync, fn, *args)
        return await asyncio.shield(future)

    async def write_fenced(self, fn: Callable[..., T], *args: Any) -> T:
        """The same for a write that may be repeated: where nobody knows whether it was committed it is run again.

        That is sound for a ``fn`` whose second run, after a first one that was committed, is refused or changes
        nothing. The steps of the engine are such, as each reads its job again under ``claim_no`` first:

        - a claim takes queued jobs only, so its second run takes other ones. Those of the first have their attempt's
          row, and nobody at work on them: their lease runs out, and whoever takes them over asks the pod first;
        - a renewal of leases sets what it set before; a take-over finds no lease that has run out any more, and those
          of the first run have to run out once more;
        - notes (submitted, running, progress) write the same values again; an event may be told twice, no state is;
        - an ending (succeeded, failed, cancelled) and a return to the queue find the job no longer held and raise
          StaleClaim: the first run was committed, there is nothing left to do;
        - an asset is marked as stored or deleted, a thumbnail noted, a pod's heartbeat taken: the same values again;
        - a ticket finds the file that was announced, a registration the pod of that instance, a cancel the cancelled
          job, a report of progress its own number.

        What inserts a row is such only where its id is made up outside of ``fn``, which looks for it when it is run
        again; else a second one would be inserted.
        """
        end = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                return await self.write(fn, *args)
            except CommitUnknown:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(AWAY_PAUSE_SECONDS)

    def read_sync(self, fn: Callable[..., T], *args: Any) -> T:
        """The same as ``read`` for code that has no event loop."""
        return self._patiently(partial(self._read_once, fn, *args))

    def write_sync(self, fn: Callable[..., T], *args: Any) -> T:
        """The same as ``write`` for code that has no event loop."""
        return self._patiently(partial(self._write_once, fn, *args))

    def _patiently(self, once: Callable[[], T]) -> T:
        """Run a transaction until it is through, has failed for good, or has waited long enough."""
        end, tries = time.monotonic() + AWAY_SECONDS, TRIES
        while True:
            try:
                return once()
            except DBAPIError as error:
                if not self.is_sqlite and is_race(error) and tries > 1:
                    tries -= 1
                    pause = random.uniform(0.0, LONGEST_PAUSE_SECONDS * (TRIES - tries))
                elif not self.is_sqlite and is_lost(error) and time.monotonic() < end:
                    pause = random.uniform(0.2, 1.0) * AWAY_PAUSE_SECONDS
                else:
                    told = of_statement(error)
                    if told is error:
                        raise
                    raise told from error
            except failpoints.Cut:
                pause = 0.0
            time.sleep(pause)

    def _read_once(self, fn: Callable[..., T], *args: Any) -> T:
        with self.engine.connect() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN")
            else:
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            try:
                return fn(connection, *args)
            finally:
                connection.rollback()

    def _write_once(self, fn: Callable[..., T], *args: Any) -> T:
        with self.engine.connect() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            events.begin(connection)
            try:
                result = fn(connection, *args)
                events.write_waiting(connection)
                failpoints.reach(f"{name_of(fn)} before commit")
            except BaseException:
                connection.rollback()
                raise
            self._commit(connection)
            self._count(events.types_of(connection))
            try:
                failpoints.reach(f"{name_of(fn)} after commit")
            except failpoints.Cut:
                raise unknown() from None
            return result

    def _commit(self, connection: Connection) -> None:
        try:
            connection.commit()
        except DBAPIError as error:
            told = of_commit(error)
            connection.invalidate()
            if isinstance(told, CommitUnknown):
                raise told from error
            raise

    def _count(self, types: Iterable[str]) -> None:
        with self._counting:
            self.told.update(types)

    async def close(self) -> None:
        """Wait for running transactions and close every connection."""
        await asyncio.to_thread(self._readers.shutdown)
        await asyncio.to_thread(self._writers.shutdown)
        if self._group is not None:
            await asyncio.to_thread(self._group.close)
        self.engine.dispose()


def _make_postgresql_engine(url: str) -> Engine:
    try:
        # The default of a server may be stricter; what is locked here is thought out for this level.
        return create_engine(
            with_driver(url),
            isolation_level="READ COMMITTED",
            pool_size=READERS + WRITERS,
            max_overflow=2,
            connect_args=connect_options(url),
        )
    except ModuleNotFoundError as missing:
        raise TroupeError(f"This database needs {missing.name}: pip install 'troupe-studio[postgres]'") from missing
