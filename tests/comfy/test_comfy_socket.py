"""The websocket: hints come in, and a lost socket never deafens a later one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest

from controlplane import failpoints
from controlplane.comfy import socket as socket_module
from controlplane.comfy.client import ComfyClient
from controlplane.comfy.messages import Message, Started
from controlplane.comfy.socket import REPLACED, PodSocket
from tests.comfy.comfyui_double import ComfyUIDouble, replay_graph
from tests.waiting import until


class Listening:
    """A socket of client-1, what it told and how often it was lost."""

    def __init__(self, session: aiohttp.ClientSession, double: ComfyUIDouble) -> None:
        self.told: list[Message] = []
        self.lost = 0
        self.socket = PodSocket(session, double.url, double.token, "client-1", self.told.append, self._lose)

    def _lose(self) -> None:
        self.lost += 1


@contextlib.asynccontextmanager
async def listening(session: aiohttp.ClientSession, double: ComfyUIDouble) -> AsyncIterator[Listening]:
    one = Listening(session, double)
    one.socket.open()
    try:
        yield one
    finally:
        await one.socket.close()


async def test_the_first_frame_offers_our_feature_flags(double: ComfyUIDouble, session: aiohttp.ClientSession) -> None:
    async with listening(session, double):
        await until(lambda: double.first_frames)
    assert double.first_frames == [{"type": "feature_flags", "data": {"supports_preview_metadata": True}}]


async def test_the_messages_of_our_prompt_arrive(
    double: ComfyUIDouble, session: aiohttp.ClientSession, client: ComfyClient
) -> None:
    async with listening(session, double) as one:
        await until(lambda: one.socket.connected)
        await client.submit(replay_graph(), "prompt-1", "client-1")
        await until(lambda: one.told)
        assert one.told[0] == Started("prompt-1")


async def test_a_socket_closed_in_order_is_opened_again(
    double: ComfyUIDouble, session: aiohttp.ClientSession, client: ComfyClient
) -> None:
    async with listening(session, double) as one:
        await until(lambda: one.socket.connected)
        first = double.sockets["client-1"]
        await double.close_sockets()
        await until(lambda: double.sockets["client-1"] is not first)
        await client.submit(replay_graph(), "prompt-1", "client-1")
        await until(lambda: one.told)
        assert one.told[0] == Started("prompt-1")


async def test_a_socket_that_broke_is_not_opened_again_under_the_same_id(
    double: ComfyUIDouble, session: aiohttp.ClientSession
) -> None:
    async with listening(session, double) as one:
        await until(lambda: one.socket.connected)
        await double.restart()
        await until(lambda: one.socket.gone)
        assert "client-1" not in double.sockets


async def test_a_socket_that_an_agent_closed_for_a_newer_one_is_not_opened_again(
    double: ComfyUIDouble, session: aiohttp.ClientSession
) -> None:
    async with listening(session, double) as one:
        await until(lambda: one.socket.connected)
        await double.close_sockets(code=REPLACED)
        await until(lambda: one.socket.gone)


async def test_a_pod_that_is_not_up_yet_is_tried_again(double: ComfyUIDouble, session: aiohttp.ClientSession) -> None:
    await double.stop()
    async with listening(session, double) as one:
        await asyncio.sleep(socket_module.FIRST_BACKOFF_SECONDS / 2)
        await double.start(double.port)
        await until(lambda: one.socket.connected)
    assert "client-1" in double.sockets


async def test_a_pod_that_is_not_up_settles_the_socket_at_once(
    double: ComfyUIDouble, session: aiohttp.ClientSession
) -> None:
    await double.stop()
    async with listening(session, double) as one:
        await asyncio.wait_for(one.socket.settled.wait(), 60)
        assert not one.socket.connected


async def test_a_socket_that_broke_is_told_as_lost_when_it_is_gone(
    double: ComfyUIDouble, session: aiohttp.ClientSession
) -> None:
    async with listening(session, double) as one:
        await until(lambda: one.socket.connected)
        await double.stop()
        await until(lambda: one.lost)
        assert one.socket.gone


async def test_hanging_up_is_no_loss_and_the_pod_hears_of_it(
    double: ComfyUIDouble, session: aiohttp.ClientSession
) -> None:
    async with listening(session, double) as one:
        await until(lambda: one.socket.connected)
        await one.socket.close()
        assert (one.lost, double.sockets["client-1"].close_code) == (0, 1000)


async def test_a_connection_that_is_cut_at_a_message_is_not_opened_again_under_the_same_id(
    double: ComfyUIDouble, session: aiohttp.ClientSession, client: ComfyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    armed = failpoints.Failpoints("cut@2 socket message")
    async with listening(session, double) as one:
        await until(lambda: one.socket.connected)
        monkeypatch.setattr(failpoints, "_points", armed)
        monkeypatch.setattr(failpoints, "ON", True)
        await client.submit(replay_graph(), "prompt-1", "client-1")
        await until(lambda: one.socket.gone)
        assert one.told == [Started("prompt-1")]
