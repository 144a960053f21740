"""A scheduler is killed at each step; a second one on the same database finishes the job exactly once."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import Connection

from controlplane.db import jobs as job_rows
from controlplane.domain.jobs import Job
from controlplane.errors import StaleClaim
from controlplane.services import outcomes
from tests.comfy.comfyui_double import ComfyUIDouble, comfyui_double
from tests.services.engine import PROJECT, Engine, engine
from tests.services.scheduler_process import KILLED
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("each_database")

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = ["attempt row", "post", "running", "history", "verify", "transaction", "commit"]


async def killed_at(step: str, folder: Path, double: ComfyUIDouble) -> None:
    """Run a scheduler process until it dies at ``step``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.services.scheduler_process",
        str(folder),
        step,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    try:
        assert await asyncio.wait_for(process.wait(), 120) == KILLED
    finally:
        if process.returncode is None:
            process.kill()


@pytest.mark.parametrize("step", STEPS)
async def test_a_job_is_finished_exactly_once_after_its_scheduler_was_killed(
    step: str, room: Engine, double: ComfyUIDouble, tmp_path: Path
) -> None:
    await room.register(double)
    job = await room.submit(held=step == "running")
    await killed_at(step, tmp_path, double)
    double.released.set()
    room.start()
    view = await room.final(job)
    told = await room.told(job)
    assert view.job.status == "succeeded"
    assert [body["prompt_id"] for body in double.received] == [view.attempts[0].id]
    assert (len(view.attempts), told.count("job.succeeded"), told.count("job.started")) == (1, 1, 1)


async def test_a_claim_without_an_attempt_goes_back_to_the_queue(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    job = await room.submit()
    await room.db.write(job_rows.claim, [(job, None)], "a process that died", room.clock.now() - 1.0)
    room.start()
    view = await room.final(job)
    assert (view.job.status, len(double.received), view.job.claim_no) == ("succeeded", 1, 3)


async def test_a_job_that_was_cancelled_while_its_scheduler_was_dead_is_stopped_by_the_next_one(
    room: Engine, double: ComfyUIDouble, tmp_path: Path
) -> None:
    await room.register(double)
    job = await room.submit(held=True)
    await killed_at("running", tmp_path, double)
    await room.jobs.cancel(PROJECT, job.id)
    room.start()
    view = await room.final(job)
    assert (view.job.status, double.interrupted.is_set()) == ("cancelled", True)


async def test_an_orderly_stop_hands_the_job_over_at_once(tmp_path: Path, double: ComfyUIDouble) -> None:
    async with engine(tmp_path, lease_seconds=3600.0) as first, engine(tmp_path, lease_seconds=3600.0) as next_one:
        await first.register(double)
        first.start()
        job = await first.submit(held=True)
        await first.reached(job, lambda view: view.job.status == "running")
        await first.stop()
        double.released.set()
        next_one.start()
        view = await next_one.final(job)
    assert (view.job.status, len(double.received)) == ("succeeded", 1)


async def test_two_schedulers_share_the_jobs_and_do_each_once(tmp_path: Path, double: ComfyUIDouble) -> None:
    async with engine(tmp_path) as one, engine(tmp_path) as other, comfyui_double() as second:
        await one.register(double)
        await one.register(second)
        jobs = [await one.submit() for _ in range(12)]
        one.start()
        other.start()
        for job in jobs:
            await one.final(job)
        attempts = [attempt.id for job in jobs for attempt in (await one.view(job)).attempts]
    received = [body["prompt_id"] for pod in (double, second) for body in pod.received]
    assert sorted(received) == sorted(attempts)
    assert len(attempts) == len(jobs)


async def test_a_write_under_an_older_claim_is_refused(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    await room.submit()
    now = room.clock.now()
    (first,) = await room.claim("one", lease_seconds=-1.0)
    assert first.attempt is not None
    assert await room.db.write(job_rows.take_over, "other", now + 60.0, now)
    with pytest.raises(StaleClaim):
        await room.db.write(outcomes.succeed, first.job, first.attempt, {}, room.hooks, now)


async def test_a_scheduler_whose_lease_was_taken_lets_go_of_the_job(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    job = await room.submit(held=True)
    await room.reached(job, lambda view: view.job.status == "running")

    def steal(c: Connection) -> Sequence[Job]:
        return job_rows.take_over(c, "other", room.clock.now() + 60, room.clock.now() + 3600)

    assert await room.db.write(steal)
    assert room.scheduler is not None
    await until(lambda: room.scheduler is not None and room.scheduler.held_jobs == 0)
    double.released.set()
    await asyncio.sleep(0.3)
    assert (await room.view(job)).job.status == "running"
