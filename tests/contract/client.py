"""A small client of ComfyUI's protocol for the contract suite, written on its own so that it shares no misreading."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

Event = dict[str, Any]
WAIT_SECONDS = 60


@dataclass(frozen=True)
class PodUnderTest:
    """A pod that listens, and what the suite knows about it."""

    kind: str
    address: str
    token: str = ""
    has_lab: bool = True

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


@dataclass
class Socket:
    """One /ws connection; binary frames become events of type `binary`."""

    connection: aiohttp.ClientWebSocketResponse
    client_id: str
    seen: list[Event] = field(default_factory=list)

    async def next(self) -> Event:
        message = await asyncio.wait_for(self.connection.receive(), WAIT_SECONDS)
        if message.type is aiohttp.WSMsgType.BINARY:
            (number,) = struct.unpack(">I", message.data[:4])
            event: Event = {"type": "binary", "data": {"event": number, "bytes": message.data}}
        elif message.type is aiohttp.WSMsgType.TEXT:
            event = json.loads(message.data)
        else:
            raise ConnectionError(f"the socket ended: {message.type}")
        self.seen.append(event)
        return event

    async def until(self, kind: str, **data: Any) -> list[Event]:
        """Events up to and with the first of this kind whose data holds these values."""
        events = []
        while True:
            event = await self.next()
            events.append(event)
            if event["type"] == kind and all(event["data"].get(key) == value for key, value in data.items()):
                return events

    async def end_of(self, prompt_id: str) -> list[Event]:
        return await self.until("executing", node=None, prompt_id=prompt_id)


class Client:
    """HTTP and websocket calls to one pod."""

    def __init__(self, session: aiohttp.ClientSession, pod: PodUnderTest) -> None:
        self.session = session
        self.pod = pod

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """(status, JSON body or text)."""
        async with self.session.request(method, self.pod.address + path, **options) as response:
            text = await response.text(errors="replace")
            if response.content_type == "application/json":
                return response.status, json.loads(text)
            return response.status, text

    async def submit(self, graph: dict[str, Any], **body: Any) -> tuple[int, Any]:
        return await self.call("POST", "/prompt", json={"prompt": graph, **body})

    async def run(self, graph: dict[str, Any], **body: Any) -> dict[str, Any]:
        """Submits a graph, waits for its history entry and returns it."""
        status, answer = await self.submit(graph, **body)
        assert status == 200, answer
        return await self.finished(answer["prompt_id"])

    async def finished(self, prompt_id: str) -> dict[str, Any]:
        for _ in range(WAIT_SECONDS * 20):
            _, history = await self.call("GET", f"/history/{prompt_id}")
            if prompt_id in history:
                entry: dict[str, Any] = history[prompt_id]
                return entry
            await asyncio.sleep(0.05)
        raise TimeoutError(prompt_id)

    async def stamped(self, members: Iterable[str]) -> list[str]:
        """Names of extra_data's members, sorted; ComfyUI stamps `create_time` from 0.3.69 on only."""
        _, stats = await self.call("GET", "/system_stats")
        version = tuple(int(part) for part in stats["system"]["comfyui_version"].split("."))
        return sorted(name for name in members if name != "create_time" or version >= (0, 3, 69))

    async def idle(self) -> None:
        """Waits until nothing runs or waits, so that queue counts start at 0."""
        await self.call("POST", "/queue", json={"clear": True})
        await self.drained()

    async def drained(self) -> None:
        """Waits until all that was submitted has run."""
        for _ in range(WAIT_SECONDS * 20):
            _, body = await self.call("GET", "/prompt")
            if body["exec_info"]["queue_remaining"] == 0:
                return
            await asyncio.sleep(0.05)
        raise TimeoutError("the pod stays busy")

    @asynccontextmanager
    async def socket(self, client_id: str = "", flags: bool = False) -> AsyncIterator[Socket]:
        client_id = client_id or uuid.uuid4().hex
        url = f"{self.pod.address}/ws?clientId={client_id}"
        async with self.session.ws_connect(url, max_msg_size=0) as connection:
            socket = Socket(connection, client_id)
            if flags:
                message = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
                await connection.send_json(message)
            await socket.until("status")
            if flags:
                await socket.until("feature_flags")
            yield socket
