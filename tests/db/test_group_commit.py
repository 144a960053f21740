"""Group commit on SQLite: what waits at one moment is committed together, and whoever fails, fails alone."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from controlplane.db import sqlite
from controlplane.db.database import Database
from controlplane.errors import DatabaseAway


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'db.sqlite3'}")
    opened.write_sync(lambda c: c.exec_driver_sql("CREATE TABLE t (n INTEGER PRIMARY KEY)"))
    yield opened
    await opened.close()


def put(c: Connection, number: int) -> int:
    c.execute(text("INSERT INTO t VALUES (:n)"), {"n": number})
    return number


def put_and_fail(c: Connection, number: int) -> None:
    put(c, number)
    raise RuntimeError("on purpose")


def numbers(db: Database) -> list[int]:
    return db.read_sync(lambda c: list(c.execute(text("SELECT n FROM t ORDER BY n")).scalars()))


class Gate:
    """A transaction that keeps the writer busy until it is opened, so that others gather behind it."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, c: Connection) -> None:
        self.entered.set()
        assert self.opened.wait(10)


async def together(db: Database, *writes: tuple[Any, ...]) -> list[Any]:
    """Let the writes wait at the same moment; their results or exceptions."""
    gate = Gate()
    behind = asyncio.create_task(db.write(gate))
    await asyncio.to_thread(gate.entered.wait, 10)
    asked = [asyncio.create_task(db.write(*one)) for one in writes]
    await asyncio.sleep(0.05)
    gate.opened.set()
    await behind
    return await asyncio.gather(*asked, return_exceptions=True)


def counted_commits(db: Database) -> list[object]:
    commits: list[object] = []
    event.listen(db.engine, "commit", commits.append)
    return commits


async def test_what_waits_together_is_committed_together(db: Database) -> None:
    commits = counted_commits(db)
    assert await together(db, *((put, number) for number in range(20))) == list(range(20))
    assert numbers(db) == list(range(20))
    assert len(commits) <= 2


async def test_one_that_raises_takes_nothing_of_the_others_with_it(db: Database) -> None:
    results = await together(db, (put, 1), (put_and_fail, 2), (put, 3))
    assert (results[0], str(results[1]), results[2]) == (1, "on purpose", 3)
    assert numbers(db) == [1, 3]


async def test_a_first_one_that_raises_leaves_the_next_ones_alone(db: Database) -> None:
    gate = Gate()

    def fails(c: Connection) -> None:
        put(c, 1)
        gate(c)
        raise RuntimeError("on purpose")

    first = asyncio.create_task(db.write(fails))
    await asyncio.to_thread(gate.entered.wait, 10)
    second = asyncio.create_task(db.write(put, 2))
    await asyncio.sleep(0.05)
    gate.opened.set()
    assert [str(one) for one in await asyncio.gather(first, second, return_exceptions=True)] == ["on purpose", "2"]
    assert numbers(db) == [2]


async def test_a_transaction_sees_what_the_one_before_it_in_the_batch_wrote(db: Database) -> None:
    def count(c: Connection) -> int:
        return int(c.execute(text("SELECT count(*) FROM t")).scalar_one())

    assert (await together(db, (put, 1), (put_and_fail, 2), (count,)))[2] == 1


async def test_a_commit_that_fails_fails_for_everybody_and_the_next_batch_works(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(connection: object) -> None:
        fault = sqlite3.OperationalError("database or disk is full")
        fault.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise fault

    await db.write(put, 0)
    with monkeypatch.context() as patch:
        patch.setattr(db.engine.dialect, "do_commit", refuse)
        gate = Gate()
        first = asyncio.create_task(db.write(gate))
        await asyncio.to_thread(gate.entered.wait, 10)
        others = [asyncio.create_task(db.write(put, number)) for number in (1, 2)]
        await asyncio.sleep(0.005)
        gate.opened.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(one) for one in results] == [DatabaseAway] * 3
    await db.write(put, 3)
    assert numbers(db) == [0, 3]


async def test_a_caller_that_is_cancelled_leaves_a_transaction_that_still_ends(db: Database) -> None:
    gate = Gate()
    behind = asyncio.create_task(db.write(gate))
    await asyncio.to_thread(gate.entered.wait, 10)
    asked = asyncio.create_task(db.write(put, 1))
    await asyncio.sleep(0.01)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    gate.opened.set()
    await behind
    await db.write(put, 2)
    assert numbers(db) == [1, 2]


async def test_closing_ends_what_still_waits(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path / 'other.sqlite3'}")
    db.write_sync(lambda c: c.exec_driver_sql("CREATE TABLE t (n INTEGER PRIMARY KEY)"))
    asked = [asyncio.create_task(db.write(put, number)) for number in range(200)]
    await asyncio.sleep(0)
    await db.close()
    assert sorted(await asyncio.gather(*asked)) == list(range(200))


async def test_a_file_that_another_process_keeps_locked_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.2)
    db = Database(f"sqlite:///{tmp_path / 'locked.sqlite3'}")
    db.write_sync(lambda c: c.exec_driver_sql("CREATE TABLE t (n INTEGER PRIMARY KEY)"))
    other = sqlite3.connect(tmp_path / "locked.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseAway, match="locked"):
        await db.write(put, 1)
    other.execute("ROLLBACK")
    assert await db.write(put, 2) == 2
    await db.close()


async def test_a_full_disk_is_told_as_such_and_nothing_is_kept(db: Database) -> None:
    def fill(c: Connection) -> None:
        pages = c.exec_driver_sql("PRAGMA page_count").scalar_one()
        c.exec_driver_sql(f"PRAGMA max_page_count={pages}")  # SQLite answers with SQLITE_FULL beyond it
        c.exec_driver_sql("CREATE TABLE too_much (x)")

    with pytest.raises(DatabaseAway, match="full"):
        await db.write(fill)
    assert numbers(db) == []


def test_a_process_that_dies_before_the_commit_has_stored_nothing_and_after_it_everything(tmp_path: Path) -> None:
    kept = {}
    for when in ("before", "after"):
        file = tmp_path / f"{when}.sqlite3"
        run_armed(f"kill put {when} commit", file)
        with sqlite3.connect(file) as there:
            kept[when] = there.execute("SELECT count(*) FROM t").fetchone()[0]
    assert kept == {"before": 0, "after": 1}


def test_a_connection_that_is_cut_before_the_commit_is_made_anew_and_after_it_the_outcome_is_unknown(
    tmp_path: Path,
) -> None:
    said = [run_armed(f"cut put {when} commit", tmp_path / f"{when}.sqlite3") for when in ("before", "after")]
    assert said == ["1", "CommitUnknown"]


def run_armed(spec: str, file: Path) -> str:
    """Write one row in a process of its own with a failpoint; what it printed of the outcome."""
    code = f"""
        import asyncio
        from tests.db.test_group_commit import put
        from controlplane.db.database import Database
        async def main():
            db = Database("sqlite:///{file}")
            db.write_sync(lambda c: c.exec_driver_sql("CREATE TABLE t (n INTEGER PRIMARY KEY)"))
            try:
                print(await db.write(put, 1))
            except Exception as error:
                print(type(error).__name__)
        asyncio.run(main())
    """
    env = {**os.environ, "TROUPE_FAILPOINTS": spec}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout.strip()


async def test_one_that_runs_out_of_something_is_told_so_and_keeps_nobody_waiting(db: Database) -> None:
    def take_from_nothing(c: Connection) -> int:
        return next(iter(()))

    _, failed, done = await asyncio.wait_for(together(db, (put, 1), (take_from_nothing,), (put, 2)), 10)
    assert (type(failed), done) == (RuntimeError, 2)
