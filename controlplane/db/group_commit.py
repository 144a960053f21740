"""The one writer of a SQLite file: a thread that commits together the transactions that wait at the same moment."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from controlplane import failpoints
from controlplane.db import events
from controlplane.db.faults import name_of, of_commit, of_statement, unknown

LONGEST_SECONDS = 0.01
"""A batch takes in what arrives while it runs, for so long; whoever comes later waits for the next one."""
MOST = 64
_SAVEPOINT = "one_of_many"


@dataclass(eq=False)
class _Asked:
    """One transaction that somebody waits for."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    told: Sequence[str] = ()
    """The types of its events."""
    error: BaseException | None = None

    def tell(self) -> None:
        """Resume the caller; call it on its loop. One that was cancelled meanwhile hears nothing."""
        if self.future.done():
            return
        if isinstance(self.error, StopIteration):
            # No future takes one; whoever waits behind it in this batch would never hear.
            self.future.set_exception(RuntimeError(f"{name_of(self.fn)} ran out of something: {self.error!r}"))
        elif self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class GroupCommit:
    """Transactions of one process on one SQLite file.

    Each function is all or nothing: behind the first one of a batch each has a savepoint, so that one that raises
    takes nothing of the others with it. Callers resume only after the COMMIT; one that fails fails for the whole batch.
    """

    def __init__(self, engine: Engine, committed: Callable[[Iterable[str]], None]) -> None:
        """``committed`` hears of the types of the events of every transaction that was committed."""
        self._engine = engine
        self._committed = committed
        self._queue: SimpleQueue[_Asked | None] = SimpleQueue()
        self._again: deque[_Asked] = deque()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None

    async def write(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run ``fn(connection, *args)`` in the next batch; a cancelled caller leaves a transaction that still ends."""
        loop = asyncio.get_running_loop()
        asked = _Asked(fn, args, loop, loop.create_future())
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="db-write", daemon=True)
            self._thread.start()
        self._queue.put(asked)
        return await asked.future

    def close(self) -> None:
        """End what waits, then the thread and its connection."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        self._hang_up()

    def _run(self) -> None:
        while True:
            asked = self._again.popleft() if self._again else self._queue.get()
            if asked is None:
                return
            batch: list[_Asked] = []
            try:
                self._serve(asked, batch)
            except BaseException as error:
                # Whatever it was: everybody hears of it, and the next batch gets a connection of its own.
                self._hang_up()
                for one in batch:
                    one.error = one.error or error
            _tell(batch)

    def _serve(self, asked: _Asked, batch: list[_Asked]) -> None:
        """Run one batch, ``asked`` first, and leave in ``batch`` who is to be told what."""
        batch.append(asked)
        try:
            connection = self._begun()
        except DBAPIError as error:
            batch.extend(self._rest())
            for one in batch:
                one.error = of_statement(error)
            return
        end = time.monotonic() + LONGEST_SECONDS
        self._run_alone(connection, asked)
        if asked.error is not None:
            return
        while len(batch) < MOST and time.monotonic() < end and (following := self._next()) is not None:
            batch.append(following)
            self._run_beside(connection, following)
        self._end(connection, batch)

    def _next(self) -> _Asked | None:
        """Who waits now, None where nobody does or the thread is to end."""
        if self._again:
            return self._again.popleft()
        try:
            asked = self._queue.get_nowait()
        except Empty:
            return None
        if asked is None:
            self._queue.put(None)
        return asked

    def _rest(self) -> Iterable[_Asked]:
        for _ in range(MOST):
            if (one := self._next()) is None:
                return
            yield one

    def _begun(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        try:
            self._connection.exec_driver_sql("BEGIN IMMEDIATE")
        except BaseException:
            self._hang_up()
            raise
        return self._connection

    def _run_alone(self, c: Connection, asked: _Asked) -> None:
        """The first one of a batch: nothing but itself is lost when it fails."""
        _run(c, asked)
        if asked.error is not None:
            c.rollback()

    def _run_beside(self, c: Connection, asked: _Asked) -> None:
        """A further one: behind a savepoint, to which it falls back alone."""
        driver: Any = c.connection.driver_connection
        driver.execute(f"SAVEPOINT {_SAVEPOINT}")
        _run(c, asked)
        if asked.error is not None:
            if not driver.in_transaction:
                raise asked.error  # with a full disk SQLite itself gives up the whole transaction
            driver.execute(f"ROLLBACK TO {_SAVEPOINT}")
        driver.execute(f"RELEASE {_SAVEPOINT}")

    def _end(self, c: Connection, batch: list[_Asked]) -> None:
        good = [one for one in batch if one.error is None]
        try:
            for one in good:
                failpoints.reach(f"{name_of(one.fn)} before commit")
        except failpoints.Cut:
            c.rollback()
            self._again.extend(good)
            batch[:] = [one for one in batch if one.error is not None]
            return
        try:
            c.commit()
        except DBAPIError as error:
            self._hang_up()
            for one in good:
                one.error = of_commit(error)
            return
        for one in good:
            self._committed(one.told)
            try:
                failpoints.reach(f"{name_of(one.fn)} after commit")
            except failpoints.Cut:
                one.error = unknown()

    def _hang_up(self) -> None:
        """Give up the connection, and with it whatever it has not committed."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(DBAPIError):  # it is given up for an error that has been told
                connection.invalidate()
            connection.close()


def _run(c: Connection, asked: _Asked) -> None:
    events.begin(c)
    try:
        asked.result = asked.fn(c, *asked.args)
        events.write_waiting(c)
        asked.told = events.types_of(c)
    except DBAPIError as error:
        asked.error = of_statement(error)
    except BaseException as error:
        # Its caller hears of it, as if it had run there.
        asked.error = error


def _tell(batch: Sequence[_Asked]) -> None:
    """Resume the callers, with one wake of each loop."""
    for loop in {one.loop for one in batch}:
        mine = [one for one in batch if one.loop is loop]
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
            loop.call_soon_threadsafe(_tell_all, mine)


def _tell_all(batch: Sequence[_Asked]) -> None:
    for one in batch:
        one.tell()
