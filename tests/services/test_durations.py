"""Durations: what jobs took is learned as they end, read from their rows once, and shown of those that wait or run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from controlplane.db.tables import jobs as job_table
from controlplane.domain.jobs import Job, NewJob
from controlplane.services.durations import JOBS_AHEAD, Durations
from controlplane.services.jobs import Jobs
from tests.comfy.comfyui_double import ComfyUIDouble
from tests.services.engine import Engine, engine

pytestmark = pytest.mark.usefixtures("each_database")


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Engine]:
    async with engine(tmp_path) as made:
        made.jobs = jobs_of(made)
        yield made


def jobs_of(room: Engine) -> Jobs:
    """The jobs service of a process that has just started."""
    return Jobs(
        room.db,
        room.clock,
        room.hints,
        durations=Durations(),
        outlook=room.fleet.outlook,
        pace=room.fleet.estimate,
    )


def done(seconds: float, **values: Any) -> dict[str, Any]:
    return {"status": "succeeded", "started_at": 100.0, "finished_at": 100.0 + seconds, **values}


async def have_done(room: Engine, seconds: float, times: int = 3, **request: Any) -> None:
    """Have jobs in the table that took so long."""
    for _ in range(times):
        job = await room.submit(request={"values": request})
        await room.db.write(
            lambda c, job_id: c.execute(update(job_table).where(job_table.c.id == job_id).values(**done(seconds))),
            job.id,
        )
    room.jobs = jobs_of(room)


async def eta(room: Engine, job: Job) -> float | None:
    found = (await room.view(job)).job.progress["eta_seconds"]
    assert found is None or isinstance(found, float)
    return found


async def test_the_first_job_of_a_process_is_judged_by_those_in_the_table(room: Engine) -> None:
    await have_done(room, 3.0)
    assert (await room.submit(estimate_seconds=60.0)).estimate_seconds == pytest.approx(3.0)


async def test_what_a_job_asks_for_scales_what_is_expected_of_it(room: Engine) -> None:
    await have_done(room, 3.0, steps=10)
    assert (await room.submit(request={"values": {"steps": 30}})).estimate_seconds == pytest.approx(9.0)


async def test_jobs_of_another_template_say_nothing(room: Engine) -> None:
    await have_done(room, 3.0)
    assert (await room.submit(template="another", estimate_seconds=60.0)).estimate_seconds == 60.0


async def test_a_job_that_succeeds_is_learned_from(room: Engine, double: ComfyUIDouble) -> None:
    learned = Durations()
    room.jobs = Jobs(room.db, room.clock, room.hints, durations=learned)
    await room.register(double)
    room.durations = learned
    room.start()
    for _ in range(3):
        await room.final(await room.submit(estimate_seconds=500.0))
    assert (await room.submit(estimate_seconds=500.0)).estimate_seconds < 30.0


async def test_a_job_that_an_idle_pod_can_take_will_take_its_own_time(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    await room.fleet.refresh(at_once=True)
    assert await eta(room, await room.submit(estimate_seconds=20.0)) == pytest.approx(20.0)


async def test_a_job_waits_for_those_before_it(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    await room.fleet.refresh(at_once=True)
    await room.submit(estimate_seconds=20.0)
    await room.submit(estimate_seconds=20.0)
    assert await eta(room, await room.submit(estimate_seconds=20.0)) == pytest.approx(60.0)


async def test_two_pods_halve_the_wait(room: Engine, double: ComfyUIDouble, second: ComfyUIDouble) -> None:
    await room.register(double)
    await room.register(second)
    await room.fleet.refresh(at_once=True)
    await room.submit(estimate_seconds=20.0)
    await room.submit(estimate_seconds=20.0)
    assert await eta(room, await room.submit(estimate_seconds=20.0)) == pytest.approx(40.0)


async def test_what_a_pod_has_in_hand_is_waited_for_too(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    await room.submit(estimate_seconds=100.0)
    await room.claim(fleet=room.fleet)
    assert await eta(room, await room.submit(estimate_seconds=20.0)) == pytest.approx(120.0, abs=10.0)


async def test_without_a_pod_that_can_do_it_nothing_is_promised(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    await room.fleet.refresh(at_once=True)
    assert await eta(room, await room.submit(needs={"nodes": ["Unheard"]})) is None


async def test_a_job_far_back_in_a_long_queue_is_promised_nothing(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    await room.fleet.refresh(at_once=True)
    template = {
        "kind": "image",
        "template": "replay",
        "template_digest": "0",
        "graph": {},
        "needs": {"nodes": ["Replay"]},
        "outputs": [],
        "deadline_seconds": 60.0,
    }

    def fill(c: Any) -> Job:
        made = [room.jobs.insert(c, NewJob(**template)) for _ in range(JOBS_AHEAD + 1)]  # type: ignore[arg-type]
        return made[-1]

    assert await eta(room, await room.db.write(fill)) is None


async def test_a_job_that_runs_begins_with_what_is_expected(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    job = await room.submit("01_success", held=True, estimate_seconds=500.0)
    view = await room.reached(job, lambda view: view.job.status == "running")
    assert view.job.progress["eta_seconds"] == pytest.approx(500.0, abs=60.0)
