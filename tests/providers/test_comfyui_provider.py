"""The ComfyUI provider: whatever the websocket does, history and queue decide how an attempt ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from controlplane.comfy.client import open_session
from controlplane.errors import PodRefused, PodUnreachable
from controlplane.ports import PodAddress, Update, Work
from controlplane.providers.comfyui import ComfyUIProvider, Pace
from controlplane.storage.local import LocalStore
from tests.comfy.comfyui_double import (
    ERROR,
    SUCCESS,
    ComfyUIDouble,
    recorded_history,
    replay_graph,
)
from tests.waiting import until

PACE = Pace(poll=0.1, blind_poll=0.05, absent_looks=3, absent_seconds=0.2, unreachable_seconds=0.6)


@pytest.fixture
async def provider(blobs: LocalStore) -> AsyncIterator[ComfyUIProvider]:
    async with open_session() as session:
        made = ComfyUIProvider(session, blobs, PACE)
        yield made
        await made.close()


def work(double: ComfyUIDouble, prompt_id: str = "prompt-1", **graph: Any) -> Work:
    pod = PodAddress("pod_1", double.url, double.token)
    return Work(prompt_id, f"client of {prompt_id}", pod, replay_graph(**graph))


async def followed(provider: ComfyUIProvider, one: Work) -> list[Update]:
    async with aclosing(provider.follow(one)) as updates:  # type: ignore[type-var]
        return [update async for update in updates]


async def test_a_success_ends_with_the_outputs_of_the_history(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    await provider.start(work(double))
    last = (await followed(provider, work(double)))[-1]
    assert (last.kind, last.outputs) == ("succeeded", recorded_history(SUCCESS)["outputs"])


async def test_a_failed_node_ends_with_its_exception(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    await provider.start(work(double, transcript=ERROR))
    last = (await followed(provider, work(double, transcript=ERROR)))[-1]
    assert (last.kind, (last.error or {})["message"]) == ("failed", "lab failure")


async def test_progress_never_goes_back_and_stays_within_one(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    held = work(double, held=True)
    task = asyncio.create_task(followed(provider, held))
    await until(lambda: double.sockets)
    await provider.start(held)
    double.released.set()
    fractions = [update.fraction for update in await task if update.fraction is not None]
    assert fractions
    assert fractions == sorted(fractions)
    assert fractions[-1] <= 1.0


async def test_an_attempt_is_followed_to_its_end_without_any_websocket(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    held = work(double, held=True)
    await provider.start(held)
    task = asyncio.create_task(followed(provider, held))
    await until(lambda: double.sockets)
    next(iter(double.sockets.values()))._req.transport.abort()  # type: ignore[union-attr]
    await asyncio.sleep(0.2)
    double.released.set()
    assert (await task)[-1].kind == "succeeded"


async def test_an_interrupted_attempt_is_told_apart_from_a_failed_one(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    held = work(double, held=True)
    await provider.start(held)
    task = asyncio.create_task(followed(provider, held))
    await double.started.wait()
    await provider.cancel(held)
    assert (await task)[-1].kind == "interrupted"


async def test_a_restarted_pod_has_lost_the_attempt(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    held = work(double, held=True)
    await provider.start(held)
    task = asyncio.create_task(followed(provider, held))
    await double.started.wait()
    await double.restart()
    last = (await task)[-1]
    assert (last.kind, (last.error or {})["type"]) == ("lost", "Absent")


async def test_a_pod_that_stays_away_has_lost_the_attempt(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    held = work(double, held=True)
    await provider.start(held)
    task = asyncio.create_task(followed(provider, held))
    await double.started.wait()
    await double.stop()
    last = (await task)[-1]
    assert (last.kind, (last.error or {})["type"]) == ("lost", "Unreachable")


async def test_an_answer_that_broke_off_after_queueing_counts_as_submitted(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    double.break_after_queueing = True
    await provider.start(work(double, held=True))
    assert len(double.received) == 1


async def test_a_500_without_a_trace_leaves_the_submit_in_doubt(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    double.answer_submit_with = [(500, "500 Internal Server Error")]
    with pytest.raises(PodUnreachable):
        await provider.start(work(double))


async def test_a_pod_that_is_down_never_ran_the_attempt(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    await double.stop()
    with pytest.raises(PodRefused) as refused:
        await provider.start(work(double))
    assert refused.value.extra["unreachable"] is True


async def test_input_files_are_on_the_pod_before_the_prompt(
    provider: ComfyUIProvider, double: ComfyUIDouble, blobs: LocalStore
) -> None:
    await blobs.put("default/_/still.png", b"picture", "image/png")
    bare = work(double)
    await provider.start(
        Work(bare.prompt_id, bare.client_id, bare.pod, bare.graph, (("in.png", "default/_/still.png"),))
    )
    assert double.uploads == {"in.png": b"picture"}


async def test_an_input_file_that_was_deleted_meanwhile_is_told_as_a_refusal_that_no_other_pod_would_mend(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    bare = work(double)
    with pytest.raises(PodRefused) as refused:
        await provider.start(
            Work(bare.prompt_id, bare.client_id, bare.pod, bare.graph, (("in.png", "default/_/no.png"),))
        )
    assert ("in the store" in refused.value.detail, refused.value.extra.get("pod_specific")) == (True, None)


async def test_forgetting_removes_the_history_entry(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    await provider.start(work(double))
    await followed(provider, work(double))
    await provider.forget(work(double))
    await until(lambda: double.history == {})


async def test_cancelling_what_the_pod_does_not_have_is_confirmed(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    assert await provider.cancel(work(double)) is True


async def test_a_pod_answers_a_probe(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    assert await provider.probe(work(double).pod) is True


async def test_a_pod_that_is_down_does_not_answer_a_probe(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    await double.stop()
    assert await provider.probe(work(double).pod) is False


async def test_a_token_that_is_refused_for_a_moment_loses_nothing(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    held = work(double, held=True)
    await provider.start(held)
    task = asyncio.create_task(followed(provider, held))
    await double.started.wait()
    double.token = "for a moment"
    await asyncio.sleep(0.2)
    double.token = held.pod.token
    double.released.set()
    assert (await task)[-1].kind == "succeeded"
