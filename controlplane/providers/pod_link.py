"""The link to one pod: one websocket and one poller for all of its prompts, and what is gathered to be sent later."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp

from controlplane.comfy.client import ComfyClient
from controlplane.comfy.messages import Message
from controlplane.comfy.socket import PodSocket
from controlplane.errors import PodRefused, PodUnreachable
from controlplane.ports import PodAddress, Work
from controlplane.providers.following import Follower, Pace

log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0
"""A link without prompts is closed after so long."""
SETTLE_SECONDS = 1.0
"""How long a prompt waits for the websocket that will tell of it."""
FORGET_SECONDS = 10.0
"""How long records of prompts are gathered before the pod is asked to drop them: each request costs both sides."""
FORGET_AT_ONCE = 200
PARTING_SECONDS = 3.0
DEAF_PAUSE_SECONDS = 10.0
"""Between two attempts to be heard again by a pod that tells us nothing."""


class PodLink:
    """One process's connection to one pod, for as long as there are prompts for it.

    All prompts of this process go out under ``client_id``, so that one websocket brings the hints about all of them.
    Prompts that another process sent are followed under its id, until somebody else's socket of that id gets in the
    way. A websocket that broke, or that brings nothing, is not used again under its id: what is in flight is looked
    after by polling, and new prompts get another id.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        pod: PodAddress,
        pace: Pace,
        idle: Callable[[PodLink], None],
        after: asyncio.Task[None] | None = None,
    ) -> None:
        """``idle`` is called once the link has had nothing to do for a while; ``after`` ends before sockets open."""
        self.pod = pod
        self.client = ComfyClient(session, pod.url, pod.token, pace.submit_seconds)
        self._session = session
        self._pace = pace
        self._idle = idle
        self._after = after
        self.turn = asyncio.Lock()
        """Held while a prompt goes out: a pod runs prompts in the order in which they come."""
        self._client_id = str(uuid.uuid4())
        self._sockets: dict[str, PodSocket] = {}
        self._given_up: set[str] = set()
        """Client ids under which no socket is opened any more."""
        self._deaf_at = float("-inf")
        self._followers: dict[str, Follower] = {}
        self._finished: list[str] = []
        self._used_at = self._looked_at = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._forget_timer: asyncio.TimerHandle | None = None
        self._looking = self._look_again = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._arm()

    @property
    def client_id(self) -> str:
        """The id under which new prompts are sent."""
        self._used_at = time.monotonic()
        return self._client_id

    def leads_to(self, pod: PodAddress) -> bool:
        """Whether this is still how the pod is reached."""
        return (self.pod.url, self.pod.token) == (pod.url, pod.token)

    async def listening(self, client_id: str) -> None:
        """Return once hints come in, or it is known that none do for now; after a second in any case."""
        if client_id in self._given_up:
            return
        socket = self._socket(client_id)
        if not socket.settled.is_set():
            # asyncio.timeout, not wait_for: before Python 3.12 the latter loses a cancel that meets the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_SECONDS):
                    await socket.settled.wait()

    def join(self, work: Work, *, on_pod: bool) -> Follower:
        """Take part in what is heard and seen of a prompt; one that is ``on_pod`` already is looked for at once."""
        follower = self._followers.get(work.prompt_id)
        if follower is None:
            if work.client_id not in self._given_up:
                self._socket(work.client_id)
            follower = Follower(work, self.client, self._pace, self.look_soon)
            self._followers[work.prompt_id] = follower
            if on_pod:
                follower.on_pod = True
                self.look_soon()
            if self._timer_at > follower.joined_at + self._pace.blind_poll:
                self._arm()
        return follower

    def leave(self, prompt_id: str) -> None:
        """Hear and see nothing of this prompt any more."""
        follower = self._followers.pop(prompt_id, None)
        self._used_at = time.monotonic()
        if follower is None:
            return
        self._give_up_if_deaf(follower)
        others = follower.work.client_id
        if others != self._client_id and all(one.work.client_id != others for one in self._followers.values()):
            socket = self._sockets.pop(others, None)
            if socket is not None:
                self._in_background(socket.close())

    def forget(self, prompt_id: str) -> None:
        """Have the pod drop its record of a prompt soon, together with others."""
        self._finished.append(prompt_id)
        if len(self._finished) >= FORGET_AT_ONCE:
            self._flush_soon()
        elif self._forget_timer is None:
            self._forget_timer = asyncio.get_running_loop().call_later(FORGET_SECONDS, self._flush_soon)

    async def close(self, *, replaced: bool = False) -> None:
        """Tell the pod what it can forget, and hang up in an orderly way.

        One that is ``replaced`` by a link to another address still looks after those who follow a prompt here: the
        pod may have come back to its old address, or they learn there that it is gone.
        """
        if replaced:
            self._followers = {name: one for name, one in self._followers.items() if one.is_followed}
        else:
            self._followers.clear()
        if self._timer is not None and not self._followers:
            self._timer.cancel()
        if self._forget_timer is not None:
            self._forget_timer.cancel()
        self._flush_soon()
        sockets, self._sockets = list(self._sockets.values()), {}
        for socket in sockets:
            self._in_background(socket.close())
        _, late = await asyncio.wait(self._tasks, timeout=PARTING_SECONDS)
        for task in late:
            task.cancel()
        if self._followers:
            self._arm()

    # hints

    def _socket(self, client_id: str) -> PodSocket:
        socket = self._sockets.get(client_id)
        if socket is None:
            socket = PodSocket(
                self._session,
                self.pod.url,
                self.pod.token,
                client_id,
                lambda message: self._hear(client_id, message),
                lambda: self._lose(client_id),
                self._after,
            )
            self._sockets[client_id] = socket
            socket.open()
        return socket

    def _hear(self, client_id: str, message: Message) -> None:
        prompt_id = getattr(message, "prompt_id", None)
        if prompt_id is not None:
            follower = self._followers.get(prompt_id)
            if follower is not None:
                follower.hear(message)
            return
        # After a reconnect ComfyUI does not say which prompt it means; it is the one that runs.
        for one in self._followers.values():
            if one.running and one.work.client_id == client_id:
                one.hear(message)

    def _lose(self, client_id: str) -> None:
        socket = self._sockets.get(client_id)
        if socket is not None and socket.gone:
            self._give_up(client_id)
        # The pod may be gone with it, or be a new one that knows nothing.
        self.look_soon()

    def _give_up(self, client_id: str) -> None:
        self._given_up.add(client_id)
        socket = self._sockets.pop(client_id, None)
        if client_id == self._client_id:
            self._client_id = str(uuid.uuid4())
        if socket is not None and not socket.gone:
            self._in_background(socket.close())

    def _is_covered(self, follower: Follower) -> bool:
        """Whether hints can be expected to tell how the prompt goes on: a pod tells of every prompt it gets."""
        socket = self._sockets.get(follower.work.client_id)
        return socket is not None and socket.connected and socket.heard_at >= follower.joined_at

    def _give_up_if_deaf(self, follower: Follower) -> None:
        """Open another websocket where this one looks sound and brought nothing of a prompt that was sent under it."""
        socket = self._sockets.get(self._client_id)
        now = time.monotonic()
        if (
            socket is not None
            and socket.connected
            and follower.work.client_id == self._client_id
            and socket.heard_at < follower.joined_at < now - SETTLE_SECONDS
            and now - self._deaf_at > DEAF_PAUSE_SECONDS
        ):
            log.info("pod %s tells us nothing any more; it is asked under another client id", self.pod.pod_id)
            self._deaf_at = now
            self._give_up(self._client_id)

    # looks

    def look_soon(self) -> None:
        """Look at the pod's queue now; where a look is under way, once more behind it."""
        if self._looking:
            self._look_again = True
        elif self._followers:
            self._looking = True
            self._in_background(self._look())

    def _arm(self) -> None:
        """Wake up for the next look that is due, at the latest when one without hints might be."""
        if self._timer is not None:
            self._timer.cancel()
        now = time.monotonic()
        due = now + self._pace.blind_poll if self._followers else self._used_at + IDLE_SECONDS
        for follower in self._followers.values():
            due = min(due, self._due(follower))
        self._timer_at = due
        self._timer = asyncio.get_running_loop().call_later(max(due - now, 0.0), self._wake)

    def _wake(self) -> None:
        now = time.monotonic()
        if not self._followers and not self._looking and now - self._used_at >= IDLE_SECONDS:
            self._idle(self)
            return
        if any(self._due(follower) <= now for follower in self._followers.values()):
            self.look_soon()
        else:
            self._arm()

    def _due(self, follower: Follower) -> float:
        seldom = self._is_covered(follower) and not follower.amiss
        return max(self._looked_at, follower.joined_at) + (self._pace.poll if seldom else self._pace.blind_poll)

    async def _look(self) -> None:
        """One look at the queue for all prompts that were on the pod before it began."""
        followers = [one for one in self._followers.values() if one.on_pod]
        self._looked_at = time.monotonic()
        self._look_again = False
        try:
            queue = await self.client.queue()
        except (PodUnreachable, PodRefused) as error:
            for one in followers:
                one.miss(error)
        except Exception as error:  # foreign data, read wrongly: to the prompts that is as good as no answer
            log.exception("pod %s answers with a queue that cannot be read", self.pod.pod_id)
            for one in followers:
                one.miss(PodUnreachable(f"The pod's queue cannot be read: {error}"))
        else:
            for one in followers:
                prompt_id = one.work.prompt_id
                one.see("running" if prompt_id in queue.running else "queued" if queue.holds(prompt_id) else "absent")
                self._give_up_if_deaf(one)
        finally:
            self._looking = False
        if self._look_again:
            self.look_soon()
        else:
            self._arm()

    # later

    def _flush_soon(self) -> None:
        if self._forget_timer is not None:
            self._forget_timer.cancel()
            self._forget_timer = None
        self._in_background(self._flush())

    async def _flush(self) -> None:
        finished, self._finished = self._finished, []
        if finished:
            # A pod that does not answer keeps them until it restarts, which does no harm.
            with contextlib.suppress(PodUnreachable, PodRefused):
                await self.client.forget(finished)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
