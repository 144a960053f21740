"""Schedulers in processes of their own on one PostgreSQL: one of them is killed, and every job is done exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.db import jobs as job_rows
from tests.comfy.comfyui_double import comfyui_double
from tests.services.engine import PROJECT, Engine, engine

REPOSITORY = Path(__file__).resolve().parents[2]
REPLICAS = 3
PODS = 3
JOBS = 45


@contextlib.asynccontextmanager
async def schedulers(folder: Path, url: str) -> AsyncIterator[list[Process]]:
    """Some scheduler processes; whichever still live are killed in the end."""
    processes = []
    try:
        for number in range(REPLICAS):
            own = folder / f"replica-{number}"
            own.mkdir()
            processes.append(
                await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", "tests.services.scheduler_process", str(own), "never"),
                    cwd=REPOSITORY,
                    env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TROUPE_DATABASE_URL": url},
                )
            )
        yield processes
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def workers(room: Engine) -> Counter[str]:
    """How many jobs each process (by its id) has or had."""
    jobs = await room.db.read(job_rows.page, PROJECT, 1000)
    return Counter(job.claimed_by.split(":")[1] for job in jobs if job.claimed_by)


async def test_every_job_is_done_exactly_once_while_one_of_three_processes_is_killed(
    tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROUPE_DATABASE_URL", postgresql_url)
    async with contextlib.AsyncExitStack() as stack:
        room = await stack.enter_async_context(engine(tmp_path))
        doubles = [await stack.enter_async_context(comfyui_double()) for _ in range(PODS)]
        processes = await stack.enter_async_context(schedulers(tmp_path, postgresql_url))
        held = [await room.submit(held=True) for _ in range(PODS)]
        for double in doubles:
            await room.register(double)
        jobs = held + [await room.submit() for _ in range(JOBS - PODS)]
        for job in held:
            await room.reached(job, lambda view: view.job.status == "running")
        owners = await workers(room)
        victim = next(process for process in processes if str(process.pid) in owners)
        victim.kill()
        await victim.wait()
        for double in doubles:
            double.released.set()
        views = [await room.final(job) for job in jobs]
        told = Counter([type_ for job in jobs for type_ in await room.told(job)])
        received = [body["prompt_id"] for double in doubles for body in double.received]
    assert {view.job.status for view in views} == {"succeeded"}
    assert sorted(received) == sorted(attempt.id for view in views for attempt in view.attempts)
    assert (len(received), told["job.queued"], told["job.started"], told["job.succeeded"]) == (JOBS,) * 4
    assert any(view.job.claim_no > 1 for view in views)
