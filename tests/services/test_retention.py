"""Retention: what is too old is forgotten in small steps; what anything refers to is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, update

from controlplane.db import assets as asset_rows
from controlplane.db import attempts as attempt_rows
from controlplane.db import characters as character_rows
from controlplane.db import idempotency as key_rows
from controlplane.db.tables import attempts, idempotency_keys, jobs
from controlplane.domain.assets import Asset
from controlplane.domain.characters import Character, Version
from controlplane.domain.ids import new_id, new_prompt_id
from controlplane.domain.jobs import Attempt, Job
from controlplane.services import retention
from controlplane.services.retention import Retention
from tests.services.engine import PROJECT, Engine, engine

pytestmark = pytest.mark.usefixtures("each_database")
DAY = 24 * 3600.0


@asynccontextmanager
async def kept(folder: Path, **values: Any) -> AsyncIterator[tuple[Engine, Retention]]:
    async with engine(folder, **values) as made:
        yield made, Retention(made.db, made.clock, made.settings)


async def count(room: Engine, table: Any) -> int:
    return int(await room.db.read(lambda c: c.execute(select(func.count()).select_from(table)).scalar_one()))


async def keep_keys(room: Engine, number: int) -> None:
    def write(c: Connection) -> None:
        for one in range(number):
            address = key_rows.Address(PROJECT, f"key-{one}", "POST", "/generate-image")
            key_rows.keep(c, address, key_rows.Kept("0" * 64, {}), time.time())

    await room.db.write(write)


async def ended(room: Engine, days_ago: float = 10.0, **values: Any) -> Job:
    """A job that was accepted and cancelled so many days ago, with one attempt."""
    job = await room.submit(**values)
    then = time.time() - days_ago * DAY
    attempt = Attempt(new_prompt_id(), PROJECT, job.id, 1, "pod_1", "client", "cancelled", then)

    def write(c: Connection) -> None:
        attempt_rows.add(c, PROJECT, attempt)
        moved = update(jobs).where(jobs.c.id == job.id)
        c.execute(moved.values(status="cancelled", created_at=then, finished_at=then))

    await room.db.write(write)
    return job


async def test_a_key_is_kept_for_a_day(tmp_path: Path) -> None:
    async with kept(tmp_path) as (room, sweeper):
        await keep_keys(room, 3)
        room.clock.ahead = DAY - 60
        assert (await sweeper.sweep(), await count(room, idempotency_keys)) == (0, 3)


async def test_an_older_key_is_forgotten(tmp_path: Path) -> None:
    async with kept(tmp_path) as (room, sweeper):
        await keep_keys(room, 3)
        room.clock.ahead = DAY + 60
        assert (await sweeper.sweep(), await count(room, idempotency_keys)) == (3, 0)


async def test_many_old_keys_go_in_several_small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "ROWS_AT_ONCE", 4)
    async with kept(tmp_path) as (room, sweeper):
        await keep_keys(room, 10)
        room.clock.ahead = DAY + 60
        assert (await sweeper.sweep(), await count(room, idempotency_keys)) == (10, 0)


async def test_one_sweep_forgets_no_more_than_its_steps_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(retention, "KEY_STEPS_AT_ONCE", 3)
    async with kept(tmp_path) as (room, sweeper):
        await keep_keys(room, 10)
        room.clock.ahead = DAY + 60
        assert [await sweeper.sweep() for _ in range(3)] == [6, 4, 0]


async def test_several_sweeps_at_once_forget_every_old_key_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ROWS_AT_ONCE", 5)
    async with kept(tmp_path) as (room, sweeper):
        await keep_keys(room, 40)
        room.clock.ahead = DAY + 60
        gone = await asyncio.gather(*(sweeper.sweep() for _ in range(4)))
        assert sum(gone) + await sweeper.sweep() == 40


async def test_jobs_are_kept_for_ever_unless_somebody_says_how_long(tmp_path: Path) -> None:
    async with kept(tmp_path) as (room, sweeper):
        await ended(room, days_ago=10_000)
        assert (await sweeper.sweep(), await count(room, jobs)) == (0, 1)


async def test_an_old_job_goes_with_its_attempts(tmp_path: Path) -> None:
    async with kept(tmp_path, job_days=7) as (room, sweeper):
        await ended(room)
        assert (await sweeper.sweep(), await count(room, jobs), await count(room, attempts)) == (1, 0, 0)


async def test_a_job_that_ended_lately_stays(tmp_path: Path) -> None:
    async with kept(tmp_path, job_days=7) as (room, sweeper):
        job = await ended(room)
        recently = update(jobs).where(jobs.c.id == job.id).values(finished_at=time.time())
        await room.db.write(lambda c: c.execute(recently))
        assert (await sweeper.sweep(), await count(room, attempts)) == (0, 1)


async def test_a_job_that_is_not_over_stays_whatever_its_age(tmp_path: Path) -> None:
    async with kept(tmp_path, job_days=7) as (room, sweeper):
        await room.submit()
        room.clock.ahead = 100 * DAY
        assert (await sweeper.sweep(), await count(room, jobs)) == (0, 1)


@pytest.mark.parametrize("status", ["pending", "stored", "deleted"])
async def test_a_job_stays_as_long_as_an_asset_that_it_made(tmp_path: Path, status: str) -> None:
    async with kept(tmp_path, job_days=7) as (room, sweeper):
        job, _ = await ended(room), await ended(room)
        asset = Asset(
            new_id("asset"), PROJECT, "image", "pending", "a/key", "image/png", 1, "0" * 64, time.time(), job_id=job.id
        )

        def write(c: Connection) -> None:
            asset_rows.insert_assets(c, [asset])
            asset_rows.change(c, PROJECT, asset.id, {"status": status})

        await room.db.write(write)
        assert (await sweeper.sweep(), (await room.view(job)).job.id) == (1, job.id)


async def test_a_job_stays_as_long_as_the_version_that_it_trained(tmp_path: Path) -> None:
    async with kept(tmp_path, job_days=7) as (room, sweeper):
        job, now = await ended(room, kind="train"), time.time()
        character = Character(PROJECT, "mira", "Mira", "woman", "mirax", "sketch", now, now)
        version = Version(PROJECT, "mira", 1, "failed", "sketch", "fast", "0" * 64, "dataset_1", job.id, now)

        def write(c: Connection) -> None:
            character_rows.insert_character(c, character)
            character_rows.insert_version(c, version)

        await room.db.write(write)
        assert (await sweeper.sweep(), (await room.view(job)).job.id) == (0, job.id)


async def test_jobs_that_stay_do_not_hide_those_behind_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(retention, "JOB_STEPS_AT_ONCE", 1)
    async with kept(tmp_path, job_days=7) as (room, sweeper):
        lately = update(jobs).values(finished_at=time.time())
        for days in (30, 29, 28):
            await ended(room, days_ago=days)
        await room.db.write(lambda c: c.execute(lately))
        await ended(room, days_ago=20)
        assert [await sweeper.sweep() for _ in range(2)] == [0, 1]


async def test_several_sweeps_at_once_forget_every_old_job_once(tmp_path: Path) -> None:
    async with kept(tmp_path, job_days=7) as (room, sweeper):
        for _ in range(6):
            await ended(room)
        sweepers = [sweeper, *(Retention(room.db, room.clock, room.settings) for _ in range(3))]
        gone = await asyncio.gather(*(one.sweep() for one in sweepers))
        assert (sum(gone) + await sweeper.sweep(), await count(room, jobs), await count(room, attempts)) == (6, 0, 0)
