"""Bare HTTP/1.1 and websocket frames on asyncio protocols: what simulated pods and load generators speak, cheaply."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

REASONS = {200: "OK", 201: "Created", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 503: "Unavailable"}
WEBSOCKET_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
CALL_SECONDS = 120.0


@dataclass(frozen=True)
class Message:
    """One request or answer: its first line's three parts, its headers by lower-case name, its body."""

    start: tuple[str, str, str]
    headers: Mapping[str, str]
    body: bytes


class MessageReader:
    """Cuts a stream of bytes into messages. ValueError for what is no HTTP/1.1."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[tuple[str, str, str], dict[str, str]] | None = None
        self._length = 0

    def feed(self, data: bytes) -> Iterator[Message]:
        self._buffer += data
        while True:
            if self._head is None and not self._read_head():
                return
            assert self._head is not None
            start, headers = self._head
            if self._length >= 0:
                if len(self._buffer) < self._length:
                    return
                body = bytes(self._buffer[: self._length])
                del self._buffer[: self._length]
            elif (whole := self._unchunked()) is None:
                return
            else:
                body = whole
            self._head = None
            yield Message(start, headers, body)

    def rest(self) -> bytes:
        """What came after the last message."""
        return bytes(self._buffer)

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        first = lines[0].split(" ", 2)
        if len(first) < 2:
            raise ValueError(f"no HTTP: {lines[0]!r}")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        self._length = -1 if headers.get("transfer-encoding") == "chunked" else int(headers.get("content-length", 0))
        self._head = ((first[0], first[1], first[2] if len(first) > 2 else ""), headers)
        return True

    def _unchunked(self) -> bytes | None:
        """The body in chunks, without trailers; None where it is not all there."""
        parts: list[bytes] = []
        place = 0
        while (end := self._buffer.find(b"\r\n", place)) >= 0:
            size = int(self._buffer[place:end].split(b";")[0], 16)
            if len(self._buffer) < end + size + 4:
                return None
            if size == 0:
                del self._buffer[: end + 4]
                return b"".join(parts)
            parts.append(bytes(self._buffer[end + 2 : end + 2 + size]))
            place = end + size + 4
        return None


def answer(status: int, body: bytes = b"", media_type: str = "application/json", more: str = "") -> bytes:
    """A whole answer; ``more`` holds further header lines, each with its line end."""
    reason = REASONS.get(status, "Answer")
    kind = f"Content-Type: {media_type}\r\n" if body else ""
    return f"HTTP/1.1 {status} {reason}\r\n{kind}{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Socket:
    """The server's end of one websocket: unmasked frames out, whole text messages in."""

    def __init__(self, transport: asyncio.WriteTransport, ended: Callable[[Socket], None]) -> None:
        self._transport = transport
        self._buffer = bytearray()
        self._ended = ended

    def send(self, *texts: bytes) -> None:
        """Text messages, one frame each, in one write."""
        self._transport.write(b"".join(frame(TEXT, text) for text in texts))

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while (found := _take_frame(self._buffer)) is not None:
            kind, payload = found
            if kind == PING:
                self._transport.write(frame(PONG, payload))
            elif kind == CLOSE:
                self._transport.write(frame(CLOSE, payload[:2]))
                self._transport.close()
            elif kind == TEXT:
                self.heard(payload)

    def heard(self, text: bytes) -> None:
        """A text message of the client; a server that listens replaces this."""

    def lost(self) -> None:
        self._ended(self)


def frame(kind: int, payload: bytes) -> bytes:
    """One unmasked, final frame."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | kind, size)) + payload
    if size < 65536:
        return bytes((0x80 | kind, 126)) + size.to_bytes(2, "big") + payload
    return bytes((0x80 | kind, 127)) + size.to_bytes(8, "big") + payload


def _take_frame(buffer: bytearray) -> tuple[int, bytes] | None:
    """(kind, payload) of the first masked frame, cut off the buffer; None where it is not all there."""
    if len(buffer) < 2:
        return None
    size, place = buffer[1] & 0x7F, 2
    if size >= 126:
        width = 2 if size == 126 else 8
        if len(buffer) < 2 + width:
            return None
        size, place = int.from_bytes(buffer[2 : 2 + width], "big"), 2 + width
    mask_end = place + (4 if buffer[1] & 0x80 else 0)
    if len(buffer) < mask_end + size:
        return None
    kind, mask = buffer[0] & 0x0F, bytes(buffer[place:mask_end])
    payload = bytes(buffer[mask_end : mask_end + size])
    del buffer[: mask_end + size]
    if mask and size:
        key = (mask * (size // 4 + 1))[:size]
        payload = (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")
    return kind, payload


def upgraded(headers: Mapping[str, str]) -> bytes:
    """The answer that turns a connection into a websocket."""
    key = headers.get("sec-websocket-key", "").encode() + WEBSOCKET_MAGIC
    accept = base64.b64encode(hashlib.sha1(key).digest()).decode()
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
    ).encode()


class ServedConnection(asyncio.Protocol):
    """One client's connection. ``handle`` answers with whole answers, or with a Socket that it has upgraded."""

    def __init__(self, handle: Callable[[Message, asyncio.WriteTransport], bytes | Socket]) -> None:
        self._handle = handle
        self._reader = MessageReader()
        self._socket: Socket | None = None
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asserted: another event loop's transports do not descend from asyncio's.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        if self._socket is not None:
            self._socket.feed(data)
            return
        try:
            for message in self._reader.feed(data):
                replied = self._handle(message, self._transport)
                if isinstance(replied, Socket):
                    self._socket = replied
                    replied.feed(self._reader.rest())
                    return
                self._transport.write(replied)
                if message.headers.get("connection", "").lower() == "close":
                    self._transport.close()
        except ValueError:
            self._transport.write(answer(400))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._socket is not None:
            self._socket.lost()


class _Line(asyncio.Protocol):
    """The client's end of one connection; one call at a time."""

    def __init__(self) -> None:
        self._reader = MessageReader()
        self._transport: asyncio.WriteTransport | None = None
        self._waiting: asyncio.Future[Message] | None = None
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asserted: another event loop's transports do not descend from asyncio's.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            if message.headers.get("connection", "").lower() == "close":
                self.close()
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(exc or ConnectionResetError("the connection ended without an answer"))

    async def exchange(self, request: bytes) -> Message:
        assert self._transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await self._waiting
        except (TimeoutError, asyncio.CancelledError):
            self.close()
            raise

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.close()


class Caller:
    """Calls to one server. With ``keep`` connections are used again, else each call takes a fresh one."""

    def __init__(self, url: str, keep: bool = True) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._keep = keep
        self._idle: deque[_Line] = deque()

    async def call(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, bytes]:
        """(status, body). ``target`` is a path, or an address of this server. OSError where there is no answer."""
        if target.startswith("http"):
            parts = urlsplit(target)
            target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        told = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        keep = "" if self._keep else "Connection: close\r\n"
        head = f"{method} {target} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n{told}{keep}"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        message = await self._exchange(request)
        return int(message.start[1]), message.body

    async def _exchange(self, request: bytes) -> Message:
        while self._idle:
            line = self._idle.pop()
            if line.open:
                try:
                    message = await line.exchange(request)
                except ConnectionError:  # closed by the server just as we took it: once more on a fresh one
                    break
                return self._kept(line, message)
        loop = asyncio.get_running_loop()
        _, line = await loop.create_connection(_Line, self._host, self._port)
        return self._kept(line, await line.exchange(request))

    def _kept(self, line: _Line, message: Message) -> Message:
        if self._keep and line.open:
            self._idle.append(line)
        else:
            line.close()
        return message

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
