"""Watching held jobs: what it costs, and which leases it prolongs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection

from controlplane.db import held as held_rows
from controlplane.domain.jobs import CLAIMED, Job
from controlplane.services.holding import Held
from controlplane.services.watching import Watcher
from tests.comfy.comfyui_double import ComfyUIDouble
from tests.services.engine import PROJECT, Engine

pytestmark = pytest.mark.usefixtures("each_database")


async def claimed(room: Engine) -> Job:
    """A job with a lease."""
    job = await room.submit()

    def claim(c: Connection) -> Job:
        return held_rows.put(c, job, status=CLAIMED, claimed_by="a test", lease_until=room.clock.now() + 60.0)

    return await room.db.write(claim)


async def lease_of(room: Engine, job: Job) -> float | None:
    return (await room.view(job)).job.lease_until


async def test_the_leases_of_many_jobs_are_prolonged_together(room: Engine) -> None:
    jobs = [await claimed(room) for _ in range(3)]
    claims = [(job.id, job.claim_no) for job in jobs]
    kept = await room.db.write(held_rows.renew, claims, 4_000_000_000.0)
    assert (kept, {await lease_of(room, job) for job in jobs}) == (set(claims), {4_000_000_000.0})


async def test_a_lease_is_not_prolonged_under_an_older_claim(room: Engine) -> None:
    stolen, ours = await claimed(room), await claimed(room)
    await room.db.write(lambda c: held_rows.put(c, stolen, claim_no=stolen.claim_no + 1))
    claims = [(job.id, job.claim_no) for job in (stolen, ours)]
    kept = await room.db.write(held_rows.renew, claims, 4_000_000_000.0)
    assert (kept, await lease_of(room, stolen) == 4_000_000_000.0) == ({claims[1]}, False)


async def test_a_job_that_has_ended_keeps_no_lease(room: Engine) -> None:
    job = await claimed(room)
    await room.db.write(lambda c: held_rows.put(c, job, status="succeeded", lease_until=None))
    assert await room.db.write(held_rows.renew, [(job.id, job.claim_no)], 4_000_000_000.0) == set()


async def test_only_jobs_that_are_being_cancelled_are_seen_at_a_hint(room: Engine) -> None:
    stopped, _ = await claimed(room), await claimed(room)
    await room.jobs.cancel(PROJECT, stopped.id)
    assert await room.db.read(held_rows.cancelling) == {(stopped.id, stopped.claim_no)}


async def test_who_holds_nothing_reads_nothing(room: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    real = room.db.read

    async def spied(fn: Callable[..., Any], *args: Any) -> Any:
        reads.append(fn.__name__)
        return await real(fn, *args)

    monkeypatch.setattr(room.db, "read", spied)
    held: dict[str, Held] = {}
    watcher = Watcher(room.db, room.settings, room.clock, room.hints, held, lambda one: None)
    task = asyncio.create_task(watcher.run())
    for _ in range(5):
        room.hints.wake()
        await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert reads == []


async def test_many_hints_are_answered_by_few_looks(
    room: Engine, double: ComfyUIDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    await room.register(double)
    room.start()
    job = await room.submit(held=True)
    await room.reached(job, lambda view: view.job.status == "running")
    reads: list[str] = []
    real = room.db.read

    async def spied(fn: Callable[..., Any], *args: Any) -> Any:
        reads.append(fn.__name__)
        return await real(fn, *args)

    monkeypatch.setattr(room.db, "read", spied)
    begun = asyncio.get_running_loop().time()
    for _ in range(100):
        room.hints.wake(room.hints.CANCELS)
        await asyncio.sleep(0)
    await asyncio.sleep(0.2)
    looks = (asyncio.get_running_loop().time() - begun) / 0.05
    assert reads.count("cancelling") <= looks + 2
