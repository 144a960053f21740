"""ComfyUI's websocket from the client's side: hints about prompts of one client id, which may stop at any time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from types import TracebackType

import aiohttp

from controlplane.comfy.messages import Message, Preview, Status, Unknown, parse_binary, parse_text

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 20.0
CONNECT_SECONDS = 15.0
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 10.0
FEATURE_FLAGS = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
KEPT_MESSAGES = 1000
REPLACED = 4001
"""With this an agent closes a socket for a newer one of the same client id: whoever took the job over has it now."""


class PodSocket:
    """A reader of ``/ws`` for one client id; use it as an async context manager.

    Each job has its own client id, so no two sockets ever share one. After the server closed the socket in an orderly
    way it is opened again under the same id. After any other loss the id is not used again: when the older of two
    sockets of one id dies late, ComfyUI silently deafens the newer one. Whoever reads hints must therefore ask
    ``/history`` and ``/queue`` as well, which alone tell the truth.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str, client_id: str) -> None:
        self._session = session
        self._url = f"{url.rstrip('/')}/ws?clientId={client_id}"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._messages: asyncio.Queue[Message] = asyncio.Queue(KEPT_MESSAGES)
        self._task: asyncio.Task[None] | None = None
        self.opened = asyncio.Event()
        """Set once the server has answered for the first time."""
        self.newest: Message | None = None
        """The last message that came in, read or not."""

    async def __aenter__(self) -> PodSocket:
        self._task = asyncio.create_task(self._run(), name="pod-socket")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def gone(self) -> bool:
        """Whether no hint will come any more."""
        return self._task is None or self._task.done()

    async def next(self, seconds: float) -> Message | None:
        """The next message, None where none came in time."""
        # asyncio.timeout, not wait_for: before Python 3.12 the latter loses a cancel that meets a message.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._messages.get()
        return None

    async def _run(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            try:
                orderly = await self._read_once()
                backoff = FIRST_BACKOFF_SECONDS
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                log.debug("websocket failed: %s", error or type(error).__name__)
                # Before the server ever answered, no older socket of this id can exist.
                orderly = not self.opened.is_set()
            if not orderly:
                return
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)

    async def _read_once(self) -> bool:
        """Read until the socket ends; True where the server closed it in an orderly way."""
        async with asyncio.timeout(CONNECT_SECONDS):
            connected = await self._session.ws_connect(
                self._url, headers=self._headers, heartbeat=HEARTBEAT_SECONDS, max_msg_size=0
            )
        async with connected as socket:
            # Only the first text frame is read for flags, and a new connection knows nothing of the last one's.
            await socket.send_json(FEATURE_FLAGS)
            async for frame in socket:
                if frame.type == aiohttp.WSMsgType.TEXT:
                    self._keep(parse_text(frame.data))
                elif frame.type == aiohttp.WSMsgType.BINARY:
                    self._keep(parse_binary(frame.data))
            # 1006 is aiohttp's word for an end without a close frame.
            return socket.close_code not in (None, aiohttp.WSCloseCode.ABNORMAL_CLOSURE, REPLACED)

    def _keep(self, message: Message) -> None:
        self.opened.set()
        if isinstance(message, (Status, Preview, Unknown)):
            return
        if self._messages.full():
            # Always read on: a stalled reader stops the pod's messages to everybody.
            self._messages.get_nowait()
        self._messages.put_nowait(message)
        self.newest = message
