"""ComfyUI's websocket from the client's side: hints about prompts of one client id, which may stop at any time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

import aiohttp

from controlplane import failpoints
from controlplane.comfy.messages import Message, Preview, Status, Unknown, parse_binary, parse_text

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 20.0
CONNECT_SECONDS = 15.0
CLOSE_SECONDS = 5.0
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 10.0
FEATURE_FLAGS = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
REPLACED = 4001
"""With this an agent closes a socket for a newer one of the same client id: whoever took the job over has it now."""


class PodSocket:
    """A reader of ``/ws`` for one client id, which hands every hint to ``told`` as it comes in.

    After the server closed the socket in an orderly way it is opened again under the same id. After any other loss
    the id is not used again: when the older of two sockets of one id dies late, ComfyUI silently deafens the newer
    one. Whoever needs hints must therefore ask ``/history`` and ``/queue`` as well, which alone tell the truth.

    ``told`` must not block and must not raise: a reader that stalls stops the pod's messages to everybody.
    ``lost`` is called when a connection ended that we did not close ourselves.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        token: str,
        client_id: str,
        told: Callable[[Message], None],
        lost: Callable[[], None] = lambda: None,
        after: asyncio.Task[None] | None = None,
    ) -> None:
        """``after``: what must have ended first, such as another socket of this client id."""
        self.client_id = client_id
        self.settled = asyncio.Event()
        """Set once the first attempt to connect is over, however it went."""
        self.connected = False
        self.heard_at = 0.0
        """Monotonic time of the last frame."""
        self._session = session
        self._url = f"{url.rstrip('/')}/ws?clientId={client_id}"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._told = told
        self._lost = lost
        self._after = after
        self._opened_once = False
        self._closing = False
        self._connection: aiohttp.ClientWebSocketResponse[bool] | None = None
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Connect and read from now on."""
        self._task = asyncio.create_task(self._run(), name="pod-socket")

    async def close(self) -> None:
        """Hang up in an orderly way, so that ComfyUI has forgotten this socket when it returns."""
        self._closing = True
        if self._connection is not None:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                await self._connection.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def gone(self) -> bool:
        """Whether no hint will come any more."""
        return self._task is None or self._task.done()

    async def _run(self) -> None:
        if self._after is not None:
            await asyncio.wait([self._after])
        backoff = FIRST_BACKOFF_SECONDS
        while not self._closing:
            try:
                orderly = await self._read_once()
                backoff = FIRST_BACKOFF_SECONDS
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                log.debug("websocket failed: %s", error or type(error).__name__)
                # Before the server ever answered, no older socket of this id can exist.
                orderly = not self._opened_once
            finally:
                self.settled.set()
                self.connected, self._connection = False, None
            if self._closing or not orderly:
                break
            self._lost()
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)
        if not self._closing:
            # A task's end is seen a moment after it: whoever looks must find this socket gone already.
            asyncio.get_running_loop().call_soon(self._lost)

    async def _read_once(self) -> bool:
        """Read until the socket ends; True where the server closed it in an orderly way."""
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await self._session.ws_connect(
                self._url,
                headers=self._headers,
                heartbeat=HEARTBEAT_SECONDS,
                max_msg_size=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
            )
        async with connection:
            # Only the first text frame is read for flags, and a new connection knows nothing of the last one's.
            await connection.send_json(FEATURE_FLAGS)
            self._connection = connection
            async for frame in connection:
                failpoints.reach("socket message")
                if failpoints.twice("socket message"):
                    self._hear(frame)
                self._hear(frame)
            # 1006 is aiohttp's word for an end without a close frame.
            return connection.close_code not in (None, aiohttp.WSCloseCode.ABNORMAL_CLOSURE, REPLACED)

    def _hear(self, frame: aiohttp.WSMessage) -> None:
        self.heard_at = time.monotonic()
        if not self.connected:
            self.connected = self._opened_once = True
            self.settled.set()
        if frame.type == aiohttp.WSMsgType.TEXT:
            message = parse_text(frame.data)
        elif frame.type == aiohttp.WSMsgType.BINARY:
            message = parse_binary(frame.data)
        else:
            return
        # Frames of the older kind do not say whose preview they are.
        if isinstance(message, (Status, Unknown)) or (isinstance(message, Preview) and message.prompt_id is None):
            return
        self._told(message)
