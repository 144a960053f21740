"""PostgreSQL: its tables, the commit edge under contention, the order of events, and notices between processes."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from controlplane.db import events as event_rows
from controlplane.db import jobs as job_rows
from controlplane.db.database import Database
from controlplane.db.migrate import config_of, migrate, upgrade
from controlplane.db.notices import Notices, notices_on
from controlplane.db.postgresql import connect_options, with_driver
from controlplane.db.tables import metadata
from controlplane.domain.jobs import Job, NewJob
from controlplane.domain.pages import Position
from controlplane.errors import BadRequest, TroupeError
from controlplane.services.jobs import _queued
from tests.postgresql_server import PostgreSQL
from tests.waiting import until

PROJECT = "default"


@pytest.fixture
def db(postgresql_url: str) -> Iterator[Database]:
    opened = Database(postgresql_url)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def empty_url(postgresql: PostgreSQL) -> Iterator[str]:
    """A database without tables."""
    url = postgresql.fresh(empty=True)
    yield url
    postgresql.drop(url)


def happen(c: Connection, type_: str) -> None:
    event_rows.append(c, PROJECT, type_, {}, None, None, time.time())


def types(db: Database, after: int = 0) -> list[str]:
    return [event.type for event in db.read_sync(event_rows.after, PROJECT, after)]


def job(number: float, job_id: str | None = None, **values: Any) -> Job:
    new = NewJob(
        id=job_id,
        kind="image",
        template="replay",
        template_digest="0",
        graph={"1": {"inputs": {"numbers": [1.5, None]}}},
        needs={},
        outputs=[],
        deadline_seconds=60.0,
        **values,
    )
    return _queued(new, number)


def test_a_migrated_postgresql_differs_in_nothing_from_the_declared_tables(db: Database) -> None:
    def differences(c: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(c, opts={"compare_type": True}), metadata))

    assert db.read_sync(differences) == []


def test_replicas_that_start_together_migrate_once(empty_url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(migrate, [empty_url] * 6))
    database = Database(empty_url)
    assert database.read_sync(lambda c: c.execute(text("SELECT count(*) FROM installation")).scalar()) == 1
    database.engine.dispose()


def test_stepping_back_leaves_what_the_first_step_made(postgresql: PostgreSQL) -> None:
    first, back = (Database(postgresql.fresh(empty=True)) for _ in range(2))
    first.write_sync(lambda c: upgrade(c, "0001"))
    back.write_sync(upgrade)
    back.write_sync(lambda c: command.downgrade(config_of(c), "0001"))

    def columns(c: Connection) -> dict[str, dict[str, str]]:
        seen = inspect(c)
        tables = seen.get_table_names()
        return {table: {one["name"]: str(one["type"]) for one in seen.get_columns(table)} for table in tables}

    assert back.read_sync(columns) == first.read_sync(columns)
    for database in (first, back):
        database.engine.dispose()


def test_a_read_sees_one_moment_however_many_statements_it_makes(db: Database) -> None:
    def read(c: Connection) -> tuple[int, int]:
        before = event_rows.last_id(c, PROJECT)
        db.write_sync(happen, "in between")
        return before, event_rows.last_id(c, PROJECT)

    assert db.read_sync(read) == (0, 0)


def test_a_read_cannot_write(db: Database) -> None:
    with pytest.raises(Exception, match="read-only"):
        db.read_sync(lambda c: c.execute(text("DELETE FROM events")))


def test_a_write_sees_what_was_committed_between_its_statements(db: Database) -> None:
    db.read_sync(event_rows.last_id, PROJECT)  # its connection must not keep the level of a read

    def write(c: Connection) -> tuple[int, int]:
        before = event_rows.last_id(c, PROJECT)
        db.write_sync(happen, "in between")
        return before, event_rows.last_id(c, PROJECT)

    assert db.write_sync(write) == (0, 1)


def test_transactions_that_deadlock_are_both_done(db: Database) -> None:
    for number, job_id in enumerate(("one", "two")):
        db.write_sync(job_rows.add, PROJECT, job(number, job_id))
    both_hold_one = threading.Barrier(2)

    def change(c: Connection, first: str, second: str, waits: list[bool]) -> None:
        assert job_rows.get_locked(c, PROJECT, first) is not None
        if waits.pop():
            both_hold_one.wait(10)
        found = job_rows.get_locked(c, PROJECT, second)
        assert found is not None
        job_rows.change(c, found, priority=found.priority + 1)

    with ThreadPoolExecutor(2) as pool:
        orders = [("one", "two"), ("two", "one")]
        for done in [pool.submit(db.write_sync, change, *order, [False, True]) for order in orders]:
            done.result(30)
    priorities = [found.priority for found in db.read_sync(job_rows.page, PROJECT, 10)]
    assert priorities == [1, 1]


def test_a_transaction_that_lost_a_unique_key_runs_again_and_sees_the_winner(db: Database) -> None:
    runs: list[bool] = []

    def unless_known(c: Connection) -> str:
        known = job_rows.get(c, PROJECT, "one")
        runs.append(known is not None)
        if known is None:
            if len(runs) == 1:
                db.write_sync(job_rows.add, PROJECT, job(1, "one"))
            job_rows.add(c, PROJECT, job(2, "one"))
        return "known" if known else "new"

    assert (db.write_sync(unless_known), runs) == ("known", [False, True])


def test_a_key_that_is_taken_for_good_is_an_error_in_the_end(db: Database) -> None:
    db.write_sync(job_rows.add, PROJECT, job(1, "one"))
    with pytest.raises(Exception, match="duplicate key"):
        db.write_sync(job_rows.add, PROJECT, job(2, "one"))


@pytest.mark.parametrize("value", ["x" * 41, "a\0b"], ids=["over-long", "NUL"])
def test_what_postgresql_cannot_store_is_a_bad_request(db: Database, value: str) -> None:
    with pytest.raises(BadRequest):
        db.write_sync(job_rows.add, PROJECT, job(1, value))


def test_what_postgresql_cannot_look_up_is_a_bad_request(db: Database) -> None:
    with pytest.raises(BadRequest):
        db.read_sync(job_rows.get, PROJECT, "a\0b")


def test_a_failed_transaction_leaves_no_event_for_the_next_one(db: Database) -> None:
    def fails(c: Connection) -> None:
        happen(c, "of the failed one")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        db.write_sync(fails)
    db.write_sync(happen, "of the next one")
    assert types(db) == ["of the next one"]


def test_a_reader_that_resumes_by_id_never_misses_an_event(db: Database) -> None:
    """Slow and quick transactions at once: without the lock a lower id would show up behind the reader's back."""
    stop = threading.Event()
    seen: list[str] = []

    def write(c: Connection, name: str, pause: float) -> None:
        happen(c, f"{name} a")
        happen(c, f"{name} b")
        time.sleep(pause)

    def read() -> None:
        position, last_look = 0, False
        while not last_look:
            last_look = stop.is_set()
            for event in db.read_sync(event_rows.after, PROJECT, position):
                position = event.id
                seen.append(event.type)

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: db.write_sync(write, str(n), (n % 3) * 0.005), range(120)))
    stop.set()
    reader.join()
    assert sorted(seen) == sorted(types_of_all(db))
    assert len(seen) == 240


def types_of_all(db: Database) -> list[str]:
    return [event.type for event in db.read_sync(lambda c: event_rows.after(c, PROJECT, 0, limit=1000))]


def test_pages_show_everything_once_whatever_the_sort_order_of_the_database(db: Database) -> None:
    ids = ["a", "B", "b", "A", "a-1", "a1", "ä", "_", "Z", "z"]
    for job_id in ids:
        db.write_sync(job_rows.add, PROJECT, job(7, job_id))
    shown: list[str] = []
    before: Position | None = None
    while found := db.read_sync(job_rows.page, PROJECT, 3, before):
        shown += [one.id for one in found]
        before = Position(found[-1].created_at, found[-1].id)
    assert sorted(shown) == sorted(ids)


def test_names_that_differ_in_case_only_are_two(db: Database) -> None:
    for number, job_id in enumerate(("one", "One")):
        db.write_sync(job_rows.add, PROJECT, job(number, job_id))
    found = db.read_sync(job_rows.get, PROJECT, "One")
    assert found is not None
    assert found.created_at == 1.0


def test_a_moment_and_long_numbers_are_kept_exactly(db: Database) -> None:
    stored = job(1763689999.123456, seed=2**53 - 1)
    stored = db.write_sync(job_rows.add, PROJECT, stored)
    assert db.read_sync(job_rows.get, PROJECT, stored.id) == stored


def test_two_claimants_never_get_the_same_expired_job(db: Database) -> None:
    for number in range(24):
        queued = db.write_sync(job_rows.add, PROJECT, job(number, f"job-{number}"))
        db.write_sync(job_rows.claim, [(queued, None)], "dead", 1.0)
    taken: list[str] = []

    def take_all(owner: str) -> None:
        while found := db.write_sync(job_rows.take_over, owner, time.time() + 60.0, time.time()):
            taken.extend(one.id for one in found)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(take_all, "abcd"))
    assert sorted(taken) == sorted(f"job-{number}" for number in range(24))


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_way_to_write_the_url_means_the_same_driver(scheme: str) -> None:
    assert with_driver(f"{scheme}://me@host/db").drivername == "postgresql+psycopg"


def test_a_session_has_limits_and_the_urls_own_options_win(db: Database, postgresql_url: str) -> None:
    other = Database(f"{postgresql_url}&options=-c%20lock_timeout%3D7s")
    show = text("SELECT current_setting('statement_timeout'), current_setting('lock_timeout')")
    found = [tuple(one.read_sync(lambda c: c.execute(show).one())) for one in (db, other)]
    other.engine.dispose()
    assert found == [("1min", "20s"), ("1min", "7s")]
    assert str(connect_options(postgresql_url)["application_name"]).startswith("troupe")


def test_a_missing_driver_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(TroupeError, match=r"pip install 'troupe-studio\[postgres\]'"):
        Database("postgresql://me@host/db")


def test_a_database_that_does_not_answer_is_told_without_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.db.database.AWAY_SECONDS", 0.5)
    with pytest.raises(TroupeError, match="cannot be used") as caught:
        migrate(f"postgresql://me:hush@/db?host={tmp_path}")
    assert "hush" not in str(caught.value)


async def test_notices_are_heard_where_the_url_has_options_with_spaces(postgresql_url: str) -> None:
    joint = "&" if "?" in postgresql_url else "?"
    heard: list[tuple[str, ...]] = []
    notices = Notices(f"{postgresql_url}{joint}options=-c%20statement_timeout%3D120s")
    task = asyncio.create_task(notices.run(lambda *topics: heard.append(topics)))
    try:
        await until(lambda: heard == [()])
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_notice_reaches_the_other_processes_and_not_its_own(postgresql_url: str) -> None:
    one, other = Notices(postgresql_url), Notices(postgresql_url)
    heard: dict[str, list[tuple[str, ...]]] = {"one": [], "other": []}
    tasks = [
        asyncio.create_task(one.run(lambda *topics: heard["one"].append(topics))),
        asyncio.create_task(other.run(lambda *topics: heard["other"].append(topics))),
    ]
    try:
        await until(lambda: heard == {"one": [()], "other": [()]})  # both listen
        one.tell("jobs", "events")
        await until(lambda: heard["other"] == [(), ("events", "jobs")])
        other.tell("jobs")
        await until(lambda: len(heard["one"]) == 2)
        assert heard == {"one": [(), ("jobs",)], "other": [(), ("events", "jobs")]}
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_many_wakes_are_few_notices(postgresql_url: str) -> None:
    one, other = Notices(postgresql_url), Notices(postgresql_url)
    heard: list[tuple[str, ...]] = []
    tasks = [asyncio.create_task(one.run(lambda *_: None)), asyncio.create_task(other.run(lambda *t: heard.append(t)))]
    try:
        await until(lambda: heard)
        for _ in range(500):
            one.tell("jobs")
        await until(lambda: len(heard) > 1)
        await asyncio.sleep(0.2)
        assert len(heard) <= 3
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_notices_come_back_after_their_connections_were_cut(
    postgresql: PostgreSQL, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.db.notices.RECONNECT_SECONDS", 0.1)
    one, other = Notices(postgresql_url), Notices(postgresql_url)
    heard: list[tuple[str, ...]] = []
    tasks = [asyncio.create_task(one.run(lambda *_: None)), asyncio.create_task(other.run(lambda *t: heard.append(t)))]
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'troupe notices'"
    try:
        await until(lambda: heard == [()])
        await asyncio.to_thread(postgresql.administer, cut)
        await until(lambda: heard == [(), ()])
        end = time.monotonic() + 30
        while heard[-1] != ("jobs",):
            assert time.monotonic() < end
            one.tell("jobs")
            await asyncio.sleep(0.05)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_a_sqlite_file_has_no_other_processes_to_tell() -> None:
    assert notices_on("sqlite:////tmp/troupe.sqlite3") is None
