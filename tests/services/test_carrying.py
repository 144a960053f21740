"""Carrying one held job: orders in every phase of its life, what they leave on the pod, and how honestly they end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from sqlalchemy import Connection

from controlplane.comfy.client import ComfyClient, open_session
from controlplane.db import attempts as attempt_rows
from controlplane.db import held as held_rows
from controlplane.db.attempts import Occupied
from controlplane.domain.ids import new_prompt_id
from controlplane.domain.jobs import CLAIMED, HELD, Attempt, Job, JobResult
from controlplane.domain.pods import Live
from controlplane.errors import DatabaseAway
from controlplane.services import carrying, taking_back
from controlplane.services.carrying import Carrier
from controlplane.services.holding import Held, Order
from controlplane.services.jobs import JobView
from controlplane.services.taking_back import to_take_back
from tests.comfy.comfyui_double import ComfyUIDouble, replay_graph
from tests.services.engine import PROJECT, Engine
from tests.waiting import until


class Carried:
    """A held job and the task that carries it, with nobody but the test to give orders."""

    def __init__(self, room: Engine, held: Held) -> None:
        self.held = held
        self._room = room
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        room = self._room
        carrier = Carrier(room.db, {"comfyui": room.provider}, room.settings, room.clock, room.hooks, room.hints)
        self._task = asyncio.create_task(carrier.run(self.held))

    async def give(self, order: Order) -> None:
        """Give an order; a cancel is asked for as users do."""
        if order == "cancel":
            await self._room.jobs.cancel(PROJECT, self.held.job.id)
        self.held.give(order)

    async def over(self) -> JobView:
        assert self._task is not None
        await asyncio.wait_for(self._task, 60)
        return await self._room.view(self.held.job)

    @property
    def prompt_id(self) -> str:
        return self.held.attempt.id


async def claimed(room: Engine, double: ComfyUIDouble, **values: Any) -> Carried:
    """A job in this test's hands, its attempt written, its pod unaware of it."""
    pod, _ = await room.register(double)
    job = await room.submit(**values)
    now = room.clock.now()
    attempt = Attempt(new_prompt_id(), PROJECT, job.id, 1, pod.id, new_prompt_id(), "created", now)

    def claim(c: Connection) -> Job:
        attempt_rows.add(c, PROJECT, attempt)
        return held_rows.put(c, job, status=CLAIMED, claimed_by="a test", lease_until=now + 60.0)

    return Carried(room, Held(await room.db.write(claim), attempt, pod, resumed=False))


@contextlib.asynccontextmanager
async def busy(double: ComfyUIDouble) -> AsyncIterator[ComfyClient]:
    """The pod is at somebody else's prompt."""
    async with open_session() as session:
        client = ComfyClient(session, double.url, double.token)
        await client.submit(replay_graph(held=True), "somebody else's", "somebody else")
        await until(lambda: double.running)
        yield client


def on_pod(double: ComfyUIDouble, one: Carried) -> bool:
    running = [double.running] if double.running else []
    return any(body["prompt_id"] == one.prompt_id for body in [*running, *double.pending])


# cancel


async def test_a_job_that_is_cancelled_before_it_was_sent_is_never_sent(room: Engine, double: ComfyUIDouble) -> None:
    one = await claimed(room, double)
    await one.give("cancel")
    one.start()
    view = await one.over()
    assert (view.job.status, view.attempts[0].status, double.received) == ("cancelled", "cancelled", [])


async def test_a_job_that_is_cancelled_while_it_waits_on_its_pod_is_taken_off_it(
    room: Engine, double: ComfyUIDouble
) -> None:
    async with busy(double):
        one = await claimed(room, double)
        one.start()
        await until(lambda: on_pod(double, one))
        await one.give("cancel")
        view = await one.over()
        assert not on_pod(double, one)
        assert not double.interrupted.is_set()
    assert (view.job.status, view.job.warnings) == ("cancelled", ())


async def test_a_job_that_is_cancelled_while_it_runs_is_interrupted(room: Engine, double: ComfyUIDouble) -> None:
    one = await claimed(room, double, held=True)
    one.start()
    await until(lambda: one.held.begun)
    await one.give("cancel")
    view = await one.over()
    assert (view.job.status, double.interrupted.is_set(), on_pod(double, one)) == ("cancelled", True, False)


async def test_a_cancelled_job_that_had_begun_says_so_in_its_events(room: Engine, double: ComfyUIDouble) -> None:
    one = await claimed(room, double, held=True)
    one.start()
    await until(lambda: one.held.begun)
    await one.give("cancel")
    view = await one.over()
    assert await room.told(view.job) == ["job.queued", "job.started", "job.cancelled"]


async def test_a_prompt_in_doubt_that_arrives_behind_its_cancel_is_stopped_too(
    room: Engine, double: ComfyUIDouble
) -> None:
    async with busy(double):
        one = await claimed(room, double, held=True)
        double.answer_submit_with = [(500, "500 Internal Server Error")]
        one.start()
        await until(lambda: one.held.in_doubt)
        await one.give("cancel")
        await until(lambda: "POST /queue" in double.calls)
        late = {"prompt_id": one.prompt_id, "client_id": "late", "prompt": replay_graph(held=True), "extra_data": {}}
        double._queue(late)
        view = await one.over()
        assert (view.job.status, on_pod(double, one)) == ("cancelled", False)


async def test_a_job_that_is_cancelled_while_its_outputs_are_checked_ends_at_once(
    room: Engine, double: ComfyUIDouble
) -> None:
    async def check_for_ever(job: Job, outputs: Mapping[str, Any], ask: Any) -> list[str]:
        await asyncio.Event().wait()
        return []

    room.hooks = dataclasses.replace(room.hooks, verify=check_for_ever)
    one = await claimed(room, double)
    one.start()
    await until(lambda: one.held.attempt.status == "collecting")
    await one.give("cancel")
    assert (await one.over()).job.status == "cancelled"


async def test_a_cancel_that_the_pod_does_not_confirm_is_told_as_such(
    room: Engine, double: ComfyUIDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "STOP_SECONDS", 0.2)
    double.deaf = True
    one = await claimed(room, double, held=True)
    one.start()
    await until(lambda: one.held.begun)
    await one.give("cancel")
    view = await one.over()
    assert view.job.status == "cancelled"
    assert "did not confirm" in view.job.warnings[0]


async def test_what_has_succeeded_while_it_was_cancelled_ends_as_cancelled(room: Engine, double: ComfyUIDouble) -> None:
    one = await claimed(room, double)
    await room.jobs.cancel(PROJECT, one.held.job.id)
    one.start()
    assert (await one.over()).job.status == "cancelled"


# outcomes


async def test_a_database_that_is_away_when_the_outcome_is_to_be_stored_fails_no_job(
    room: Engine, double: ComfyUIDouble
) -> None:
    def away(*_: Any) -> JobResult:
        raise DatabaseAway("for longer than a write waits")

    room.hooks = dataclasses.replace(room.hooks, complete={"image": away})
    one = await claimed(room, double)
    one.start()
    with pytest.raises(DatabaseAway):
        await one.over()
    view = await room.view(one.held.job)
    assert (view.job.status in HELD, view.attempts[0].live, one.prompt_id in double.history) == (True, True, True)


# take_back


async def test_a_prompt_that_waits_is_taken_back_without_a_trace(room: Engine, double: ComfyUIDouble) -> None:
    async with busy(double):
        one = await claimed(room, double)
        one.start()
        await until(lambda: on_pod(double, one))
        await one.give("take_back")
        view = await one.over()
        assert (view.job.status, view.attempts, on_pod(double, one)) == ("queued", (), False)


async def test_a_prompt_that_was_not_sent_yet_is_taken_back_without_asking_the_pod(
    room: Engine, double: ComfyUIDouble
) -> None:
    one = await claimed(room, double)
    await one.give("take_back")
    one.start()
    assert ((await one.over()).job.status, double.calls) == ("queued", [])


async def test_a_prompt_that_runs_is_not_taken_back(room: Engine, double: ComfyUIDouble) -> None:
    one = await claimed(room, double, held=True)
    one.start()
    await until(lambda: one.held.begun)
    await one.give("take_back")
    await until(lambda: one.held.order is None)
    double.released.set()
    view = await one.over()
    assert (view.job.status, len(view.attempts), len(double.received)) == ("succeeded", 1, 1)


async def test_a_prompt_that_has_begun_unheard_runs_on(room: Engine, double: ComfyUIDouble) -> None:
    double.mute = True
    async with busy(double):
        one = await claimed(room, double)
        one.start()
        await until(lambda: on_pod(double, one))
        double.released.set()
        await until(lambda: one.prompt_id in double.history)
        await one.give("take_back")
        view = await one.over()
    assert (view.job.status, len(double.received)) == ("succeeded", 2)


async def test_a_pod_that_does_not_answer_keeps_the_prompt_that_was_to_be_taken_back(
    room: Engine, double: ComfyUIDouble
) -> None:
    async with busy(double):
        one = await claimed(room, double)
        one.start()
        await until(lambda: on_pod(double, one))
        double.away = True
        await one.give("take_back")
        await until(lambda: one.held.order is None)
        double.away = False
        double.released.set()
        view = await one.over()
    assert (view.job.status, len(view.attempts)) == ("succeeded", 1)


async def test_what_is_cancelled_while_it_is_taken_back_ends_as_cancelled(room: Engine, double: ComfyUIDouble) -> None:
    async with busy(double):
        one = await claimed(room, double)
        one.start()
        await until(lambda: on_pod(double, one))
        await room.jobs.cancel(PROJECT, one.held.job.id)
        one.held.give("take_back")
        view = await one.over()
        assert (view.job.status, on_pod(double, one)) == ("cancelled", False)


async def test_a_prompt_that_its_pod_kept_is_not_asked_back_at_every_look(room: Engine, double: ComfyUIDouble) -> None:
    one = await claimed(room, double, estimate_seconds=20.0)
    await room.register(double, instance_id="another", address="http://127.0.0.1:9")
    await room.fleet.refresh(at_once=True)
    attempt = one.held.attempt
    before = Occupied(
        Live("other", "another job", PROJECT, 0, "image", 20.0, room.clock.now()), attempt.pod_id, None, None
    )
    own = Live(attempt.id, one.held.job.id, PROJECT, 1, "image", 20.0, room.clock.now())
    room.fleet.ended(attempt.id)
    room.fleet.gave([before, Occupied(own, attempt.pod_id, None, None)])
    held = {one.held.job.id: one.held}
    asked = [len(to_take_back(room.fleet, held, room.clock.now()))]
    one.held.give("take_back")
    one.held.stay()
    asked.append(len(to_take_back(room.fleet, held, room.clock.now())))
    assert asked == [1, 0]


async def test_a_prompt_in_doubt_is_looked_for_in_peace(room: Engine, double: ComfyUIDouble) -> None:
    one = await claimed(room, double, estimate_seconds=20.0)
    one.held.sent = True
    assert not taking_back._may_be_waiting(one.held, one.held.attempt.id)


async def test_taking_back_replaces_no_other_order(room: Engine, double: ComfyUIDouble) -> None:
    one = await claimed(room, double)
    one.held.give("deadline")
    one.held.give("take_back")
    assert one.held.order == "deadline"


async def test_nothing_replaces_a_cancel(room: Engine, double: ComfyUIDouble) -> None:
    one = await claimed(room, double)
    one.held.give("cancel")
    one.held.give("pod_lost")
    assert one.held.order == "cancel"


async def test_a_job_goes_to_another_pod_once_it_was_taken_back(
    room: Engine, double: ComfyUIDouble, second: ComfyUIDouble
) -> None:
    async with busy(double):
        one = await claimed(room, double)
        one.start()
        await until(lambda: on_pod(double, one))
        await one.give("take_back")
        await one.over()
        await room.pods.drain(one.held.pod.id)
        await room.register(second)
        room.start()
        view = await room.final(one.held.job)
    assert (view.job.status, [attempt.number for attempt in view.attempts], len(second.received)) == (
        "succeeded",
        [1],
        1,
    )
