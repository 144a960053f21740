"""Reports: a training's progress is shown soon, stored seldom, and what no later report says again is never lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controlplane.domain.pods import Pod
from controlplane.services import outcomes
from controlplane.services.claiming import Claimed
from controlplane.services.events import Hints
from controlplane.services.pods import Pods
from controlplane.services.reports import SAMPLES_SHOWN
from tests.services.character_studio import Clock, Studio, drawing, png, studio
from tests.services.engine import PROJECT, Engine
from tests.services.test_pods_service import BODY, JOIN_TOKEN

pytestmark = pytest.mark.usefixtures("each_database")


async def training(room: Engine, number: int = 1) -> tuple[Pod, Claimed]:
    """A pod with a training in its hands."""
    body = {**BODY, "instance_id": f"instance-{number}", "node_classes": ["Replay"]}
    pod, _ = await room.pods.register(body, JOIN_TOKEN)
    await room.submit(kind="train")
    (claimed,) = await room.claim()
    assert claimed.pod is not None
    assert claimed.pod.id == pod.id
    return pod, claimed


async def report(room: Engine, of: tuple[Pod, Claimed], seq: int, **values: Any) -> bool:
    pod, claimed = of
    assert claimed.attempt is not None
    body = {"seq": seq, "phase": "training", "step": seq, "total_steps": 1000, **values}
    return (await room.pods.attempt_progress(pod, claimed.attempt.id, body))["cancel"]


async def progress(room: Engine, of: tuple[Pod, Claimed]) -> dict[str, Any]:
    return dict((await room.view(of[1].job)).job.progress)


async def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 20.0
    while not await true():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


def progress_events(c: Any) -> int:
    return int(c.exec_driver_sql("SELECT count(*) FROM events WHERE type = 'job.progress'").scalar())


async def test_the_first_report_is_shown_at_once(room: Engine) -> None:
    one = await training(room)
    await report(room, one, 1, loss=0.5)
    assert (await progress(room, one))["loss"] == 0.5


async def test_the_newest_of_many_reports_is_shown_soon(room: Engine) -> None:
    one = await training(room)
    for seq in range(1, 30):
        await report(room, one, seq)

    async def shown() -> bool:
        return bool((await progress(room, one))["step"] == 29)

    await until(shown)


async def test_many_reports_at_once_make_few_events(room: Engine) -> None:
    one = await training(room)
    for seq in range(1, 30):
        await report(room, one, seq)

    async def shown() -> bool:
        return bool((await progress(room, one))["step"] == 29)

    await until(shown)
    assert await room.db.read(progress_events) < 10


async def test_an_older_report_does_not_replace_one_that_waits(room: Engine) -> None:
    one = await training(room)
    for seq in (1, 9, 5):
        await report(room, one, seq)

    async def shown() -> bool:
        return bool((await progress(room, one))["step"] != 1)

    await until(shown)
    assert (await progress(room, one))["step"] == 9


async def test_reports_of_several_trainings_are_stored_together(room: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    several = [await training(room, number) for number in (1, 2)]
    for one in several:
        await report(room, one, 1)
    written: list[int] = []
    write_fenced = room.db.write_fenced

    async def counted(fn: Any, *arguments: Any) -> Any:
        if fn.__name__ == "_attempt_progress":
            written.append(len(arguments[0]))
        return await write_fenced(fn, *arguments)

    monkeypatch.setattr(room.db, "write_fenced", counted)
    for one in several:
        await report(room, one, 2)

    async def shown() -> bool:
        return bool(written)

    await until(shown)
    assert written == [2]


async def test_a_warning_is_stored_before_it_is_answered(room: Engine) -> None:
    one = await training(room)
    await report(room, one, 1)
    await report(room, one, 2, note="trying again with less memory")
    assert (await room.view(one[1].job)).job.warnings == ("trying again with less memory",)


async def test_a_new_phase_is_shown_at_once(room: Engine) -> None:
    one = await training(room)
    await report(room, one, 1)
    await report(room, one, 2, phase="verifying")
    assert (await progress(room, one))["phase"] == "verifying"


async def test_a_report_that_waits_is_answered_with_cancel_too(room: Engine) -> None:
    one = await training(room)
    await report(room, one, 1)
    await room.jobs.cancel(PROJECT, one[1].job.id)
    assert await report(room, one, 2)


async def test_a_training_that_is_over_is_told_to_stop(room: Engine) -> None:
    one = await training(room)
    await report(room, one, 1)
    await room.db.write(outcomes.fail, one[1].job, "gone", "It is over.", room.hooks, room.clock.now())
    assert await report(room, one, 2)


def pods_of(s: Studio) -> Pods:
    return Pods(s.db, Clock(), Hints(), s.settings, "join")


async def sampled(s: Studio, job_id: str) -> list[str]:
    progress = (await s.jobs.get(PROJECT, job_id)).job.progress
    return [one["asset_id"] for one in progress.get("samples", ())]


async def told_of(s: Studio, count: int) -> tuple[str, list[str]]:
    """A training that has told of so many samples: its job, and their asset ids."""
    created = await s.create("Mira")
    attempt = await s.attempt(created.job)
    made = []
    for number in range(1, count + 1):
        made.append(await s.hand_over(attempt, png(drawing(number)), "sample", "image/png", number))
        body = {"seq": number, "phase": "training", "step": number, "total_steps": 9, "sample_asset_id": made[-1]}
        await pods_of(s).attempt_progress(s.pod, attempt.id, body)
    return created.job.id, made


async def test_the_newest_samples_stand_in_the_progress(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        job_id, made = await told_of(s, SAMPLES_SHOWN + 2)
        assert await sampled(s, job_id) == made[-SAMPLES_SHOWN:]


async def test_samples_stay_when_a_report_brings_none(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        job_id, made = await told_of(s, 1)
        attempt = (await s.jobs.get(PROJECT, job_id)).attempts[-1]
        await pods_of(s).attempt_progress(s.pod, attempt.id, {"seq": 9, "phase": "verifying"})
        assert await sampled(s, job_id) == made


async def test_a_picture_of_another_job_is_no_sample_of_this_one(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        _, (others,) = await told_of(s, 1)
        created = await s.create("Another")
        attempt = await s.attempt(created.job)
        body = {"seq": 1, "phase": "training", "step": 1, "total_steps": 9, "sample_asset_id": others}
        await pods_of(s).attempt_progress(s.pod, attempt.id, body)
        assert await sampled(s, created.job.id) == []
