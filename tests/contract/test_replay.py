"""Posting the recorded graphs again must give the recorded events, in their order, and the recorded history."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from .client import Client, Event
from .recordings import Recording, recoloured, recording, shape, shapes, skeleton

pytestmark = pytest.mark.lab


async def replay(client: Client, graph: dict[str, Any], flags: bool = False, **body: Any) -> list[Event]:
    """Events of one submission, with every `status` from the submission on."""
    async with client.socket(flags=flags) as socket:
        status, answer = await client.submit(graph, client_id=socket.client_id, **body)
        assert status == 200, answer
        return await socket.end_of(answer["prompt_id"])


async def warmed(client: Client, recorded: Recording) -> dict[str, Any]:
    """The recorded graph with its empty picture already in the cache, as when it was recorded."""
    graph = recoloured(recorded.graph())
    preview = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    await client.run({"1": graph["1"], "p": preview}, client_id="warming")
    return graph


@pytest.mark.parametrize("number", ["01", "25"])
async def test_a_cold_graph_gives_the_recorded_events(client: Client, number: str) -> None:
    recorded = recording(number)
    events = await replay(client, recoloured(recorded.graph()))
    assert _without_executed_order(shapes(events)) == _without_executed_order(shapes(recorded.events()))


@pytest.mark.parametrize("number", ["04", "06", "09"])
async def test_a_half_cached_graph_gives_the_recorded_events(client: Client, number: str) -> None:
    recorded = recording(number)
    extra = recorded.submissions()[0].get("extra_data", {})
    events = await replay(client, await warmed(client, recorded), extra_data=extra)
    assert shapes(events) == shapes(recorded.events())


async def test_previews_carry_metadata_where_the_client_asked_for_it(client: Client) -> None:
    recorded = recording("05")
    events = await replay(client, await warmed(client, recorded), flags=True)
    assert shapes(events) == shapes(recorded.events())


async def test_a_fully_cached_graph_reports_its_output_again(client: Client) -> None:
    graph = recoloured(recording("02").graph())
    await replay(client, graph)
    assert shapes(await replay(client, graph)) == shapes(recording("02").events())


@pytest.mark.parametrize(("number", "field"), [("01", "outputs"), ("01", "meta"), ("06", "outputs"), ("06", "meta")])
async def test_history_holds_the_recorded_fields(client: Client, number: str, field: str) -> None:
    recorded = recording(number)
    entry = await client.run(recoloured(recorded.graph()), client_id="history")
    assert _keys(entry[field]) == _keys(recorded.history_entry()[field])


@pytest.mark.parametrize("number", ["01", "06"])
async def test_history_keeps_the_recorded_messages(client: Client, number: str) -> None:
    recorded = recording(number)
    entry = await client.run(recoloured(recorded.graph()), client_id="history")
    messages, expected = entry["status"]["messages"], recorded.history_entry()["status"]["messages"]
    assert [(kind, sorted(data)) for kind, data in messages] == [(kind, sorted(data)) for kind, data in expected]


async def test_history_shows_number_id_graph_extra_data_and_outputs(client: Client) -> None:
    recorded = recording("01")
    body = recorded.submissions()[0]
    entry = await client.run(body["prompt"], client_id="me", extra_data=body["extra_data"])
    number, _, graph, extra, outputs = entry["prompt"]
    assert (isinstance(number, int | float), graph, sorted(extra), outputs) == (
        True,
        body["prompt"],
        await client.stamped(recorded.history_entry()["prompt"][3]),
        ["3"],
    )


@pytest.mark.parametrize("number", ["10", "11", "12"])
async def test_an_interrupt_ends_with_the_recorded_events(client: Client, number: str) -> None:
    recorded = recording(number)
    graph = recoloured(recorded.graph())
    graph["9"]["inputs"].update(steps=4, step_seconds=0.15)
    if number != "10":
        graph = await _warm_copy(client, graph)
    async with client.socket() as socket:
        _, answer = await client.submit(graph, client_id=socket.client_id)
        events = await socket.until("executing", node="9")
        await asyncio.sleep(0.2)
        await client.call("POST", "/interrupt", json={"prompt_id": answer["prompt_id"]})
        events += await socket.end_of(answer["prompt_id"])
    assert skeleton(events) == skeleton(recorded.events())


async def _warm_copy(client: Client, graph: dict[str, Any]) -> dict[str, Any]:
    preview = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    await client.run({"1": graph["1"], "p": preview}, client_id="warming")
    return graph


async def test_an_interrupted_prompt_is_an_error_that_ends_with_execution_interrupted(client: Client) -> None:
    graph = recoloured(recording("10").graph())
    async with client.socket() as socket:
        _, answer = await client.submit(graph, client_id=socket.client_id)
        await socket.until("progress")
        await client.call("POST", "/interrupt", json={})
        entry = await client.finished(answer["prompt_id"])
    status = entry["status"]
    assert (status["status_str"], status["completed"], status["messages"][-1][0]) == (
        "error",
        False,
        "execution_interrupted",
    )


async def test_what_was_finished_before_an_error_stays_in_the_outputs(client: Client) -> None:
    entry = await client.run(recoloured(recording("25").graph()), client_id="me")
    assert (sorted(entry["outputs"]), entry["status"]["status_str"]) == (["3"], "error")


async def test_a_reconnecting_client_is_told_which_node_runs(client: Client) -> None:
    graph = recoloured(recording("15").graph())
    graph["9"]["inputs"].update(steps=8, step_seconds=0.15)
    async with client.socket(flags=True) as first:
        _, answer = await client.submit(graph, client_id=first.client_id)
        await first.until("progress")
    await asyncio.sleep(0.3)
    async with client.socket(first.client_id) as second:
        events = await second.end_of(answer["prompt_id"])
    expected = [event for event in recording("15").events() if event["type"] == "executing"]
    told = [event for event in events if event["type"] == "executing"]
    # the recorded list starts with what the first socket heard: nodes 1 or 9, then the reconnect's short form
    short = next(event for event in expected if sorted(event["data"]) == ["node"])
    assert [shape(told[0]), shape(told[-1])] == [shape(short), shape(expected[-1])]


async def test_feature_flags_do_not_survive_a_reconnect(client: Client) -> None:
    graph = recoloured(recording("15").graph())
    graph["9"]["inputs"].update(steps=8, step_seconds=0.15)
    async with client.socket(flags=True) as first:
        _, answer = await client.submit(graph, client_id=first.client_id)
        await first.until("binary")
    await asyncio.sleep(0.3)
    async with client.socket(first.client_id) as second:
        events = await second.end_of(answer["prompt_id"])
    kinds = {event["data"]["event"] for event in [*first.seen, *events] if event["type"] == "binary"}
    later = {event["data"]["event"] for event in events if event["type"] == "binary"}
    assert (kinds, later) == ({1, 4}, {1})


def _without_executed_order(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """ComfyUI lists `executed` nodes from a set, in any order."""
    return [item[:2] if item[0] == "execution_error" else item for item in found]


def _keys(value: Any) -> Any:
    """The structure of a value: keys and types, without file numbers."""
    if isinstance(value, dict):
        return {key: _keys(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_keys(part) for part in value]
    return type(value).__name__
