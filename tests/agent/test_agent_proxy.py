"""The proxy in front of ComfyUI: who is let in, what is passed on, and websockets of every size."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from .running import POD_TOKEN, AgentProcess, end, launch, until

BEARER = {"Authorization": f"Bearer {POD_TOKEN}"}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """One agent for the whole file; it outlives the loops of its tests."""
    with asyncio.Runner() as runner:
        started = runner.run(launch(tmp_path_factory.mktemp("proxy") / "pod"))
        yield runner.run(started.ready())
        runner.run(end(started))


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": POD_TOKEN},
        {"Authorization": f"bearer {POD_TOKEN}"},
        {"Authorization": f"Bearer {POD_TOKEN} "[:-2]},
        {"Cookie": f"token={POD_TOKEN}"},
    ],
)
@pytest.mark.parametrize("path", ["/queue", "/troupe/log", "/api/troupe/agent", "/no/such/route", "/ws?clientId=x"])
async def test_without_the_token_nothing_is_answered(
    agent: AgentProcess, session: aiohttp.ClientSession, path: str, headers: dict[str, str]
) -> None:
    async with session.get(agent.address + path, headers=headers) as response:
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_a_token_of_strange_bytes_is_refused_like_any_other(agent: AgentProcess) -> None:
    def asked() -> bytes:
        with socket.create_connection(("127.0.0.1", int(agent.address.rpartition(":")[2])), 10) as connection:
            connection.sendall(b"GET /queue HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n")
            return connection.recv(100)

    assert b" 401 " in await asyncio.to_thread(asked)


async def test_options_need_the_token_too(agent: AgentProcess, session: aiohttp.ClientSession) -> None:
    async with session.options(agent.address + "/prompt") as response:
        assert response.status == 401


async def test_what_belongs_to_the_caller_and_the_hop_stays_out(
    agent: AgentProcess, session: aiohttp.ClientSession
) -> None:
    theirs = {
        "Origin": "https://evil.example", "Referer": "https://evil.example/", "Sec-Fetch-Site": "cross-site",
        "Cookie": "a=b", "Connection": "keep-alive, X-Hop", "X-Hop": "1", "Te": "trailers", "X-Kept": "yes",
        "Comfy-User": "ann",
    }  # fmt: skip
    async with session.get(agent.address + "/echo/a%20b?x=%2F&y=ü", headers={**BEARER, **theirs}) as response:
        seen = await response.json()
        assert ("X-Fake" in response.headers, "Keep-Alive" in response.headers) == (True, False)
    arrived = {name.lower(): value for name, value in seen["headers"]}
    assert arrived["host"].startswith("127.0.0.1:")
    assert (arrived["x-kept"], arrived["comfy-user"]) == ("yes", "ann")
    assert not {"authorization", "origin", "referer", "sec-fetch-site", "cookie", "x-hop", "te"} & set(arrived)
    assert seen["path"] == "/echo/a%20b?x=/&y=%C3%BC"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_every_method_is_passed_on(agent: AgentProcess, session: aiohttp.ClientSession, method: str) -> None:
    async with session.request(method, agent.address + "/api/echo", headers=BEARER) as response:
        assert (await response.json())["method"] == method


async def test_a_path_with_two_slashes_still_goes_to_comfyui(
    agent: AgentProcess, session: aiohttp.ClientSession
) -> None:
    async with session.get(agent.address + "//example.com/queue", headers=BEARER) as response:
        assert response.status == 404


async def test_a_big_upload_arrives_whole(agent: AgentProcess, session: aiohttp.ClientSession) -> None:
    piece = bytes(range(256)) * 4096

    async def body() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield piece

    digest = hashlib.sha256(piece * 64).hexdigest()
    async with session.post(agent.address + "/sink", data=body(), headers=BEARER) as response:
        assert await response.json() == {"sha256": digest, "bytes": 64 << 20}


async def test_a_big_answer_arrives_whole(agent: AgentProcess, session: aiohttp.ClientSession) -> None:
    async with session.get(agent.address + f"/big?bytes={200 << 20}", headers=BEARER) as response:
        assert int(response.headers["Content-Length"]) == 200 << 20
        assert sum([len(chunk) async for chunk in response.content.iter_any()]) == 200 << 20


async def test_big_bodies_are_not_kept_in_the_agents_memory(
    agent: AgentProcess, session: aiohttp.ClientSession
) -> None:
    async with session.get(agent.address + f"/big?bytes={500 << 20}", headers=BEARER) as response:
        async for _ in response.content.iter_any():
            pass
    peak = next(line for line in _status(agent.process.pid) if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 300 << 10, "KiB"


def _status(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/status").read_text().splitlines()


async def test_an_answer_that_is_cut_off_is_not_passed_off_as_whole(
    agent: AgentProcess, session: aiohttp.ClientSession
) -> None:
    with pytest.raises(aiohttp.ClientError):
        async with session.get(agent.address + "/cut", headers=BEARER) as response:
            await response.read()


async def test_a_refusal_of_comfyui_is_passed_on_as_it_is(agent: AgentProcess) -> None:
    status, answer = await agent.call("POST", "/prompt", {"prompt": {"1": {"class_type": "Nope"}}})
    assert (status, answer["error"]["message"]) == (400, "no such class")


async def test_a_prompt_that_comfyui_names_itself_is_known_too(agent: AgentProcess) -> None:
    graph = {"1": {"class_type": "EmptyImage", "inputs": {}}}
    _, answer = await agent.call("POST", "/prompt", {"prompt": graph})
    assert len(answer["prompt_id"]) == 36


async def test_an_unknown_prompt_has_no_incident(agent: AgentProcess) -> None:
    status, answer = await agent.call("GET", "/troupe/incidents/nobody")
    assert (status, answer["code"]) == (404, "no_incident")


async def test_the_log_has_as_many_lines_as_asked_for(agent: AgentProcess) -> None:
    _, one = await agent.call("GET", "/troupe/log?lines=1")
    _, many = await agent.call("GET", "/api/troupe/log?lines=nonsense")
    assert (len(one["lines"]), any("starting ComfyUI" in line for line in many["lines"])) == (1, True)


async def connect(agent: AgentProcess, session: aiohttp.ClientSession, client_id: str) -> Any:
    url = f"{agent.address}/ws?clientId={client_id}"
    opened = await session.ws_connect(url, headers=BEARER, max_msg_size=0)
    assert (await opened.receive_json(timeout=10))["type"] == "status"
    return opened


async def test_a_websocket_carries_text_both_ways(agent: AgentProcess, session: aiohttp.ClientSession) -> None:
    async with await connect(agent, session, "talker") as opened:
        await opened.send_json({"type": "feature_flags"})
        assert (await opened.receive_json(timeout=10))["type"] == "heard"


async def test_frames_of_many_megabytes_pass(agent: AgentProcess, session: aiohttp.ClientSession) -> None:
    async with await connect(agent, session, "painter") as opened:
        await agent.submit("FakeFrames", client_id="painter", count=3, bytes=20 << 20)
        sizes = []
        while len(sizes) < 3:
            frame = await opened.receive(timeout=30)
            if frame.type is WSMsgType.BINARY:
                sizes.append(len(frame.data))
    assert sizes == [20 << 20] * 3


async def test_a_reader_that_stalls_does_not_stop_comfyui(agent: AgentProcess) -> None:
    async with aiohttp.ClientSession() as session:
        stalled = await connect(agent, session, "stalled")
        # Nobody reads on; ComfyUI would wait in the middle of a frame, and with it everybody else.
        prompt_id = await agent.submit("FakeFrames", client_id="stalled", count=20, bytes=10 << 20)
        assert (await agent.finished(prompt_id))["status"]["status_str"] == "success"
        await stalled.close()


async def test_the_newer_of_two_sockets_of_a_client_hears_and_the_older_is_told(
    agent: AgentProcess, session: aiohttp.ClientSession
) -> None:
    older = await connect(agent, session, "twice")
    newer = await connect(agent, session, "twice")
    closed = await older.receive(timeout=10)
    assert (closed.type, closed.data) == (WSMsgType.CLOSE, 4001)
    await older.close()
    await agent.submit("FakeSleep", client_id="twice", seconds=0)
    assert (await newer.receive_json(timeout=10))["type"] == "executing"
    await newer.close()


async def test_many_reconnects_at_once_leave_exactly_one_socket_that_hears(
    agent: AgentProcess, session: aiohttp.ClientSession
) -> None:
    url = f"{agent.address}/ws?clientId=crowd"
    opened = await asyncio.gather(*(session.ws_connect(url, headers=BEARER) for _ in range(20)))
    heard: list[list[str]] = [[] for _ in opened]
    readers = [asyncio.create_task(_read(*pair)) for pair in zip(opened, heard, strict=True)]
    await until(lambda: sum(reader.done() for reader in readers) == 19, 30)
    await agent.submit("FakeSleep", client_id="crowd", seconds=0)
    await until(lambda: [any("executing" in text for text in texts) for texts in heard].count(True) == 1, 10)
    await asyncio.gather(*(one.close() for one in opened))
    await asyncio.gather(*readers)


async def _read(opened: aiohttp.ClientWebSocketResponse, heard: list[str]) -> None:
    async for frame in opened:
        heard.append(str(frame.data))
