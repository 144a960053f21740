"""The scheduler on pods whose ComfyUI is restarted, whose machine is gone, or whom nobody hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.db.events import after
from controlplane.providers.comfyui import Pace
from controlplane.services.jobs import JobView
from tests.comfy.comfyui_double import ERROR, ComfyUIDouble
from tests.services.engine import PROJECT, Engine, engine
from tests.waiting import until

FOR_EVER = 3600.0
PATIENT = Pace(poll=0.1, blind_poll=0.05, absent_seconds=FOR_EVER, unreachable_seconds=FOR_EVER, quiet=0.1)
"""Nothing is ever given up for silence, so that whatever ends an attempt is something that was told."""


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Engine]:
    async with engine(tmp_path, PATIENT) as made:
        yield made


def died(double: ComfyUIDouble, log: list[str] | None = None) -> str:
    """Kill the double's ComfyUI under its running prompt, as its agent tells it; returns the prompt id."""
    assert double.running is not None
    prompt_id = str(double.running["prompt_id"])
    double.away = True
    double.incidents[prompt_id] = {
        "prompt_id": prompt_id,
        "code": "died",
        "detail": "ComfyUI died with exit code -9.",
        "at": 1.0,
        "log_tail": log or [],
    }
    return prompt_id


async def back(double: ComfyUIDouble) -> None:
    """ComfyUI is up again and knows nothing."""
    await double.restart()
    double.away = False


async def state(room: Engine, pod_id: str) -> str:
    return {pod.id: pod.state for pod in await room.pods.list(PROJECT)}[pod_id]


def codes(view: JobView) -> list[Any]:
    return [(attempt.status, (attempt.error or {}).get("code")) for attempt in view.attempts]


async def test_a_job_whose_comfyui_died_goes_back_to_its_only_pod_once_that_is_ready_again(
    room: Engine, double: ComfyUIDouble
) -> None:
    pod, key = await room.register(double)
    room.start()
    job = await room.submit(held=True)
    await double.started.wait()
    died(double)
    await room.reached(job, lambda view: view.job.status == "queued" and view.attempts[0].status == "lost")
    await room.reached(job, lambda view: "suspect" in (view.job.placement or {}).get("reason", ""))
    await room.pods.heartbeat(pod.id, key, {"state": "joining", "boot": {"phase": "starting"}})
    await room.reached(job, lambda view: "starting ComfyUI" in (view.job.placement or {}).get("reason", ""))
    await back(double)
    double.released.set()
    await room.pods.heartbeat(pod.id, key, {"state": "ready", "restarts": 1, "restart_reason": "died"})
    view = await room.final(job)
    assert (view.job.status, codes(view)) == ("succeeded", [("lost", "died"), ("succeeded", None)])


async def test_a_job_whose_comfyui_died_goes_to_another_pod_where_there_is_one(
    room: Engine, double: ComfyUIDouble, second: ComfyUIDouble
) -> None:
    first, _ = await room.register(double)
    room.start()
    job = await room.submit(held=True)
    await double.started.wait()
    other, _ = await room.register(second)
    second.released.set()
    prompt_id = died(double)
    await back(double)
    assert prompt_id in double.incidents
    view = await room.final(job)
    assert [attempt.pod_id for attempt in view.attempts] == [first.id, other.id]


async def test_a_pod_that_is_back_already_needs_no_heartbeat_to_get_work_again(
    room: Engine, double: ComfyUIDouble
) -> None:
    await room.register(double)
    room.start()
    job = await room.submit(held=True)
    await double.started.wait()
    died(double)
    await back(double)
    double.released.set()
    assert codes(await room.final(job)) == [("lost", "died"), ("succeeded", None)]


async def test_the_log_is_kept_with_the_attempt_and_cut(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    job = await room.submit(held=True)
    await double.started.wait()
    died(double, [f"{number} {'x' * 400}" for number in range(60)])
    view = await room.reached(job, lambda view: view.attempts and view.attempts[0].error)
    kept = (view.attempts[0].error or {})["log_tail"]
    assert (len(kept), kept[-1][:3], {len(line) for line in kept}) == (40, "59 ", {300})


async def test_the_log_is_kept_with_a_failed_job(room: Engine, double: ComfyUIDouble) -> None:
    double.log = ["Traceback (most recent call last):", "ValueError: lab failure"]
    await room.register(double)
    room.start()
    view = await room.final(await room.submit(ERROR))
    assert (view.job.error, view.attempts[0].error) == (
        {"code": "execution_error", "detail": "LabFail failed: lab failure", "log_tail": double.log},
        {"code": "execution_error", "detail": "LabFail failed: lab failure", "log_tail": double.log},
    )


async def test_a_job_past_its_deadline_keeps_the_log_too(room: Engine, double: ComfyUIDouble) -> None:
    double.log = ["loading, still loading"]
    await room.register(double)
    room.start()
    view = await room.final(await room.submit(held=True, deadline_seconds=1.0))
    assert (view.job.error or {})["log_tail"] == double.log


async def test_events_and_trainings_versions_do_without_the_log(room: Engine, double: ComfyUIDouble) -> None:
    told: list[Any] = []
    room.hooks.on_failed["train"] = lambda c, job, error, now: told.append(error)  # type: ignore[index]
    double.log = ["a line of the log"]
    await room.register(double)
    room.start()
    await room.final(await room.submit(ERROR, kind="train"))
    told += [event.data for event in await room.db.read(lambda c: after(c, PROJECT, 0))]
    assert "LabFail" in str(told)
    assert "a line of the log" not in str(told)


async def test_a_pod_with_a_dead_device_gets_nothing_more_until_it_shows_life(
    room: Engine, double: ComfyUIDouble
) -> None:
    pod, _ = await room.register(double)
    double.failure = "CUDA error: an illegal memory access was encountered"
    room.start()
    job = await room.submit(ERROR)
    view = await room.reached(job, lambda view: view.attempts and view.job.status == "queued")
    assert (codes(view), await state(room, pod.id)) == ([("failed", "dead_device")], "suspect")


async def test_a_prompt_that_meets_a_restart_is_no_reason_to_fail(room: Engine, double: ComfyUIDouble) -> None:
    pod, key = await room.register(double)
    double.away = True
    room.start()
    job = await room.submit()
    await room.reached(job, lambda view: "suspect" in (view.job.placement or {}).get("reason", ""))
    double.away = False
    await room.pods.heartbeat(pod.id, key, {"state": "ready"})
    over = await room.final(job)
    assert (over.job.status, len(double.received)) == ("succeeded", 1), (over.job.error, codes(over))


async def test_a_pod_that_nobody_hears_keeps_its_job_while_its_worker_beats(
    tmp_path: Path, double: ComfyUIDouble
) -> None:
    double.mute = True
    async with engine(tmp_path, PATIENT, stall_seconds=0.5) as room:
        await room.register(double)
        room.start()
        job = await room.submit(held=True)
        await double.started.wait()
        double.worker = {"worker_alive": True, "beat_age_seconds": 0.0, "prompt_id": double.executed[0]}
        asked = double.calls.count("GET /troupe/state")
        await until(lambda: double.calls.count("GET /troupe/state") > asked + 15)
        double.released.set()
        assert codes(await room.final(job)) == [("succeeded", None)]


async def test_a_training_that_only_lives_and_does_nothing_is_still_noticed(
    tmp_path: Path, double: ComfyUIDouble
) -> None:
    async with engine(tmp_path, PATIENT, stall_seconds=0.5) as room:
        await room.register(double)
        room.start()
        job = await room.submit(held=True, kind="train")
        await double.started.wait()
        double.worker = {"worker_alive": True, "beat_age_seconds": 0.0, "prompt_id": double.executed[0]}
        view = await room.reached(job, lambda view: view.attempts and view.attempts[0].error)
    assert codes(view)[0] == ("failed", "attempt_stalled")


async def test_a_pod_that_is_gone_and_misses_a_heartbeat_loses_its_job_before_it_counts_as_lost(
    room: Engine, double: ComfyUIDouble, second: ComfyUIDouble
) -> None:
    pod, _ = await room.register(double)
    room.start()
    job = await room.submit(held=True, deadline_seconds=FOR_EVER)
    await double.started.wait()
    await double.stop()
    room.clock.ahead = 1.5 * room.settings.heartbeat_seconds + 1
    await room.register(second)
    second.released.set()
    view = await room.final(job)
    assert codes(view) == [("lost", "pod_lost"), ("succeeded", None)]
    assert room.clock.ahead < room.settings.suspect_after_seconds
    assert await state(room, pod.id) == "suspect"


async def test_a_pod_that_refuses_connections_but_sends_heartbeats_keeps_its_job(
    room: Engine, double: ComfyUIDouble
) -> None:
    await room.register(double)
    room.start()
    job = await room.submit(held=True)
    await double.started.wait()
    await double.stop()
    (held,) = room.scheduler._held.values()  # type: ignore[union-attr]
    await until(lambda: held.away_at)
    await asyncio.sleep(0.5)
    assert [attempt.live for attempt in (await room.view(job)).attempts] == [True]


async def test_a_silent_pod_that_is_there_keeps_its_job_until_it_counts_as_lost(
    room: Engine, double: ComfyUIDouble
) -> None:
    await room.register(double)
    room.start()
    job = await room.submit(held=True, deadline_seconds=FOR_EVER)
    await double.started.wait()
    room.clock.ahead = 1.5 * room.settings.heartbeat_seconds + 1
    await asyncio.sleep(0.5)
    double.released.set()
    assert codes(await room.final(job)) == [("succeeded", None)]
