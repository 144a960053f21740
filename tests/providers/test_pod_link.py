"""The link to a pod: one websocket and one poller for all prompts of a process, whatever becomes of either."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from controlplane.comfy.client import open_session
from controlplane.ports import PodAddress, Update, Work
from controlplane.providers import pod_link
from controlplane.providers.comfyui import ComfyUIProvider, Pace
from controlplane.storage.local import LocalStore
from tests.comfy.comfyui_double import ComfyUIDouble, replay_graph
from tests.waiting import until

PACE = Pace(poll=0.2, blind_poll=0.1, absent_looks=3, absent_seconds=0.2, unreachable_seconds=0.6)
NEVER = 3600.0
BY_HINTS_ONLY = Pace(poll=NEVER, blind_poll=NEVER)


@contextlib.asynccontextmanager
async def provider_with(pace: Pace, blobs: LocalStore) -> AsyncIterator[ComfyUIProvider]:
    async with open_session() as session:
        made = ComfyUIProvider(session, blobs, pace)
        try:
            yield made
        finally:
            await made.close()


@pytest.fixture
async def provider(blobs: LocalStore) -> AsyncIterator[ComfyUIProvider]:
    async with provider_with(PACE, blobs) as made:
        yield made


@pytest.fixture
async def listener(blobs: LocalStore) -> AsyncIterator[ComfyUIProvider]:
    """A provider that learns nothing by polling."""
    async with provider_with(BY_HINTS_ONLY, blobs) as made:
        yield made


def address(double: ComfyUIDouble) -> PodAddress:
    return PodAddress("pod_1", double.url, double.token)


def work(provider: ComfyUIProvider, double: ComfyUIDouble, prompt_id: str = "prompt-1", *, held: bool = False) -> Work:
    pod = address(double)
    return Work(prompt_id, provider.client_id(pod), pod, replay_graph(held=held))


async def followed(provider: ComfyUIProvider, one: Work) -> list[Update]:
    async with aclosing(provider.follow(one)) as updates:  # type: ignore[type-var]
        return [update async for update in updates]


async def test_all_prompts_of_a_process_share_one_websocket(listener: ComfyUIProvider, double: ComfyUIDouble) -> None:
    works = [work(listener, double, f"prompt-{number}") for number in range(3)]
    for one in works:
        await listener.start(one)
    ends = await asyncio.gather(*(followed(listener, one) for one in works))
    assert ([updates[-1].kind for updates in ends], double.calls.count("GET /ws")) == (["succeeded"] * 3, 1)


async def test_of_two_prompts_each_gets_only_its_own_updates(listener: ComfyUIProvider, double: ComfyUIDouble) -> None:
    first, second = work(listener, double, "prompt-1", held=True), work(listener, double, "prompt-2", held=True)
    await listener.start(first)
    await listener.start(second)
    heard: list[Update] = []

    async def listen() -> None:
        async with aclosing(listener.follow(second)) as updates:  # type: ignore[type-var]
            async for update in updates:
                if update.kind != "queued":
                    heard.append(update)

    task = asyncio.create_task(listen())
    one = asyncio.create_task(followed(listener, first))
    await double.started.wait()
    await asyncio.sleep(0.2)
    before = list(heard)
    double.released.set()
    await asyncio.gather(one, task)
    assert (before, heard[-1].kind) == ([], "succeeded")


async def test_prompts_reach_a_pod_in_the_order_in_which_they_are_started(
    listener: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    double.slow_to_take["prompt-0"] = 0.2
    works = [work(listener, double, f"prompt-{number}") for number in range(3)]
    await asyncio.gather(*(listener.start(one) for one in works))
    assert [body["prompt_id"] for body in double.received] == ["prompt-0", "prompt-1", "prompt-2"]


async def test_hints_that_come_before_the_answer_to_the_prompt_are_not_lost(
    listener: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    one = work(listener, double)
    await listener.start(one)
    await until(lambda: double.history)
    await asyncio.sleep(0.1)
    assert (await asyncio.wait_for(followed(listener, one), 20))[-1].kind == "succeeded"


async def test_after_a_broken_websocket_new_prompts_go_out_under_another_client_id(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    one = work(provider, double, held=True)
    await provider.start(one)
    await until(lambda: double.sockets)
    double.sockets[one.client_id]._req.transport.abort()  # type: ignore[union-attr]
    await until(lambda: provider.client_id(one.pod) != one.client_id)
    double.released.set()
    assert (await followed(provider, one))[-1].kind == "succeeded"


async def test_a_client_id_whose_websocket_broke_is_not_listened_under_again(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    one = work(provider, double, held=True)
    await provider.start(one)
    await until(lambda: double.sockets)
    double.sockets.pop(one.client_id)._req.transport.abort()  # type: ignore[union-attr]
    await until(lambda: provider.client_id(one.pod) != one.client_id)
    double.released.set()
    await followed(provider, one)
    await provider.start(work(provider, double, "prompt-2"))
    assert list(double.sockets) == [provider.client_id(one.pod)]


async def test_a_prompt_of_another_process_is_heard_of_under_its_client_id(
    listener: ComfyUIProvider, double: ComfyUIDouble, blobs: LocalStore
) -> None:
    async with provider_with(BY_HINTS_ONLY, blobs) as other:
        one = work(other, double, held=True)
        await other.start(one)
        await double.started.wait()
        older = double.sockets[one.client_id]
    task = asyncio.create_task(followed(listener, one))
    await until(lambda: double.sockets[one.client_id] is not older)
    double.released.set()
    assert (await asyncio.wait_for(task, 20))[-1].kind == "succeeded"


async def test_what_was_listened_to_for_a_prompt_of_another_process_is_closed_behind_it(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    one = Work("prompt-1", "of another process", address(double), replay_graph())
    await provider.start(one)
    await followed(provider, one)
    await until(lambda: double.sockets["of another process"].closed)


async def test_a_pod_that_tells_us_nothing_is_listened_to_anew(
    provider: ComfyUIProvider, double: ComfyUIDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_link, "SETTLE_SECONDS", 0.05)
    first = work(provider, double)
    await provider.start(first)
    await followed(provider, first)
    double.mute = True
    held = work(provider, double, "prompt-2", held=True)
    await provider.start(held)
    task = asyncio.create_task(followed(provider, held))
    await until(lambda: provider.client_id(held.pod) != held.client_id)
    double.released.set()
    assert (await task)[-1].kind == "succeeded"


async def test_one_look_at_the_queue_serves_all_prompts(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    double.mute = True
    works = [work(provider, double, f"prompt-{number}", held=True) for number in range(5)]
    for one in works:
        await provider.start(one)
    tasks = [asyncio.create_task(followed(provider, one)) for one in works]
    before = double.calls.count("GET /queue")
    await until(lambda: double.calls.count("GET /queue") >= before + 5)
    double.released.set()
    queued = [sum(update.kind == "queued" for update in updates) for updates in await asyncio.gather(*tasks)]
    assert max(queued) * 5 > double.calls.count("GET /queue")


async def test_a_sound_websocket_saves_looks_at_the_queue(blobs: LocalStore, double: ComfyUIDouble) -> None:
    async with provider_with(Pace(poll=NEVER, blind_poll=0.05), blobs) as provider:
        one = work(provider, double, held=True)
        await provider.start(one)
        task = asyncio.create_task(followed(provider, one))
        await double.started.wait()
        await asyncio.sleep(0.05)
        looks = double.calls.count("GET /queue")
        await asyncio.sleep(0.5)
        later = double.calls.count("GET /queue")
        double.released.set()
        await task
    assert later <= looks + 1


async def test_what_is_to_be_forgotten_goes_out_together(
    provider: ComfyUIProvider, double: ComfyUIDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_link, "FORGET_SECONDS", 0.3)
    works = [work(provider, double, f"prompt-{number}") for number in range(3)]
    for one in works:
        await provider.start(one)
        await followed(provider, one)
        await provider.forget(one)
    await until(lambda: len(double.forgotten) == 3)
    assert (double.calls.count("POST /history"), double.history) == (1, {})


async def test_what_is_to_be_forgotten_goes_out_before_the_process_ends(
    blobs: LocalStore, double: ComfyUIDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_link, "FORGET_SECONDS", NEVER)
    async with provider_with(PACE, blobs) as provider:
        one = work(provider, double)
        await provider.start(one)
        await followed(provider, one)
        await provider.forget(one)
    assert double.forgotten == ["prompt-1"]


async def test_a_link_that_nobody_uses_is_closed(
    provider: ComfyUIProvider, double: ComfyUIDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_link, "IDLE_SECONDS", 0.2)
    one = work(provider, double)
    await provider.start(one)
    await followed(provider, one)
    await until(lambda: double.sockets[one.client_id].closed)
    assert double.sockets[one.client_id].close_code == 1000


async def test_a_prompt_is_followed_through_a_pods_new_token_without_a_second_listener(
    blobs: LocalStore, double: ComfyUIDouble
) -> None:
    async with provider_with(BY_HINTS_ONLY, blobs) as provider:
        one = work(provider, double, held=True)
        await provider.start(one)
        await double.started.wait()
        older = double.sockets[one.client_id]
        double.token = "another token"
        moved = Work(one.prompt_id, one.client_id, address(double), one.graph)
        task = asyncio.create_task(followed(provider, moved))
        await until(lambda: double.sockets[one.client_id] is not older)
        assert older.closed
        double.released.set()
        assert (await asyncio.wait_for(task, 20))[-1].kind == "succeeded"


async def test_a_waiting_prompt_is_withdrawn(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    await provider.start(work(provider, double, "running", held=True))
    await double.started.wait()
    waiting = work(provider, double, "waiting")
    await provider.start(waiting)
    assert await provider.withdraw(waiting) is True
    assert double.pending == []


@pytest.mark.parametrize("held", [True, False], ids=["running", "finished"])
async def test_what_has_begun_is_not_withdrawn(provider: ComfyUIProvider, double: ComfyUIDouble, held: bool) -> None:
    one = work(provider, double, held=held)
    await provider.start(one)
    await double.started.wait()
    await until(lambda: held or double.history)
    assert await provider.withdraw(one) is False
    assert not double.interrupted.is_set()


async def test_whether_a_silent_pod_has_begun_is_not_known(provider: ComfyUIProvider, double: ComfyUIDouble) -> None:
    one = work(provider, double, held=True)
    await provider.start(one)
    double.away = True
    assert await provider.withdraw(one) is False


async def test_a_prompt_is_followed_to_its_end_though_the_pod_is_taken_to_be_elsewhere_meanwhile(
    provider: ComfyUIProvider, double: ComfyUIDouble
) -> None:
    one = work(provider, double, held=True)
    await provider.start(one)
    task = asyncio.create_task(followed(provider, one))
    await double.started.wait()
    provider.client_id(PodAddress("pod_1", "http://127.0.0.1:9", "an older token"))
    await asyncio.sleep(0)
    double.released.set()
    assert (await asyncio.wait_for(task, 20))[-1].kind == "succeeded"
