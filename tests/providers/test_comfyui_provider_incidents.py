"""The ComfyUI provider and what stands beside ComfyUI: the agent's incidents and log, the node pack's signs of life."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from controlplane.comfy.client import open_session
from controlplane.errors import PodRefused
from controlplane.ports import PodAddress, Update, Work
from controlplane.providers.comfyui import ComfyUIProvider, Pace
from controlplane.storage.local import LocalStore
from tests.comfy.comfyui_double import ERROR, ComfyUIDouble, replay_graph
from tests.waiting import until

FOR_EVER = 3600.0
PATIENT = Pace(poll=0.1, blind_poll=0.05, absent_seconds=FOR_EVER, unreachable_seconds=FOR_EVER, quiet=0.3)
"""Nothing is ever given up for silence, so that whatever ends an attempt is something that was told."""


@pytest.fixture
async def provider(blobs: LocalStore) -> AsyncIterator[ComfyUIProvider]:
    async with open_session() as session:
        made = ComfyUIProvider(session, blobs, PATIENT)
        yield made
        await made.close()


class Following:
    """Follows one prompt in the background and keeps what it hears."""

    def __init__(self, provider: ComfyUIProvider, work: Work) -> None:
        self.updates: list[Update] = []
        self._provider = provider
        self._work = work
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with aclosing(self._provider.follow(self._work)) as updates:  # type: ignore[type-var]
            async for update in updates:
                self.updates.append(update)

    def count(self, kind: str) -> int:
        return sum(update.kind == kind for update in self.updates)

    async def last(self) -> Update:
        await asyncio.wait_for(self.task, 60)
        return self.updates[-1]


@contextlib.asynccontextmanager
async def following(provider: ComfyUIProvider, work: Work) -> AsyncIterator[Following]:
    followed = Following(provider, work)
    try:
        yield followed
    finally:
        followed.task.cancel()
        await asyncio.gather(followed.task, return_exceptions=True)


def work(double: ComfyUIDouble, transcript: str = "01_success", *, held: bool = False) -> Work:
    graph = replay_graph(transcript, held=held)
    return Work("prompt-1", "client-1", PodAddress("pod_1", double.url, double.token), graph)


def incident(double: ComfyUIDouble) -> None:
    double.incidents["prompt-1"] = {
        "prompt_id": "prompt-1",
        "code": "died",
        "detail": "ComfyUI died with exit code -9.",
        "at": 1.0,
        "log_tail": ["Prompt executed", "Killed"],
    }


async def test_an_absent_prompt_with_an_incident_is_lost_at_once(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    await provider.start(work(double, held=True))
    async with following(provider, work(double, held=True)) as followed:
        await until(lambda: followed.count("running"))
        incident(double)
        await double.restart()
        last = await followed.last()
    assert (last.kind, last.error) == (
        "lost",
        {
            "type": "Restarted",
            "code": "died",
            "message": "ComfyUI died with exit code -9.",
            "log_tail": ("Prompt executed", "Killed"),
        },
    )


async def test_while_comfyui_is_away_nothing_is_decided(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    await provider.start(work(double, held=True))
    async with following(provider, work(double, held=True)) as followed:
        await until(lambda: followed.count("running"))
        double.away = True
        await until(lambda: double.calls.count("GET /troupe/incidents/prompt-1") > 3)
        assert not followed.task.done()
        double.away = False
        double.released.set()
        assert (await followed.last()).kind == "succeeded"


async def test_an_incident_is_heard_before_comfyui_is_back(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    await provider.start(work(double, held=True))
    async with following(provider, work(double, held=True)) as followed:
        await until(lambda: followed.count("running"))
        double.away = True
        incident(double)
        assert (await followed.last()).kind == "lost"


async def test_a_prompt_is_not_taken_by_a_pod_whose_comfyui_is_away(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    double.away = True
    with pytest.raises(PodRefused) as raised:
        await provider.start(work(double))
    assert (raised.value.extra["unreachable"], double.received) == (True, [])


async def test_a_prompt_that_went_down_with_comfyui_counts_as_stopped(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    double.away = True
    before = await provider.cancel(work(double))
    incident(double)
    assert (before, await provider.cancel(work(double))) == (False, True)


async def test_a_failed_node_comes_with_the_newest_lines_of_the_log(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    double.log = [f"line {number}" for number in range(100)]
    await provider.start(work(double, ERROR))
    async with following(provider, work(double, ERROR)) as followed:
        error = (await followed.last()).error or {}
    assert (error["message"], error["log_tail"]) == ("lab failure", tuple(double.log[-40:]))


async def test_without_an_agent_a_failed_node_comes_without_a_log(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    await provider.start(work(double, ERROR))
    async with following(provider, work(double, ERROR)) as followed:
        error = (await followed.last()).error or {}
    assert (error["message"], error["log_tail"]) == ("lab failure", ())


async def test_a_deaf_socket_loses_nothing_but_the_progress(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    double.mute = True
    await provider.start(work(double))
    async with following(provider, work(double)) as followed:
        assert (await followed.last()).kind == "succeeded"
    assert followed.count("progress") == 0


async def alive(provider: ComfyUIProvider, double: ComfyUIDouble, kind: str, **worker: object) -> bool:
    """Whether a running prompt that sends no hints is taken for alive, the node pack having been asked three times."""
    double.worker = {"worker_alive": True, "prompt_id": "prompt-1", "beat_age_seconds": 0.05, **worker}
    held = work(double, held=True)
    held = replace(held, pod=replace(held.pod, kind=kind))
    await provider.start(held)
    async with following(provider, held) as followed:
        await until(lambda: double.calls.count("GET /troupe/state") > 3)
        return followed.count("running") > 1


@pytest.mark.parametrize("kind", ["comfyui", "embedded"])
async def test_a_worker_that_beats_is_alive_however_deaf_we_are(
    provider: ComfyUIProvider, double: ComfyUIDouble, kind: str
) -> None:
    double.mute = True
    assert await alive(provider, double, kind)


async def test_a_worker_without_a_beat_since_we_heard_of_it_last_is_not(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    assert not await alive(provider, double, "embedded", beat_age_seconds=500.0)


async def test_how_long_a_worker_may_be_silent_is_for_its_agent_to_judge(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    assert await alive(provider, double, "comfyui", beat_age_seconds=500.0)


async def test_a_dead_worker_is_not_alive_whatever_it_said_last(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    assert not await alive(provider, double, "comfyui", worker_alive=False)


async def test_a_worker_at_another_prompt_is_no_sign_of_this_one(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    assert not await alive(provider, double, "comfyui", prompt_id="prompt-2")


async def test_a_pod_where_nothing_listens_is_away_for_now(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    await provider.start(work(double, held=True))
    async with following(provider, work(double, held=True)) as followed:
        await until(lambda: followed.count("running"))
        await double.stop()
        await until(lambda: followed.count("away") > 2)
        assert not followed.task.done()
