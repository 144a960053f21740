"""/ws: first messages, who hears what, big frames."""

from __future__ import annotations

import asyncio
import struct

import pytest

from .client import Client
from .recordings import recoloured, recording
from .test_queue import occupied, slow, stopped
from .test_validation import picture


async def test_the_first_message_is_a_status_with_the_client_id(client: Client) -> None:
    async with client.socket("chosen") as socket:
        assert socket.seen[0] == {
            "type": "status",
            "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "chosen"},
        }


async def test_without_a_client_id_the_pod_makes_one(client: Client) -> None:
    async with client.session.ws_connect(f"{client.pod.address}/ws") as connection:
        first = await connection.receive_json()
    assert first["data"]["sid"]


async def test_feature_flags_are_answered_with_the_pods_own(client: Client) -> None:
    async with client.socket(flags=True) as socket:
        assert socket.seen[-1]["data"]["supports_preview_metadata"] is True


@pytest.mark.lab
async def test_an_invalid_graph_causes_no_event(client: Client) -> None:
    async with client.socket() as socket:
        await client.submit({}, client_id=socket.client_id)
        _, answer = await client.submit(picture(40), client_id=socket.client_id)
        events = await socket.end_of(answer["prompt_id"])
    assert [event["type"] for event in events[:3]] == ["status", "status", "execution_start"]


@pytest.mark.lab
async def test_another_client_hears_only_queue_counts(client: Client) -> None:
    async with client.socket() as mine, client.socket() as other:
        _, answer = await client.submit(recoloured(recording("04").graph()), client_id=mine.client_id)
        await mine.end_of(answer["prompt_id"])
        await other.connection.ping()
        heard = []
        while not heard or heard[-1]["data"]["status"]["exec_info"]["queue_remaining"]:
            heard.append(await other.next())
    assert {event["type"] for event in other.seen} == {"status"}


@pytest.mark.lab
async def test_a_prompt_whose_client_never_connected_runs(client: Client) -> None:
    entry = await client.run(recoloured(recording("01").graph()), client_id="nobody")
    assert entry["status"]["status_str"] == "success"


@pytest.mark.lab
async def test_the_newest_socket_of_an_id_hears_the_events(client: Client) -> None:
    async with client.socket("shared"), client.socket("shared") as newer:
        _, answer = await client.submit(recoloured(recording("01").graph()), client_id="shared")
        events = await newer.end_of(answer["prompt_id"])
    assert "execution_success" in [event["type"] for event in events]


@pytest.mark.lab
async def test_a_run_goes_on_without_its_socket(client: Client) -> None:
    async with client.socket() as socket:
        _, answer = await client.submit(slow(3), client_id=socket.client_id)
        await socket.until("progress")
    assert (await client.finished(answer["prompt_id"]))["status"]["status_str"] == "success"


@pytest.mark.lab
async def test_legacy_previews_are_jpeg_frames_of_type_1(client: Client) -> None:
    async with client.socket() as socket:
        await client.submit(recoloured(recording("04").graph()), client_id=socket.client_id)
        frame = (await socket.until("binary"))[-1]["data"]["bytes"]
    assert (struct.unpack(">II", frame[:8]), frame[8:11]) == ((1, 1), b"\xff\xd8\xff")


@pytest.mark.lab
async def test_a_preview_with_metadata_names_prompt_and_node(client: Client) -> None:
    import json

    async with client.socket(flags=True) as socket:
        _, answer = await client.submit(recoloured(recording("05").graph()), client_id=socket.client_id)
        frame = (await socket.until("binary"))[-1]["data"]["bytes"]
    _, length = struct.unpack(">II", frame[:8])
    assert json.loads(frame[8 : 8 + length]) == {
        "node_id": "9",
        "prompt_id": answer["prompt_id"],
        "display_node_id": "9",
        "parent_node_id": None,
        "real_node_id": "9",
        "image_type": "image/jpeg",
    }


@pytest.mark.lab
async def test_text_frames_of_several_megabytes_arrive_whole(client: Client) -> None:
    async with client.socket() as socket:
        graph = {"1": {"class_type": "LabLong", "inputs": {"characters": 6_000_000}}}
        await client.submit(graph, client_id=socket.client_id)
        event = (await socket.until("executed"))[-1]
    assert len(event["data"]["output"]["text"][0]) == 6_000_000


@pytest.mark.lab
async def test_a_finished_prompt_is_not_told_to_a_reconnecting_client(client: Client) -> None:
    async with client.socket("again") as socket:
        _, answer = await client.submit(picture(41), client_id="again")
        await socket.end_of(answer["prompt_id"])
    async with client.socket("again") as socket:
        await asyncio.sleep(0.3)
        await client.submit({"nothing": {}})
        running = await occupied(client, 2)
        event = await socket.next()
        await stopped(client)
    assert (event["type"], bool(running)) == ("status", True)
