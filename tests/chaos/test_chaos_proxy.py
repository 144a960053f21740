"""The chaos run's own network: it passes on what it is given, and does to one request what it was told to."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from tests.chaos.proxy import Fault, Link


class Far:
    """A server that counts what arrives."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def take(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        if request.path == "/stream":
            response = web.StreamResponse()
            response.enable_chunked_encoding()
            await response.prepare(request)
            for number in range(3):
                await response.write(f"{number};".encode())
            return response
        if request.path == "/ws":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.send_str(f"heard {(await socket.receive()).data}")
            return socket
        return web.Response(body=b"answer to " + self.bodies[-1])


@pytest_asyncio.fixture
async def far() -> AsyncIterator[tuple[Far, Link, list[Fault]]]:
    server, faults = Far(), []
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = runner.addresses[0][:2]
    link = Link(lambda: (address[0], address[1]), faults)
    await link.start()
    yield server, link, faults
    await link.stop()
    await runner.cleanup()


def fault(how: str, seconds: float = 0.0) -> Fault:
    return Fault(re.compile("POST /thing"), how, seconds)


async def post(session: aiohttp.ClientSession, link: Link) -> bytes:
    async with session.post(f"{link.url}/thing", data=b"me") as response:
        return await response.read()


Fixture = tuple[Far, Link, list[Fault]]


async def test_requests_bodies_streams_and_sockets_pass_through(far: Fixture) -> None:
    _, link, _ = far
    async with aiohttp.ClientSession() as session:
        answers = [await post(session, link), await post(session, link)]
        async with session.get(f"{link.url}/stream") as response:
            answers.append(await response.read())
        async with session.ws_connect(f"{link.url}/ws") as socket:
            await socket.send_str("me")
            answers.append((await socket.receive()).data)
    assert answers == [b"answer to me", b"answer to me", b"0;1;2;", "heard me"]


@pytest.mark.parametrize(("how", "arrived"), [("cut before", 0), ("cut after", 1)])
async def test_a_cut_breaks_one_request_before_or_after_the_other_side_had_it(
    far: Fixture, how: str, arrived: int
) -> None:
    server, link, faults = far
    faults.append(fault(how))
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await post(session, link)
        assert len(server.bodies) == arrived
        assert await post(session, link) == b"answer to me"


async def test_a_duplicate_arrives_twice_and_is_answered_once(far: Fixture) -> None:
    server, link, faults = far
    faults.append(fault("duplicate"))
    async with aiohttp.ClientSession() as session:
        await post(session, link)
    assert server.bodies == [b"me", b"me"]


async def test_a_stalled_request_arrives_late(far: Fixture) -> None:
    _, link, faults = far
    faults.append(fault("stall", 0.3))
    async with aiohttp.ClientSession() as session:
        began = asyncio.get_running_loop().time()
        await post(session, link)
    assert asyncio.get_running_loop().time() - began >= 0.3
