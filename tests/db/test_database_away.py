"""A PostgreSQL that goes away: what was answered is there, nothing is there twice, and the server goes on by itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, text

from controlplane.db import database as edge
from controlplane.db import jobs as job_rows
from controlplane.db.database import Database
from controlplane.db.notices import Notices
from controlplane.domain.jobs import Job, NewJob
from controlplane.errors import CommitUnknown, DatabaseAway
from controlplane.services.jobs import _queued
from tests.postgresql_server import DURABLE, PostgreSQL, postgresql_server
from tests.waiting import until

PROJECT = "default"
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'troupe %'"


@pytest.fixture
async def db(postgresql_url: str) -> AsyncIterator[Database]:
    opened = Database(postgresql_url)
    yield opened
    await opened.close()


@pytest.fixture
def durable(postgresql: PostgreSQL) -> Iterator[PostgreSQL]:
    """A server of its own that may be killed; ``postgresql`` says first whether there is any to run."""
    with postgresql_server(DURABLE) as server:
        yield server


def job(number: int) -> Job:
    return _queued(
        NewJob(
            id=f"job-{number}",
            kind="image",
            template="replay",
            template_digest="0",
            graph={},
            needs={},
            outputs=[],
            deadline_seconds=60.0,
        ),
        float(number),
    )


def accept(c: Connection, number: int) -> int:
    """A write under an id that its caller knows."""
    job_rows.add(c, PROJECT, job(number))
    return number


def count(c: Connection, number: int) -> None:
    """A write whose repetitions can be counted."""
    c.execute(text("UPDATE jobs SET priority = priority + 1 WHERE id = :id"), {"id": f"job-{number}"})


def kept(c: Connection) -> dict[int, int]:
    """The stored jobs and how often each was counted."""
    found = c.execute(text("SELECT id, priority FROM jobs"))
    return {int(job_id.removeprefix("job-")): priority for job_id, priority in found}


def accept_and_count(c: Connection, number: int) -> int:
    accept(c, number)
    count(c, number)
    return number


async def load(db: Database, server: PostgreSQL, writers: int) -> tuple[set[int], set[int]]:
    """Writes from many tasks while the server is killed and started again: the answered and the unknown ones."""
    answered: set[int] = set()
    unknown: set[int] = set()
    over = asyncio.Event()

    async def write(first: int) -> None:
        number = first
        while not over.is_set():
            try:
                answered.add(await db.write(accept_and_count, number))
            except CommitUnknown:
                unknown.add(number)
            number += writers

    tasks = [asyncio.create_task(write(first)) for first in range(writers)]
    for _ in range(2):
        before = len(answered)
        await until(lambda seen=before: len(answered) > seen + 300)  # type: ignore[misc]
        await asyncio.to_thread(server.crash)
        await asyncio.to_thread(server.start_again)
    before = len(answered)
    await until(lambda: len(answered) > before + 200)
    over.set()
    await asyncio.gather(*tasks)
    return answered, unknown


async def test_every_answered_write_survives_a_server_that_is_killed_and_none_is_there_twice(
    durable: PostgreSQL,
) -> None:
    db = Database(durable.url("troupe_template"))
    answered, unknown = await load(db, durable, writers=16)
    found = await db.read(kept)
    await db.close()
    assert answered <= set(found)
    assert set(found) - answered <= unknown
    assert Counter(found.values()) == {1: len(found)}


async def test_reads_wait_for_a_server_that_is_killed_and_starts_again(durable: PostgreSQL) -> None:
    db = Database(durable.url("troupe_template"))
    await db.write(accept, 1)
    durable.crash()
    reading = [asyncio.create_task(db.read(kept)) for _ in range(8)]
    await asyncio.to_thread(durable.start_again)
    assert await asyncio.gather(*reading) == [{1: 0}] * 8
    await db.close()


async def test_a_server_that_stays_away_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "AWAY_SECONDS", 0.3)
    gone = Database("postgresql://troupe@/nothing?host=/nowhere")
    for asked in (gone.read(kept), gone.write(accept, 1), gone.write_fenced(accept, 1)):
        with pytest.raises(DatabaseAway) as caught:
            await asked
        assert caught.value.headers == {"Retry-After": "2"}
    await gone.close()


async def test_a_write_whose_connection_is_cut_before_its_commit_is_run_again(
    db: Database, postgresql: PostgreSQL
) -> None:
    runs: list[int] = []

    def cut_once(c: Connection) -> int:
        runs.append(accept(c, 1))
        if len(runs) == 1:
            postgresql.administer(CUT)
        return accept(c, 2)

    await db.write(accept, 3)
    assert await db.write(cut_once) == 2
    assert (len(runs), await db.read(kept)) == (2, {1: 0, 2: 0, 3: 0})


async def test_connections_that_were_cut_while_nobody_used_them_are_replaced_unnoticed(
    db: Database, postgresql: PostgreSQL
) -> None:
    await asyncio.gather(*(db.write(accept, number) for number in range(8)))
    await asyncio.to_thread(postgresql.administer, CUT)
    assert len(await db.read(kept)) == 8
    await asyncio.gather(*(db.write(accept, number) for number in range(8, 16)))
    assert len(await db.read(kept)) == 16


def run_armed(spec: str, url: str) -> str:
    """One write in a process of its own with a failpoint; what it printed of the outcome."""
    code = f"""
        import asyncio
        from tests.db.test_database_away import accept_and_count, kept
        from controlplane.db.database import Database
        async def main():
            db = Database({url!r})
            try:
                await db.write(accept_and_count, 1)
            except Exception as error:
                print(type(error).__name__, end=" ")
            print(await db.read(kept))
            await db.close()
        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    env = {**os.environ, "TROUPE_FAILPOINTS": spec}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip()


@pytest.mark.parametrize(("when", "said"), [("before", "{1: 1}"), ("after", "CommitUnknown {1: 1}")])
def test_a_cut_connection_is_harmless_before_the_commit_and_unknown_after_it(
    postgresql_url: str, when: str, said: str
) -> None:
    assert run_armed(f"cut accept_and_count {when} commit", postgresql_url) == said


async def test_a_fenced_write_is_repeated_where_nobody_knows_whether_it_was_committed(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    await db.write(accept, 1)
    once = db._write_once

    def lost_answer(fn: Any, *args: Any) -> Any:
        once(fn, *args)
        runs.append(1)
        if len(runs) == 1:
            raise CommitUnknown("the answer to the COMMIT got lost")

    monkeypatch.setattr(db, "_write_once", lost_answer)
    await db.write_fenced(lambda c: job_rows.note_progress(c, PROJECT, "job-1", {"percent": 50.0}))
    assert len(runs) == 2


async def test_notices_go_on_after_the_server_was_killed(durable: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.db.notices.RECONNECT_SECONDS", 0.1)
    url = durable.url("troupe_template")
    one, other = Notices(url), Notices(url)
    heard: list[tuple[str, ...]] = []
    tasks = [asyncio.create_task(one.run(lambda *_: None)), asyncio.create_task(other.run(lambda *t: heard.append(t)))]
    try:
        await until(lambda: heard == [()])
        durable.crash()
        await asyncio.to_thread(durable.start_again)
        end = time.monotonic() + 30
        while heard[-1] != ("jobs",):
            assert time.monotonic() < end
            one.tell("jobs")
            await asyncio.sleep(0.05)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
