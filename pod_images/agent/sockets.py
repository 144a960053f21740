"""Websockets through the proxy: every frame both ways, no reader that stalls ComfyUI, never two of one client id."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field

import aiohttp
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web
from yarl import URL

from ..bearer import problem
from .gate import RETRY_SECONDS, Gate
from .headers import for_comfyui

log = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
CONNECT_SECONDS = 15.0
HEARTBEAT_SECONDS = 30.0
REPLACED = 4001
"""The close code of an older socket: whoever gets it should not open another one, or the two would take turns."""
# A reader that is so far behind is cut off: ComfyUI sends to all its sockets in one loop, and would wait for it.
MOST_WAITING = 4096
MOST_WAITING_BYTES = 64 << 20
# The other close codes only ever describe an end; no frame may carry them.
SENDABLE = frozenset(range(1000, 5000)) - {1004, 1005, 1006, 1015}


def upstream_url(base: str, request: web.Request) -> URL:
    """What a request asks for, at ComfyUI; the path always begins with a slash, so the host stays ComfyUI's."""
    return URL(f"{base}/{request.rel_url.raw_path_qs.lstrip('/')}", encoded=True)


def is_websocket(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").lower() == "websocket"


@dataclass(eq=False)
class Outbox:
    """Frames on their way to a caller, bounded."""

    frames: asyncio.Queue[WSMessage] = field(default_factory=asyncio.Queue)
    waiting_bytes: int = 0

    def put(self, frame: WSMessage) -> bool:
        """False where the caller is too far behind."""
        self.waiting_bytes += len(frame.data)
        self.frames.put_nowait(frame)
        return self.frames.qsize() <= MOST_WAITING and self.waiting_bytes <= MOST_WAITING_BYTES

    async def get(self) -> WSMessage:
        frame = await self.frames.get()
        self.waiting_bytes -= len(frame.data)
        return frame

    def sent(self) -> None:
        """The frame that was got last is out."""
        self.frames.task_done()


@dataclass
class Turn:
    """The lock of one client id and how many hold or await it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Relay:
    """One caller's socket and its counterpart at ComfyUI."""

    def __init__(self, upstream: aiohttp.ClientWebSocketResponse) -> None:
        self._upstream = upstream
        self._outbox = Outbox()
        self._ending: asyncio.Task[bool] | None = None
        self._why: tuple[int, str] | None = None

    async def run(self, caller: web.WebSocketResponse) -> None:
        """Until one side ends; the caller is told why where it is ComfyUI's side."""
        parts = [
            asyncio.create_task(self._from_comfyui()),
            asyncio.create_task(self._to_caller(caller)),
            asyncio.create_task(self._from_caller(caller)),
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            if parts[0] in done and parts[2] not in done and self._why is None:
                with contextlib.suppress(TimeoutError):  # what came before the end still goes out
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await self._outbox.frames.join()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            code, words = self._why or self._upstream_end()
            self.end()  # at once: until then ComfyUI waits for whoever does not read
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await caller.close(code=code, message=words.encode())

    def end(self, code: int = WSCloseCode.OK, words: str = "") -> asyncio.Task[bool]:
        """Closes ComfyUI's side; the task answers whether ComfyUI confirmed it, after which it has forgotten us."""
        if self._ending is None:
            self._why = self._why or ((code, words) if words else None)
            self._ending = asyncio.create_task(self._end())
        return self._ending

    async def _end(self) -> bool:
        if self._upstream.closed:
            return True
        try:
            async with asyncio.timeout(CLOSE_SECONDS + 1):
                # ComfyUI's server answers the close and runs the handler's clean-up in one step of its loop.
                await self._upstream.close()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        return self._upstream.close_code != WSCloseCode.ABNORMAL_CLOSURE

    def _upstream_end(self) -> tuple[int, str]:
        code = self._upstream.close_code
        if code == WSCloseCode.ABNORMAL_CLOSURE:  # no close frame: the process is gone
            return WSCloseCode.SERVICE_RESTART, "ComfyUI is being restarted"
        return (code, "") if code is not None and code in SENDABLE else (WSCloseCode.OK, "")

    async def _from_comfyui(self) -> None:
        async for frame in self._upstream:
            if frame.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                continue
            if not self._outbox.put(frame):
                self._why = (WSCloseCode.POLICY_VIOLATION, "reader too slow")
                return

    async def _to_caller(self, caller: web.WebSocketResponse) -> None:
        while True:
            frame = await self._outbox.get()
            if frame.type is WSMsgType.TEXT:
                await caller.send_str(frame.data)
            else:
                await caller.send_bytes(frame.data)
            self._outbox.sent()

    async def _from_caller(self, caller: web.WebSocketResponse) -> None:
        async for frame in caller:
            if frame.type is WSMsgType.TEXT:
                await self._upstream.send_str(frame.data)
            elif frame.type is WSMsgType.BINARY:
                await self._upstream.send_bytes(frame.data)


class Sockets:
    """All relays, by client id.

    ComfyUI unregisters a client id when *any* socket of it ends, so that the end of an older one deafens a newer one
    for good. Therefore the older one is closed, and its end awaited, before the newer one is opened.
    """

    def __init__(self, session: aiohttp.ClientSession, gate: Gate) -> None:
        self._session = session
        self._gate = gate
        self._relays: dict[str, Relay] = {}
        self._unnamed: set[Relay] = set()
        self._turns: dict[str, Turn] = {}

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """One socket from its handshake to its end."""
        client_id = request.query.get("clientId", "")
        if self._gate.url is None:
            return unavailable("comfyui_down", self._gate.reason)
        url = upstream_url(self._gate.url, request)
        try:
            relay = await self._opened(client_id, url, request)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return unavailable("comfyui_silent", f"ComfyUI opened no websocket: {error or type(error).__name__}")
        if relay is None:
            return unavailable("socket_busy", "the older socket of this client id has not ended yet")
        try:
            caller = web.WebSocketResponse(heartbeat=HEARTBEAT_SECONDS, max_msg_size=0, compress=False)
            await caller.prepare(request)
            await relay.run(caller)
        finally:
            await asyncio.shield(relay.end())
            self._unnamed.discard(relay)
            if self._relays.get(client_id) is relay:
                del self._relays[client_id]
        return caller

    async def close(self) -> None:
        """Ends every socket: this agent is going away."""
        relays = [*self._relays.values(), *self._unnamed]
        await asyncio.gather(*(relay.end(WSCloseCode.GOING_AWAY, "the pod is going away") for relay in relays))

    async def _opened(self, client_id: str, url: URL, request: web.Request) -> Relay | None:
        """A relay that ComfyUI has accepted; None where the older one of the same id would not end."""
        if not client_id:
            relay = await self._connected(url, request)
            self._unnamed.add(relay)
            return relay
        turn = self._turns.setdefault(client_id, Turn())
        turn.users += 1
        try:
            async with turn.lock:
                older = self._relays.get(client_id)
                if older is not None:
                    log.info("a second socket of client id %.8s...: the first is closed", client_id)
                    if not await older.end(REPLACED, "another socket of this client id was opened"):
                        return None
                self._relays[client_id] = relay = await self._connected(url, request)
                return relay
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[client_id]

    async def _connected(self, url: URL, request: web.Request) -> Relay:
        async with asyncio.timeout(CONNECT_SECONDS):
            upstream = await self._session.ws_connect(
                url,
                headers=for_comfyui(request.headers),
                max_msg_size=0,
                compress=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
            )
        return Relay(upstream)


def unavailable(code: str, detail: str) -> web.Response:
    """What callers are told while ComfyUI cannot be reached: nothing final, come back soon."""
    return problem(503, code, detail, **{"Retry-After": str(RETRY_SECONDS)})
