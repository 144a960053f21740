"""A network that fails on order: HTTP links and raw pipes on loopback which cut, stall and repeat single requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LONGEST_HEAD = 1 << 16
PIECE = 1 << 16
CONNECT_SECONDS = 5.0

Address = tuple[str, int]
Upstream = Callable[[], Address | None]
"""Where a new connection goes to; None while there is nobody."""


@dataclass
class Fault:
    """What is to happen once to the first request that ``pattern`` finds (searched in ``METHOD /path``).

    ``how``: ``cut before`` (nothing is forwarded), ``cut after`` (the answer is not), ``stall`` and ``slow`` (the
    request waits for ``seconds``), ``duplicate`` (the other side gets it twice), ``call before`` and ``call after``
    (``action`` is awaited there, then things go on).
    """

    pattern: re.Pattern[str]
    how: str
    seconds: float = 0.0
    action: Callable[[Link], Awaitable[None]] | None = None
    """Given the link of the request."""
    fired: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, request: str, hows: tuple[str, ...]) -> bool:
        """Whether it happens to this request, now and never again."""
        if self.fired.is_set() or self.how not in hows or not self.pattern.search(request):
            return False
        self.fired.set()
        return True


@dataclass(frozen=True)
class Head:
    """The first lines of a request or an answer."""

    raw: bytes
    start: str
    headers: Mapping[str, str]

    @property
    def request(self) -> str:
        """``METHOD /path``, without what signs or asks."""
        method, path, _ = self.start.split(" ", 2)
        return f"{method} {path.partition('?')[0]}"

    @property
    def status(self) -> int:
        return int(self.start.split(" ", 2)[1])

    @property
    def length(self) -> int | None:
        """Bytes of the body; None where it comes in chunks or until the end."""
        return int(self.headers["content-length"]) if "content-length" in self.headers else None

    @property
    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def upgrades(self) -> bool:
        return "websocket" in self.headers.get("upgrade", "").lower()


class Cut(ConnectionError):
    """This connection ends here, without a goodbye."""


class Link:
    """One HTTP address that leads to another; ``faults`` are shared by whoever has them."""

    def __init__(
        self, upstream: Upstream, faults: list[Fault], addresses: Mapping[str, str] | None = None, owner: object = None
    ) -> None:
        """``addresses``: what a registering pod calls itself -> what the control plane is told instead.

        ``owner`` is whom a fault's action may want to hit.
        """
        self.owner = owner
        self._upstream = upstream
        self._faults = faults
        self._addresses = addresses or {}
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=LONGEST_HEAD)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self.cut_all()
            await self._server.wait_closed()

    def cut_all(self) -> None:
        """Break every connection that is open now, websockets and event streams included."""
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                head = await _head(reader)
                if head is None:
                    return
                body = await _request_body(reader, head)
                upstream = upstream or await self._connected()
                await self._pass_on(head, body, reader, writer, upstream)
                if head.upgrades:
                    return
        except (ConnectionError, OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
            writer.transport.abort()
        finally:
            self._open.discard(writer)
            for one in (writer, *([upstream[1]] if upstream else [])):
                one.close()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self._upstream()
        if address is None:
            raise Cut
        async with asyncio.timeout(CONNECT_SECONDS):
            return await asyncio.open_connection(*address, limit=LONGEST_HEAD)

    async def _pass_on(
        self,
        head: Head,
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        request = head.request
        if self._addresses and request == "POST /pods":
            head, body = self._readdressed(head, body)
        await self._before(head, body)
        up_reader, up_writer = upstream
        up_writer.write(head.raw + body)
        await up_writer.drain()
        answer = await _head(up_reader)
        if answer is None:
            raise Cut
        await self._after(request)
        writer.write(answer.raw)
        if answer.status == 101:
            await _both_ways(reader, writer, up_reader, up_writer)
            return
        async for piece in _answer_body(up_reader, head, answer):
            writer.write(piece)
            await writer.drain()
        await writer.drain()
        if answer.length is None and not answer.chunked and answer.status not in (204, 304):
            raise Cut  # its body ended with its connection

    async def _before(self, head: Head, body: bytes) -> None:
        for fault in self._faults:
            if fault.take(head.request, ("cut before", "stall", "slow", "duplicate", "call before")):
                if fault.how == "cut before":
                    raise Cut
                if fault.how == "duplicate":
                    await self._repeat(head, body)
                elif fault.action is not None:
                    await fault.action(self)
                await asyncio.sleep(fault.seconds)

    async def _after(self, request: str) -> None:
        for fault in self._faults:
            if fault.take(request, ("cut after", "call after")):
                if fault.how == "cut after":
                    raise Cut
                if fault.action is not None:
                    await fault.action(self)

    async def _repeat(self, head: Head, body: bytes) -> None:
        """Send it on a connection of its own first; nobody sees that answer."""
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            reader, writer = await self._connected()
            try:
                writer.write(head.raw + body)
                async with asyncio.timeout(CONNECT_SECONDS):
                    await _head(reader)
            finally:
                writer.close()

    def _readdressed(self, head: Head, body: bytes) -> tuple[Head, bytes]:
        told = json.loads(body)
        told["address"] = self._addresses.get(told.get("address"), told.get("address"))
        changed = json.dumps(told).encode()
        raw = re.sub(rb"(?i)(content-length: *)\d+", rb"\g<1>%d" % len(changed), head.raw)
        return Head(raw, head.start, {**head.headers, "content-length": str(len(changed))}), changed


class Pipe:
    """A Unix socket that leads to another, byte by byte, for a protocol that is not HTTP."""

    def __init__(self, path: Path, upstream: Path) -> None:
        self._path = path
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(self._path))

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._flowing.set()
            self.cut_all()
            await self._server.wait_closed()

    def cut_all(self) -> None:
        """Break every connection that is open now."""
        for writer in list(self._open):
            writer.transport.abort()

    async def stall(self, seconds: float) -> None:
        """Let nothing through for a while."""
        self._flowing.clear()
        await asyncio.sleep(seconds)
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(str(self._upstream))
            try:
                await _both_ways(reader, writer, up_reader, up_writer, self._flowing)
            finally:
                up_writer.close()
        except OSError:
            writer.transport.abort()
        finally:
            self._open.discard(writer)
            writer.close()


async def _head(reader: asyncio.StreamReader) -> Head | None:
    """The next head, None where the connection ended between two."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as ended:
        if not ended.partial:
            return None
        raise
    start, *lines = raw.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return Head(raw, start, {name.strip().lower(): value.strip() for name, _, value in pairs})


async def _request_body(reader: asyncio.StreamReader, head: Head) -> bytes:
    if head.chunked:
        return b"".join([piece async for piece in _chunks(reader)])
    return await reader.readexactly(head.length or 0)


async def _answer_body(reader: asyncio.StreamReader, request: Head, answer: Head) -> AsyncIterator[bytes]:
    if request.start.startswith("HEAD ") or answer.status in (204, 304):
        return
    if answer.chunked:
        async for piece in _chunks(reader):
            yield piece
    elif answer.length is not None:
        rest = answer.length
        while rest:
            piece = await reader.read(min(PIECE, rest))
            if not piece:
                raise Cut
            rest -= len(piece)
            yield piece
    else:
        while piece := await reader.read(PIECE):
            yield piece


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Chunks as they come on the wire, sizes and ends included."""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        yield line + await reader.readexactly(size + 2)
        if size == 0:
            return


async def _both_ways(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    up_reader: asyncio.StreamReader,
    up_writer: asyncio.StreamWriter,
    flowing: asyncio.Event | None = None,
) -> None:
    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while piece := await source.read(PIECE):
            if flowing is not None:
                await flowing.wait()
            target.write(piece)
            await target.drain()

    ways = [asyncio.ensure_future(copy(reader, up_writer)), asyncio.ensure_future(copy(up_reader, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
    writer.transport.abort()
    up_writer.transport.abort()
