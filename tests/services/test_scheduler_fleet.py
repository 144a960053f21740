"""The fleet at work: places behind short work, prompts taken back, pods that come and go, and no project starved."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import insert

from controlplane.db.tables import projects
from controlplane.domain.jobs import is_final
from controlplane.services.jobs import JobView
from tests.comfy.comfyui_double import ComfyUIDouble, comfyui_double
from tests.services.engine import Engine, engine
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("each_database")
ONLY_ON_SQLITE = pytest.mark.parametrize("each_database", ["sqlite"], indirect=True)


def on(view: JobView, pod_id: str) -> bool:
    return bool(view.attempts) and view.attempts[-1].pod_id == pod_id


async def test_the_next_prompt_waits_on_the_pod_while_it_works_and_runs_at_once(
    room: Engine, double: ComfyUIDouble
) -> None:
    await room.register(double)
    room.start()
    first = await room.submit(held=True, estimate_seconds=20.0)
    await double.started.wait()
    second = await room.submit(estimate_seconds=20.0)
    await until(lambda: len(double.received) == 2)
    slots = [view.attempts[0].slot for view in (await room.view(first), await room.view(second))]
    double.released.set()
    statuses = [(await room.final(job)).job.status for job in (first, second)]
    assert (slots, statuses) == ([0, 1], ["succeeded", "succeeded"])


async def test_a_job_with_a_place_behind_others_says_so(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    await room.submit(held=True, estimate_seconds=20.0)
    await double.started.wait()
    second = await room.submit(estimate_seconds=20.0)
    view = await room.reached(second, lambda view: view.attempts)
    double.released.set()
    assert (view.job.placement or {})["reason"].startswith("next behind 1 job with about ")


async def test_a_prompt_that_waits_is_taken_back_for_a_pod_that_joins(
    room: Engine, double: ComfyUIDouble, second: ComfyUIDouble
) -> None:
    await room.register(double)
    room.start()
    blocked = await room.submit(held=True, estimate_seconds=20.0)
    await double.started.wait()
    waiting = await room.submit(estimate_seconds=20.0)
    await until(lambda: len(double.received) == 2)
    second.released.set()
    added, _ = await room.register(second)
    view = await room.final(waiting)
    goes_on = not is_final((await room.view(blocked)).job.status)
    double.released.set()
    await room.final(blocked)
    assert (view.job.status, on(view, added.id), len(view.attempts), goes_on) == ("succeeded", True, 1, True)


@ONLY_ON_SQLITE
async def test_a_pod_that_joins_gets_waiting_work_at_once(
    room: Engine, double: ComfyUIDouble, second: ComfyUIDouble
) -> None:
    await room.register(double)
    room.start()
    jobs = [await room.submit(held=True, estimate_seconds=60.0) for _ in range(2)]
    await double.started.wait()
    second.released.set()
    await room.register(second)
    await until(lambda: len(second.received) == 1)
    double.released.set()
    assert [(await room.final(job)).job.status for job in jobs] == ["succeeded", "succeeded"]


async def test_a_drain_loses_nothing_neither_what_runs_nor_what_waits_there(
    room: Engine, double: ComfyUIDouble, second: ComfyUIDouble
) -> None:
    leaving, _ = await room.register(double)
    room.start()
    jobs = [await room.submit(held=True, estimate_seconds=20.0) for _ in range(2)]
    await until(lambda: len(double.received) == 2)
    await room.pods.drain(leaving.id)
    later = [await room.submit(estimate_seconds=20.0) for _ in range(3)]
    await asyncio.sleep(0.2)
    second.released.set()
    added, _ = await room.register(second)
    double.released.set()
    views = [await room.final(job) for job in (*jobs, *later)]
    assert [view.job.status for view in views] == ["succeeded"] * 5
    assert all(on(view, added.id) for view in views[2:])
    assert len(double.received) == 2


@ONLY_ON_SQLITE
async def test_nothing_is_sent_to_a_pod_behind_a_training(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    training = await room.submit(held=True, kind="train", estimate_seconds=5.0)
    await double.started.wait()
    picture = await room.submit(estimate_seconds=5.0)
    await asyncio.sleep(0.5)
    waiting = (await room.view(picture)).job.status
    double.released.set()
    await room.final(training)
    assert (waiting, (await room.final(picture)).job.status) == ("queued", "succeeded")


@ONLY_ON_SQLITE
async def test_a_pod_with_very_short_work_soon_has_several_prompts_waiting(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    double.released.set()
    jobs = [await room.submit(estimate_seconds=0.05) for _ in range(30)]
    for job in jobs:
        await room.final(job)
    slots = {attempt.slot for job in jobs for attempt in (await room.view(job)).attempts}
    assert {0, 1, 2} <= slots


@ONLY_ON_SQLITE
async def test_what_jobs_of_a_lane_really_take_corrects_their_templates_estimate(
    room: Engine, double: ComfyUIDouble
) -> None:
    await room.register(double)
    room.start()
    double.released.set()
    for _ in range(8):
        job = (await room.final(await room.submit(estimate_seconds=100.0))).job
    await until(lambda: room.fleet.estimate(job.lane, 100.0) < 30.0)


async def test_a_project_with_one_job_is_not_starved_by_one_with_many(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    await room.db.write(lambda c: c.execute(insert(projects).values(id="small", name="Small", created_at=0.0)))
    flood = [await room.submit(estimate_seconds=20.0) for _ in range(25)]
    small = await room.submit(project_id="small", estimate_seconds=20.0)
    double.released.set()
    room.start()
    await until(lambda: len(double.received) >= 4)
    for job in flood:
        await room.final(job)
    order = [body["prompt_id"] for body in double.received]
    attempts = (await room.jobs.get("small", small.id)).attempts
    assert order.index(attempts[0].id) <= 3


@ONLY_ON_SQLITE
async def test_a_job_is_not_overtaken_for_ever_by_those_that_a_pod_is_warm_for(
    tmp_path: Path, double: ComfyUIDouble
) -> None:
    async with engine(tmp_path, age_bound_seconds=0.0) as room:
        await room.register(double)
        double.released.set()
        first = await room.submit(base_model="b", needs={"nodes": ["Replay"], "lora_sha256": "warm"})
        cold = await room.submit(base_model="b", needs={"nodes": ["Replay"], "lora_sha256": "cold"})
        later = [
            await room.submit(base_model="b", needs={"nodes": ["Replay"], "lora_sha256": "warm"}) for _ in range(5)
        ]
        room.start()
        for job in (first, cold, *later):
            await room.final(job)
        order = [body["prompt_id"] for body in double.received]
        assert order.index((await room.view(cold)).attempts[0].id) == 1


@ONLY_ON_SQLITE
async def test_a_pods_resident_lora_is_used_before_another_one_is_loaded(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    double.released.set()
    wanted = [
        await room.submit(base_model="b", needs={"nodes": ["Replay"], "lora_sha256": f"lora {number % 2}"})
        for number in range(8)
    ]
    room.start()
    for job in wanted:
        await room.final(job)
    names = {(await room.view(job)).attempts[0].id: (job.lora_sha256 or "") for job in wanted}
    order = [names[body["prompt_id"]] for body in double.received]
    assert sum(one != other for one, other in pairwise(order)) == 1


@ONLY_ON_SQLITE
async def test_many_pods_work_on_many_jobs_each_once(room: Engine) -> None:
    doubles = []
    async with comfyui_double() as one, comfyui_double() as two, comfyui_double() as three:
        for made in (one, two, three):
            await room.register(made)
            made.released.set()
            doubles.append(made)
        room.start()
        jobs = [await room.submit(estimate_seconds=0.05) for _ in range(60)]
        views = [await room.final(job) for job in jobs]
        await until(lambda: not room.scheduler or room.scheduler.held_jobs == 0)
    received = [body["prompt_id"] for made in doubles for body in made.received]
    assert sorted(received) == sorted(view.attempts[0].id for view in views)
    assert {view.job.status for view in views} == {"succeeded"}
