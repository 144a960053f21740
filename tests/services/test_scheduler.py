"""The scheduler: a job's whole life on pods that succeed, fail, vanish, hang and come back."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from controlplane.domain.jobs import Attempt, Job, JobResult
from controlplane.errors import Conflict, StaleClaim, Unprocessable
from controlplane.providers.comfyui import Pace
from controlplane.services import scheduler as scheduler_module
from controlplane.services.holding import Held
from controlplane.services.jobs import JobView
from tests.comfy.comfyui_double import ERROR, SUCCESS, ComfyUIDouble, lines, recorded_history
from tests.services.engine import PROJECT, Engine, engine
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("each_database")
# These wait for pods most of their time, and say nothing of the database.
ONLY_ON_SQLITE = pytest.mark.parametrize("each_database", ["sqlite"], indirect=True)


def refusal(words: str) -> tuple[int, Any]:
    """A recorded 400 that contains these words."""
    return next((400, line["response"]) for line in lines("20_prompt_errors") if words in str(line["response"]))


async def test_a_job_ends_with_what_its_kind_made_of_the_outputs(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    job = (await room.final(await room.submit())).job
    assert (job.status, (job.result or {})["outputs"]) == ("succeeded", recorded_history(SUCCESS)["outputs"])


async def test_the_events_tell_the_life_of_a_job(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    job = await room.submit()
    await room.final(job)
    assert await room.told(job) == ["job.queued", "job.started", "job.succeeded"]


async def test_the_attempt_is_the_prompt(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    view = await room.final(await room.submit())
    assert [attempt.id for attempt in view.attempts] == [body["prompt_id"] for body in double.received]


async def test_the_pod_forgets_a_job_only_after_its_outcome_is_stored(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    view = await room.final(await room.submit())
    await until(lambda: double.forgotten)
    assert double.forgotten == [view.attempts[0].id]


async def test_a_failing_node_fails_the_job_at_once(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    view = await room.final(await room.submit(ERROR))
    assert (view.job.status, dict(view.job.error or {}), len(view.attempts)) == (
        "failed",
        {"code": "execution_error", "detail": "LabFail failed: lab failure"},
        1,
    )


async def test_a_graph_that_every_pod_would_refuse_is_sent_once(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    double.answer_submit_with = [refusal("required_input_missing")]
    room.start()
    view = await room.final(await room.submit())
    assert ((view.job.error or {})["code"], len(view.attempts)) == ("pod_refused", 1)


@ONLY_ON_SQLITE
async def test_what_one_pod_lacks_another_pod_does(room: Engine, double: ComfyUIDouble, second: ComfyUIDouble) -> None:
    first_pod, _ = await room.register(double)
    second_pod, _ = await room.register(second)
    double.answer_submit_with = [refusal("value_not_in_list")]
    second.answer_submit_with = []
    room.start()
    view = await room.final(await room.submit())
    tried = {attempt.pod_id: attempt.status for attempt in view.attempts}
    assert view.job.status == "succeeded"
    assert tried in ({first_pod.id: "failed", second_pod.id: "succeeded"}, {second_pod.id: "succeeded"})


async def test_a_lost_attempt_is_made_anew_on_another_pod(
    room: Engine, double: ComfyUIDouble, second: ComfyUIDouble
) -> None:
    pod, _ = await room.register(double)
    room.start()
    job = await room.submit(held=True)
    await double.started.wait()
    await room.register(second)
    second.released.set()
    await double.restart()
    view = await room.final(job)
    assert [(attempt.number, attempt.status, attempt.pod_id == pod.id) for attempt in view.attempts] == [
        (1, "lost", True),
        (2, "succeeded", False),
    ]


@ONLY_ON_SQLITE
async def test_a_lost_attempt_is_made_anew_on_the_same_pod_where_there_is_no_other(
    room: Engine, double: ComfyUIDouble
) -> None:
    await room.register(double)
    room.start()
    job = await room.submit(held=True)
    await double.started.wait()
    await double.restart()
    double.released.set()
    view = await room.final(job)
    assert [attempt.status for attempt in view.attempts] == ["lost", "succeeded"]


async def test_a_job_that_is_lost_too_often_fails_with_the_story_of_each_attempt(
    tmp_path: Path, double: ComfyUIDouble
) -> None:
    async with engine(tmp_path, max_attempts=2) as room:
        await room.register(double)
        room.start()
        job = await room.submit(held=True)
        for number in (1, 2):
            await room.reached(job, lambda view, n=number: len(view.attempts) == n)  # type: ignore[misc]
            await double.started.wait()
            await double.restart()
        detail = (await room.final(job)).job.error or {}
    assert "attempt 1 on" in detail["detail"]
    assert "attempt 2 on" in detail["detail"]


async def test_two_jobs_never_run_on_one_pod_at_a_time(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    # Behind shorter work the second prompt would wait on the pod itself.
    first = await room.submit(held=True, estimate_seconds=60.0)
    await double.started.wait()
    waiting = await room.submit()
    view = await room.reached(waiting, lambda view: view.job.placement)
    assert (len(double.received), (view.job.placement or {})["reason"]) == (
        1,
        "Every pod that can do this work is busy.",
    )
    double.released.set()
    await room.final(first)
    assert (await room.final(waiting)).job.status == "succeeded"


async def test_work_that_no_pod_can_do_fails_at_its_deadline_in_the_words_of_its_placement(
    room: Engine, double: ComfyUIDouble
) -> None:
    await room.register(double)
    room.start()
    job = await room.submit(needs={"nodes": ["TrainLoRA"]}, deadline_seconds=0.5)
    waiting = await room.reached(job, lambda view: view.job.placement)
    ended = await room.final(job)
    reason = (waiting.job.placement or {})["reason"]
    assert "lacks node class TrainLoRA" in reason
    assert (ended.job.error or {})["detail"].endswith(reason)


async def test_jobs_that_nothing_can_do_do_not_hide_one_that_a_pod_waits_for(
    room: Engine, double: ComfyUIDouble
) -> None:
    await room.register(double)
    for _ in range(30):
        await room.submit(needs={"nodes": ["TrainLoRA"]}, template="train_lora")
    room.start()
    assert (await room.final(await room.submit())).job.status == "succeeded"


async def test_a_queued_job_is_cancelled_at_once(room: Engine) -> None:
    job = await room.submit(kind="train")
    view = await room.jobs.cancel(PROJECT, job.id)
    assert (view.job.status, room.ended) == ("cancelled", [("cancelled", job.id)])


async def test_cancelling_twice_is_fine(room: Engine) -> None:
    job = await room.submit()
    await room.jobs.cancel(PROJECT, job.id)
    assert (await room.jobs.cancel(PROJECT, job.id)).job.status == "cancelled"


@ONLY_ON_SQLITE
async def test_a_running_job_is_interrupted_on_its_pod(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    job = await room.submit(held=True, kind="train")
    await double.started.wait()
    await room.jobs.cancel(PROJECT, job.id)
    view = await room.final(job)
    assert double.interrupted.is_set()
    assert (view.job.status, view.attempts[0].status, room.ended) == (
        "cancelled",
        "cancelled",
        [("cancelled", job.id)],
    )


async def test_a_cancel_goes_straight_to_the_pod_without_waiting_for_any_clock(
    tmp_path: Path, double: ComfyUIDouble
) -> None:
    never = 3600.0
    async with engine(tmp_path, Pace(poll=never, blind_poll=never), poll_seconds=never, lease_seconds=never) as room:
        await room.register(double)
        room.start()
        job = await room.submit(held=True)
        await double.started.wait()
        await room.reached(job, lambda view: view.attempts[0].status == "running")
        before = len(double.calls)
        await room.jobs.cancel(PROJECT, job.id)
        view = await room.final(job)
    after = [call for call in double.calls[before:] if call != "GET /ws"]
    assert after[:3] == ["POST /queue", "GET /queue", "POST /interrupt"]
    assert view.job.status == "cancelled"


async def test_a_job_that_has_ended_cannot_be_cancelled(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    job = await room.submit()
    await room.final(job)
    with pytest.raises(Conflict):
        await room.jobs.cancel(PROJECT, job.id)


async def test_a_job_past_its_deadline_is_taken_off_its_pod_and_fails(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    job = await room.submit(held=True, kind="train", deadline_seconds=1.0)
    view = await room.final(job)
    assert double.interrupted.is_set()
    assert ((view.job.error or {})["code"], room.ended) == ("deadline_exceeded", [("failed", job.id)])


@ONLY_ON_SQLITE
async def test_a_pod_that_shows_no_progress_loses_the_job_to_another_one(
    tmp_path: Path, double: ComfyUIDouble, second: ComfyUIDouble
) -> None:
    async with engine(tmp_path, stall_seconds=0.5) as room:
        await room.register(double)
        room.start()
        job = await room.submit(held=True)
        await double.started.wait()
        second.released.set()
        await room.register(second)
        view = await room.final(job)
    assert [(attempt.status, (attempt.error or {}).get("code")) for attempt in view.attempts] == [
        ("failed", "attempt_stalled"),
        ("succeeded", None),
    ]


@ONLY_ON_SQLITE
async def test_an_attempt_ends_when_its_pod_falls_silent(
    room: Engine, double: ComfyUIDouble, second: ComfyUIDouble
) -> None:
    await room.register(double)
    room.start()
    job = await room.submit(held=True, deadline_seconds=3600.0)
    await double.started.wait()
    room.clock.ahead = room.settings.lost_after_seconds + 1
    await room.register(second)
    second.released.set()
    await room.pods.sweep()
    view = await room.final(job)
    assert [(attempt.status, (attempt.error or {}).get("code")) for attempt in view.attempts] == [
        ("lost", "pod_lost"),
        ("succeeded", None),
    ]


async def test_a_pod_that_registers_again_elsewhere_is_followed_there(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    job = await room.submit(held=True)
    await double.started.wait()
    double.token = "another token"
    await room.register(double)
    await asyncio.sleep(0.3)
    double.released.set()
    view = await room.final(job)
    assert [attempt.status for attempt in view.attempts] == ["succeeded"]


@ONLY_ON_SQLITE
async def test_a_pod_that_refuses_connections_gets_no_more_work_until_it_shows_life(
    room: Engine, double: ComfyUIDouble
) -> None:
    pod, key = await room.register(double)
    await double.stop()
    room.start()
    job = await room.submit()
    await room.reached(job, lambda view: view.attempts and view.job.status == "queued")
    state = {one.id: one.state for one in await room.pods.list(PROJECT)}[pod.id]
    await double.start(double.port)
    await room.pods.heartbeat(pod.id, key, {"state": "ready"})
    assert (state, (await room.final(job)).job.status) == ("suspect", "succeeded")


@ONLY_ON_SQLITE
async def test_outputs_that_are_not_stored_do_not_count(room: Engine, double: ComfyUIDouble) -> None:
    asked: list[str] = []

    async def verify(job: Job, outputs: Mapping[str, Any], ask: object) -> list[str]:
        asked.append(job.id)
        return ["img.png is not stored"] if len(asked) == 1 else []

    room.hooks = dataclasses.replace(room.hooks, verify=verify)
    await room.register(double)
    room.start()
    view = await room.final(await room.submit())
    assert [(attempt.status, (attempt.error or {}).get("code")) for attempt in view.attempts] == [
        ("failed", "outputs_missing"),
        ("succeeded", None),
    ]


async def test_a_result_that_the_kind_cannot_use_fails_the_job_in_its_words(
    room: Engine, double: ComfyUIDouble
) -> None:
    def refuse(c: Connection, job: Job, attempt: Attempt, outputs: Mapping[str, Any], now: float) -> JobResult:
        raise Unprocessable("The LoRA is empty.")

    room.hooks = dataclasses.replace(room.hooks, complete={"image": refuse})
    await room.register(double)
    room.start()
    view = await room.final(await room.submit())
    assert dict(view.job.error or {}) == {"code": "invalid_request", "detail": "The LoRA is empty."}


async def test_progress_is_shown_while_the_job_runs(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    room.start()
    job = await room.submit(held=True)

    def has_percent(view: JobView) -> bool:
        return view.job.status == "running" and view.job.progress["phase"] == "running"

    view = await room.reached(job, has_percent)
    double.released.set()
    ended = await room.final(job)
    assert (view.job.progress["percent"] < 100.0, ended.job.progress["percent"]) == (True, 100.0)


async def test_a_submit_in_doubt_that_arrived_is_not_repeated(room: Engine, double: ComfyUIDouble) -> None:
    await room.register(double)
    double.break_after_queueing = True
    room.start()
    view = await room.final(await room.submit())
    assert (view.job.status, len(double.received), len(view.attempts)) == ("succeeded", 1, 1)


async def test_a_submit_in_doubt_that_did_not_arrive_becomes_another_attempt(
    room: Engine, double: ComfyUIDouble
) -> None:
    await room.register(double)
    double.answer_submit_with = [(500, "500 Internal Server Error")]
    room.start()
    view = await room.final(await room.submit())
    assert [attempt.status for attempt in view.attempts] == ["lost", "succeeded"]


async def test_the_least_costly_pod_is_chosen(room: Engine, double: ComfyUIDouble, second: ComfyUIDouble) -> None:
    await room.register(double)
    warm, key = await room.register(second)
    await room.pods.heartbeat(warm.id, key, {"state": "ready", "loras": ["abc"]})
    room.start()
    view = await room.final(await room.submit(needs={"nodes": ["Replay"], "lora_sha256": "abc"}))
    assert view.attempts[0].pod_id == warm.id


async def test_a_claim_that_has_ended_leaves_the_next_one_of_its_job_watched(
    double: ComfyUIDouble, tmp_path: Path
) -> None:
    async with engine(tmp_path) as room:
        await room.register(double)
        job = await room.submit()
        (first,) = await room.claim()
        assert first.attempt is not None
        assert first.pod is not None
        room.start()
        scheduler = room.scheduler
        assert scheduler is not None
        later = Held(dataclasses.replace(first.job, claim_no=2), first.attempt, first.pod, resumed=True)

        async def learn_late(held: Held) -> None:
            scheduler._held[job.id] = later  # as _carry of the next claim does, while this one's COMMIT was in doubt
            raise StaleClaim("it was committed")

        scheduler._carrier.run = learn_late  # type: ignore[method-assign]
        await scheduler._carry(first)
        assert scheduler._held.get(job.id) is later


@ONLY_ON_SQLITE
async def test_a_job_that_the_server_stumbles_over_each_time_ends_at_its_deadline(
    double: ComfyUIDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stumble(job: Job, outputs: Mapping[str, Any], ask: object) -> list[str]:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr(scheduler_module, "CRASH_PAUSE_SECONDS", 0.1)
    async with engine(tmp_path, poll_seconds=0.5) as room:
        room.hooks = dataclasses.replace(room.hooks, verify=stumble)
        await room.register(double)
        room.start()
        view = await room.final(await room.submit(deadline_seconds=1.0), 10.0)
    assert (view.job.status, (view.job.error or {})["code"]) == ("failed", "deadline_exceeded")
