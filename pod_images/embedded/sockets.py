"""The websockets of this pod: who is connected, what each may hear, and how the worker thread reaches them."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

from . import wire

FEATURES: dict[str, Any] = {
    "supports_preview_metadata": True,
    "max_upload_size": 104857600,
    "extension": {"manager": {"supports_v4": True}},
}
# A reader that is this many messages behind is cut off; it may come back and read /history.
MAX_WAITING = 2048


@dataclass(eq=False)
class Listener:
    """One open socket with its own outbox, so that one slow reader delays nobody else."""

    socket: web.WebSocketResponse
    client_id: str
    wants_metadata: bool = False
    outbox: asyncio.Queue[str | bytes] = field(default_factory=lambda: asyncio.Queue(MAX_WAITING))

    def offer(self, message: str | bytes) -> bool:
        """Queues a message; False when this reader is too far behind."""
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            return False
        return True

    async def drain(self) -> None:
        while not self.socket.closed:
            message = await self.outbox.get()
            try:
                if isinstance(message, bytes):
                    await self.socket.send_bytes(message)
                else:
                    await self.socket.send_str(message)
            except ConnectionError:  # closed under us; the reading side tidies up
                return


class Hub:
    """All sockets by client id; the newest socket of an id hears its events, an older one's end does not matter."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running_node: tuple[str, str] | None = None

    async def serve(self, request: web.Request, remaining: int) -> web.WebSocketResponse:
        """Runs one connection from the first `status` to its end."""
        self._loop = asyncio.get_running_loop()
        socket = web.WebSocketResponse(heartbeat=30, max_msg_size=1 << 20)
        await socket.prepare(request)
        listener = Listener(socket, request.query.get("clientId") or uuid.uuid4().hex)
        listener.offer(self._hello(listener.client_id, remaining))
        if self._running_node is not None and self._running_node[0] == listener.client_id:
            listener.offer(json.dumps(wire.event("executing", node=self._running_node[1])))
        self._listeners.append(listener)
        sender = asyncio.create_task(listener.drain())
        try:
            await self._read(listener)
        finally:
            self._listeners.remove(listener)
            sender.cancel()
        return socket

    @staticmethod
    def _hello(client_id: str, remaining: int) -> str:
        first = wire.status(remaining)
        first["data"]["sid"] = client_id
        return json.dumps(first)

    @staticmethod
    async def _read(listener: Listener) -> None:
        """Only the first text message matters: it may carry feature flags."""
        first = True
        async for message in listener.socket:
            if message.type is not WSMsgType.TEXT:
                continue
            if first and (flags := _feature_flags(message.data)) is not None:
                listener.wants_metadata = flags.get("supports_preview_metadata") is True
                listener.offer(json.dumps(wire.event("feature_flags", **FEATURES)))
            first = False

    def note_running(self, client_id: str | None, node_id: str | None) -> None:
        """Remembers which node a reconnecting client is told about."""
        self._running_node = (client_id, node_id) if client_id is not None and node_id is not None else None

    def broadcast(self, message: wire.Event) -> None:
        """To every socket; callable from any thread."""
        self._call(self._deliver, None, json.dumps(message))

    def send(self, client_id: str | None, message: wire.Event) -> None:
        """To the newest socket of a client; callable from any thread. Raises TypeError for what is not JSON.

        Events of a prompt without client id go nowhere: ComfyUI shows them to every socket, which leaks them.
        """
        if client_id is not None:
            self._call(self._deliver, client_id, json.dumps(message))

    def send_frame(self, client_id: str | None, frame: bytes) -> None:
        if client_id is not None:
            self._call(self._deliver, client_id, frame)

    def hears(self, client_id: str | None) -> bool:
        """Whether anybody would get an event of this client's prompts."""
        return client_id is not None and self._newest(client_id) is not None

    def wants_metadata(self, client_id: str | None) -> bool:
        listener = self._newest(client_id)
        return listener is not None and listener.wants_metadata

    async def close(self) -> None:
        for listener in list(self._listeners):
            await listener.socket.close(code=1001, message=b"pod is going away")

    def _call(self, function: Any, *arguments: Any) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(function, *arguments)

    def _deliver(self, client_id: str | None, message: str | bytes) -> None:
        newest = self._newest(client_id)
        targets = list(self._listeners) if client_id is None else [newest] if newest is not None else []
        for listener in targets:
            if not listener.offer(message) and self._loop is not None:
                self._loop.create_task(listener.socket.close(code=1008, message=b"reader too slow"))

    def _newest(self, client_id: str | None) -> Listener | None:
        return next((item for item in reversed(self._listeners) if item.client_id == client_id), None)


def _feature_flags(text: str) -> dict[str, Any] | None:
    try:
        message = json.loads(text)
    except ValueError:
        return None
    if isinstance(message, dict) and message.get("type") == "feature_flags" and isinstance(message.get("data"), dict):
        flags: dict[str, Any] = message["data"]
        return flags
    return None
