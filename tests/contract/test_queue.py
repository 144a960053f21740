"""The queue, its order, deleting, interrupting, history: what a dispatcher leans on."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from .client import Client
from .recordings import recoloured, recording
from .test_validation import picture

SLOW = recording("13").graph()


def slow(steps: int = 10) -> dict[str, Any]:
    graph = recoloured(SLOW)
    graph["9"]["inputs"]["steps"] = steps
    return graph


async def occupied(client: Client, steps: int = 10) -> str:
    """Starts a slow prompt, waits until it runs, and returns its id."""
    _, answer = await client.submit(slow(steps), client_id=f"slow-{uuid4().hex}")
    for _ in range(200):
        _, queue = await client.call("GET", "/queue")
        if queue["queue_running"]:
            break
        await asyncio.sleep(0.02)
    prompt_id: str = answer["prompt_id"]
    return prompt_id


async def stopped(client: Client) -> None:
    await client.call("POST", "/interrupt", json={})
    await client.idle()


@pytest.mark.lab
async def test_queue_items_show_number_id_graph_extra_data_and_outputs(client: Client) -> None:
    running = await occupied(client)
    _, queue = await client.call("GET", "/queue")
    await stopped(client)
    item = queue["queue_running"][0]
    extra = await client.stamped(["client_id", "create_time"])
    assert (item[1], sorted(item[3]), item[4]) == (running, extra, ["3"])


@pytest.mark.lab
async def test_waiting_prompts_run_by_number_then_by_id(client: Client) -> None:
    await occupied(client)
    for number, prompt_id in [(7, "b"), (7, "a"), (-3, "z")]:
        await client.submit(picture(10 + number), number=number, prompt_id=f"order-{prompt_id}")
    _, queue = await client.call("GET", "/queue")
    await stopped(client)
    waiting = sorted(queue["queue_pending"], key=lambda item: (item[0], item[1]))
    assert [item[1] for item in waiting] == ["order-z", "order-a", "order-b"]


@pytest.mark.lab
async def test_front_puts_a_prompt_before_the_others(client: Client) -> None:
    await occupied(client)
    await client.submit(picture(20), prompt_id="normal")
    _, answer = await client.submit(picture(21), prompt_id="front", front=True)
    await stopped(client)
    assert answer["number"] < 0


@pytest.mark.lab
async def test_a_deleted_waiting_prompt_leaves_no_trace(client: Client) -> None:
    await occupied(client)
    await client.submit(picture(22), prompt_id="deleted")
    status, body = await client.call("POST", "/queue", json={"delete": ["deleted"]})
    _, queue = await client.call("GET", "/queue")
    await stopped(client)
    _, history = await client.call("GET", "/history/deleted")
    assert (status, body, queue["queue_pending"], history) == (200, "", [], {})


@pytest.mark.lab
async def test_deleting_the_running_prompt_does_nothing(client: Client) -> None:
    running = await occupied(client)
    await client.call("POST", "/queue", json={"delete": [running]})
    _, queue = await client.call("GET", "/queue")
    await stopped(client)
    assert [item[1] for item in queue["queue_running"]] == [running]


@pytest.mark.lab
async def test_clearing_the_queue_leaves_the_running_prompt(client: Client) -> None:
    running = await occupied(client)
    await client.submit(picture(23))
    await client.call("POST", "/queue", json={"clear": True})
    _, queue = await client.call("GET", "/queue")
    await stopped(client)
    assert ([item[1] for item in queue["queue_running"]], queue["queue_pending"]) == ([running], [])


@pytest.mark.lab
async def test_an_interrupt_for_a_waiting_prompt_hits_nothing(client: Client) -> None:
    running = await occupied(client, steps=3)
    await client.submit(picture(24), prompt_id="waiting")
    await client.call("POST", "/interrupt", json={"prompt_id": "waiting"})
    ended = [await client.finished(running), await client.finished("waiting")]
    assert [entry["status"]["status_str"] for entry in ended] == ["success", "success"]


@pytest.mark.lab
async def test_an_interrupt_without_a_body_stops_what_runs(client: Client) -> None:
    running = await occupied(client)
    status, _ = await client.call("POST", "/interrupt")
    entry = await client.finished(running)
    assert (status, entry["status"]["messages"][-1][0]) == (200, "execution_interrupted")


@pytest.mark.lab
async def test_the_prompt_after_an_interrupted_one_runs(client: Client) -> None:
    await occupied(client)
    await client.submit(picture(25), prompt_id=(after := uuid4().hex))
    await client.call("POST", "/interrupt", json={})
    assert (await client.finished(after))["status"]["status_str"] == "success"


async def test_interrupting_nothing_does_not_stop_the_next_prompt(client: Client) -> None:
    await client.call("POST", "/interrupt", json={})
    assert (await client.run(picture(26)))["status"]["status_str"] == "success"


@pytest.mark.lab
async def test_the_same_id_twice_runs_twice_and_the_second_one_stays(client: Client) -> None:
    same = uuid4().hex
    numbers = [(await client.submit(slow(1), prompt_id=same))[1]["number"] for _ in range(2)]
    await client.drained()
    entry = await client.finished(same)
    assert entry["prompt"][0] == numbers[1]


@pytest.mark.parametrize("path", ["/history/none", "/history/" + "0" * 36])
async def test_an_unknown_id_has_an_empty_history(client: Client, path: str) -> None:
    assert await client.call("GET", path) == (200, {})


async def test_history_is_empty_until_a_prompt_has_finished(client: Client) -> None:
    prompt_id = uuid4().hex
    before = await client.call("GET", f"/history/{prompt_id}")
    entry = await client.run(picture(27), prompt_id=prompt_id)
    assert (before, entry["status"]["completed"]) == ((200, {}), True)


async def test_a_history_entry_can_be_deleted(client: Client) -> None:
    await client.run(picture(28), prompt_id="forgotten")
    status, _ = await client.call("POST", "/history", json={"delete": ["forgotten"]})
    assert (status, await client.call("GET", "/history/forgotten")) == (200, (200, {}))


async def test_max_items_gives_the_newest_entries(client: Client) -> None:
    for index in range(3):
        await client.run(picture(29), prompt_id=f"newest-{index}")
    _, history = await client.call("GET", "/history?max_items=2")
    assert list(history) == ["newest-1", "newest-2"]


async def test_the_whole_history_can_be_cleared(client: Client) -> None:
    await client.run(picture(30))
    await client.call("POST", "/history", json={"clear": True})
    assert await client.call("GET", "/history") == (200, {})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/queue", {"delete": ["unknown"]}),
        ("/queue", {}),
        ("/history", {"delete": ["unknown"]}),
        ("/interrupt", {"prompt_id": "unknown"}),
    ],
)
async def test_commands_for_unknown_ids_are_quietly_fine(client: Client, path: str, body: dict[str, Any]) -> None:
    assert await client.call("POST", path, json=body) == (200, "")


@pytest.mark.lab
async def test_freeing_memory_forgets_what_was_cached(client: Client) -> None:
    graph = recoloured(picture(31))
    await client.run(graph, client_id="me")
    await client.call("POST", "/free", json={"free_memory": True})
    await asyncio.sleep(1.2)  # the worker looks for the flag between prompts
    entry = await client.run(graph, client_id="me")
    assert dict(map(tuple, entry["status"]["messages"]))["execution_cached"]["nodes"] == []
