"""The websocket: hints come in, and a lost socket never deafens a later one."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from controlplane.comfy import socket as socket_module
from controlplane.comfy.client import ComfyClient
from controlplane.comfy.messages import Message, Started
from controlplane.comfy.socket import REPLACED, PodSocket
from tests.comfy.comfyui_double import ComfyUIDouble, replay_graph
from tests.waiting import until


async def _first(socket: PodSocket, kind: type[Message], seconds: float = 5.0) -> Message | None:  # type: ignore[valid-type]
    while (message := await socket.next(seconds)) is not None:
        if isinstance(message, kind):
            return message
    return None


async def test_the_first_frame_offers_our_feature_flags(double: ComfyUIDouble, session: aiohttp.ClientSession) -> None:
    async with PodSocket(session, double.url, double.token, "client-1") as socket:
        await asyncio.wait_for(socket.opened.wait(), 60)
        await until(lambda: double.first_frames)
    assert double.first_frames == [{"type": "feature_flags", "data": {"supports_preview_metadata": True}}]


async def test_the_messages_of_our_prompt_arrive(
    double: ComfyUIDouble, session: aiohttp.ClientSession, client: ComfyClient
) -> None:
    async with PodSocket(session, double.url, double.token, "client-1") as socket:
        await asyncio.wait_for(socket.opened.wait(), 60)
        await client.submit(replay_graph(), "prompt-1", "client-1")
        assert await _first(socket, Started) == Started("prompt-1")


async def test_a_socket_closed_in_order_is_opened_again(
    double: ComfyUIDouble, session: aiohttp.ClientSession, client: ComfyClient
) -> None:
    async with PodSocket(session, double.url, double.token, "client-1") as socket:
        await asyncio.wait_for(socket.opened.wait(), 60)
        first = double.sockets["client-1"]
        await double.close_sockets()
        await until(lambda: double.sockets["client-1"] is not first)
        await client.submit(replay_graph(), "prompt-1", "client-1")
        assert await _first(socket, Started) == Started("prompt-1")


async def test_a_socket_that_broke_is_not_opened_again_under_the_same_id(
    double: ComfyUIDouble, session: aiohttp.ClientSession
) -> None:
    async with PodSocket(session, double.url, double.token, "client-1") as socket:
        await asyncio.wait_for(socket.opened.wait(), 60)
        await double.restart()
        await until(lambda: socket.gone)
        assert "client-1" not in double.sockets


async def test_a_socket_that_an_agent_closed_for_a_newer_one_is_not_opened_again(
    double: ComfyUIDouble, session: aiohttp.ClientSession
) -> None:
    async with PodSocket(session, double.url, double.token, "client-1") as socket:
        await asyncio.wait_for(socket.opened.wait(), 60)
        await double.close_sockets(code=REPLACED)
        await until(lambda: socket.gone)


async def test_a_pod_that_is_not_up_yet_is_tried_again(double: ComfyUIDouble, session: aiohttp.ClientSession) -> None:
    await double.stop()
    async with PodSocket(session, double.url, double.token, "client-1") as socket:
        await asyncio.sleep(socket_module.FIRST_BACKOFF_SECONDS / 2)
        await double.start(double.port)
        await asyncio.wait_for(socket.opened.wait(), 60)
    assert "client-1" in double.sockets


async def test_a_reader_who_does_not_read_keeps_only_the_newest_messages(
    double: ComfyUIDouble, session: aiohttp.ClientSession
) -> None:
    async with PodSocket(session, double.url, double.token, "client-1") as socket:
        await asyncio.wait_for(socket.opened.wait(), 60)
        sent = 2 * socket_module.KEPT_MESSAGES
        for number in range(sent):
            message = {"type": "execution_start", "data": {"prompt_id": str(number)}}
            await double.sockets["client-1"].send_json(message)
        await until(lambda: socket.newest == Started(str(sent - 1)))
        assert await socket.next(1.0) == Started(str(sent - socket_module.KEPT_MESSAGES))


async def test_a_cancel_that_meets_a_message_is_not_lost(double: ComfyUIDouble, session: aiohttp.ClientSession) -> None:
    async with PodSocket(session, double.url, double.token, "client-1") as socket:
        await asyncio.wait_for(socket.opened.wait(), 60)
        reader = asyncio.create_task(socket.next(60.0))
        await asyncio.sleep(0.05)
        socket._keep(Started("prompt-1"))
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
