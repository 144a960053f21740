"""What ends or deafens a ComfyUI process must not do so here; and the token guards every route."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp
import pytest

from pod_images.embedded.pod import Pod
from pod_images.embedded.prompt_queue import MAX_HISTORY, PromptQueue, QueuedPrompt
from pod_images.embedded.server import ROUTES

from .conftest import TOKEN, Runner
from .graphs import node, painting

EMPTY = node("EmptyImage", width=8, height=8, batch_size=1, color=0)


def failing(kind: str) -> dict[str, Any]:
    return {"1": EMPTY, "9": node("LabFail", image=["1", 0], kind=kind), "3": node("PreviewImage", images=["9", 0])}


@pytest.mark.parametrize("kind", ["sysexit", "keyboard", "value"])
def test_the_worker_outlives_what_a_node_raises(pod: Pod, run: Runner, kind: str) -> None:
    ended = run(failing(kind))["status"]["messages"][-1]
    assert (ended[0], pod.worker.alive()) == ("execution_error", True)


def test_a_system_exit_is_reported_by_its_name(run: Runner) -> None:
    assert run(failing("sysexit"))["status"]["messages"][-1][1]["exception_type"] == "SystemExit"


def test_an_unreachable_node_without_inputs_is_harmless(run: Runner) -> None:
    graph = {"1": EMPTY, "2": node("PreviewImage", images=["1", 0]), "77": {"class_type": "ImageScale"}}
    assert run(graph)["status"]["status_str"] == "success"


def test_a_tensor_as_ui_fails_the_node_and_nothing_else(pod: Pod, run: Runner) -> None:
    entry = run({"1": EMPTY, "9": node("LabBadUI", image=["1", 0], kind="tensor")})
    assert (entry["status"]["messages"][-1][1]["exception_type"], pod.worker.alive()) == ("TypeError", True)


def test_every_history_entry_is_json(pod: Pod, run: Runner) -> None:
    run({"1": EMPTY, "9": node("LabBadUI", image=["1", 0], kind="tensor")})
    assert json.loads(json.dumps(pod.queue.history(), allow_nan=False))


def test_a_deep_graph_does_not_meet_the_recursion_limit(run: Runner) -> None:
    graph = {"0": EMPTY}
    for index in range(1, 1500):
        graph[str(index)] = node("LabSleep", image=[str(index - 1), 0], steps=0, step_seconds=0, mode="deaf", salt=0)
    graph["end"] = node("PreviewImage", images=["1499", 0])
    assert run(graph)["status"]["status_str"] == "success"


def test_history_forgets_the_oldest_entry_at_its_limit() -> None:
    queue = PromptQueue()
    item = QueuedPrompt(0, "x", {}, {}, [])
    for index in range(MAX_HISTORY + 1):
        queue.finish(QueuedPrompt(0, str(index), {}, {}, []), {})
    queue.finish(item, {})
    assert (len(queue.history()), queue.history("1"), "2" in queue.history("2")) == (MAX_HISTORY, {}, True)


@pytest.mark.parametrize("header", [None, "Bearer wrong", TOKEN, "Bearer ", f"bearer {TOKEN}"])
async def test_a_wrong_token_is_401(address: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    async with aiohttp.ClientSession() as session, session.get(f"{address}/queue", headers=headers) as response:
        body = json.loads(await response.read())
        assert (response.status, response.content_type, body["code"]) == (
            401,
            "application/problem+json",
            "bad_pod_token",
        )


async def test_no_route_answers_without_the_token(address: str) -> None:
    async with aiohttp.ClientSession() as session:
        found = set()
        for method, path, _ in (*ROUTES, ("GET", "/ws", None), ("GET", "/no-such-route", None)):
            for prefix in ("", "/api"):
                async with session.request(method, address + prefix + path) as response:
                    found.add(response.status)
    assert found == {401}


async def test_a_browser_on_another_site_is_refused(address: str, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{address}/queue", headers={"Origin": "https://evil.example"}) as response:
        assert response.status == 403


async def test_a_draining_pod_takes_no_prompt(pod: Pod, address: str, session: aiohttp.ClientSession) -> None:
    pod.draining.set()
    try:
        async with session.post(f"{address}/prompt", json={"prompt": painting()}) as response:
            assert (response.status, json.loads(await response.read())["code"]) == (503, "draining")
    finally:
        pod.draining.clear()


async def test_the_newer_socket_still_hears_after_the_older_one_ends(
    address: str, session: aiohttp.ClientSession
) -> None:
    older = await session.ws_connect(f"{address}/ws?clientId=me")
    await older.receive_json()
    async with session.ws_connect(f"{address}/ws?clientId=me") as newer:
        await newer.receive_json()
        await older.close()
        await asyncio.sleep(0.1)
        await post(session, address, {"1": EMPTY, "2": node("PreviewImage", images=["1", 0])}, "me")
        kinds = [(await newer.receive_json(timeout=20))["type"] for _ in range(4)]
    assert "execution_start" in kinds


async def test_a_reader_that_stalls_delays_nobody(address: str, session: aiohttp.ClientSession) -> None:
    stalled = await session.ws_connect(f"{address}/ws?clientId=stalled", max_msg_size=0)
    loud = {"1": node("LabLong", characters=4_000_000)}
    for _ in range(3):
        await post(session, address, loud, "stalled")
    async with session.ws_connect(f"{address}/ws?clientId=lively") as lively:
        prompt_id = await post(session, address, {"1": EMPTY, "2": node("PreviewImage", images=["1", 0])}, "lively")
        async with asyncio.timeout(20):
            while (message := await lively.receive_json())["data"].get("prompt_id") != prompt_id:
                pass
    await stalled.close()
    assert message["type"] == "execution_start"


async def test_a_prompt_without_a_client_is_told_to_nobody(address: str, session: aiohttp.ClientSession) -> None:
    async with session.ws_connect(f"{address}/ws?clientId=bystander") as bystander:
        await bystander.receive_json()
        await post(session, address, failing("value"), None)
        kinds = {(await bystander.receive_json(timeout=20))["type"] for _ in range(3)}
    assert kinds == {"status"}


async def test_an_interrupt_reaches_the_sampler_within_a_step(
    pod: Pod, address: str, session: aiohttp.ClientSession
) -> None:
    async with session.ws_connect(f"{address}/ws?clientId=painter") as socket:
        prompt_id = await post(session, address, painting(seed=99, steps=2000), "painter")
        async with asyncio.timeout(30):
            while (await next_json(socket))["type"] != "progress":
                pass
        asked = time.monotonic()
        async with session.post(f"{address}/interrupt", json={"prompt_id": prompt_id}) as response:
            assert response.status == 200
        while not pod.queue.history(prompt_id):  # noqa: ASYNC110 - the worker is a thread, not a task
            await asyncio.sleep(0.02)
    assert time.monotonic() - asked < 2


async def next_json(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    """The next JSON event; preview frames are passed over."""
    while True:
        message = await socket.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            event: dict[str, Any] = json.loads(message.data)
            return event


async def post(session: aiohttp.ClientSession, address: str, graph: dict[str, Any], client_id: str | None) -> str:
    body: dict[str, Any] = {"prompt": graph}
    if client_id is not None:
        body["client_id"] = client_id
    async with session.post(f"{address}/prompt", json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
    prompt_id: str = answer["prompt_id"]
    return prompt_id
