"""The provider for pods that speak ComfyUI's protocol, the embedded one included: one attempt is one prompt."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mimetypes
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from controlplane.comfy.client import ComfyClient
from controlplane.comfy.messages import (
    Cached,
    Ended,
    Executing,
    Finished,
    Message,
    NodeState,
    Progress,
    ProgressState,
    Started,
)
from controlplane.comfy.socket import PodSocket
from controlplane.errors import PodRefused, PodUnreachable
from controlplane.ports import BlobStore, HandedOver, PodAddress, Update, Work
from controlplane.providers.handing_over import handed_over

log = logging.getLogger(__name__)

PROBE_SECONDS = 10.0
LOG_LINES = 40


@dataclass(frozen=True)
class Pace:
    """How often the truth is asked for, and when an absent prompt counts as lost. Seconds."""

    poll: float = 1.0
    """Between looks while hints come in."""
    blind_poll: float = 1.0
    """Between looks without a websocket."""
    absent_looks: int = 3
    absent_seconds: float = 5.0
    unreachable_seconds: float = 180.0
    quiet: float = 10.0
    """After so long without a hint about a running prompt the pod is asked whether its worker is at work."""
    submit_seconds: float = 30.0


class ComfyUIProvider:
    """Submits, follows, cancels and forgets prompts. All calls are idempotent by prompt_id.

    ``/history`` and ``/queue`` are the truth, the websocket only makes it arrive sooner: a socket that is gone or deaf
    costs the progress in between and nothing else, since then the node pack tells whether its worker is at work.
    ``session`` must not have a total timeout of its own.
    """

    def __init__(self, session: aiohttp.ClientSession, blobs: BlobStore, pace: Pace | None = None) -> None:
        self._session = session
        self._blobs = blobs
        self._pace = pace or Pace()

    def client_id(self, pod: PodAddress) -> str:
        """Under which client id this process speaks to the pod from now on: it belongs into the attempt. No I/O."""
        return str(uuid.uuid4())

    async def start(self, work: Work) -> None:
        """Upload input files and submit. Raises PodRefused (never ran) or PodUnreachable (may have been queued)."""
        client = self._client(work.pod)
        for name, key in work.files:
            media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
            try:
                await client.upload(name, await self._blobs.get(key), media_type)
            except PodUnreachable as error:
                detail = f"An input file did not get to the pod: {error.detail}"
                raise PodRefused(detail, pod_specific=True, unreachable=True) from error
        try:
            await client.submit(work.graph, work.prompt_id, work.client_id)
        except PodUnreachable as error:
            if error.extra.get("never_sent"):
                raise PodRefused(error.detail, pod_specific=True, unreachable=True) from error
            if not await self._is_there(client, work.prompt_id):
                raise

    async def follow(self, work: Work) -> AsyncIterator[Update]:
        """Yield updates until a final one; may be called anew by another process for the same prompt_id."""
        client = self._client(work.pod)
        looks = _Looks(self._pace)
        meter = _Meter(work.graph)
        quiet = _Quiet(self._pace.quiet, guarded=work.pod.kind == "comfyui")
        running = False
        async with PodSocket(self._session, work.pod.url, work.pod.token, work.client_id) as socket:
            # A hint that comes before the first look is never missed; a pod without hints costs this wait once.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.poll):
                    await socket.opened.wait()
            while True:
                update = await looks.look(client, work.prompt_id)
                if update is not None and not (update.kind == "running" and running):
                    yield update
                    if update.kind in FINAL_UPDATES:
                        return
                running = running or (update is not None and update.kind == "running")
                async for update in self._hints(socket, work.prompt_id, meter):
                    quiet.heard()
                    if update.kind == "running" and running:
                        continue
                    running = True
                    yield update
                if running and await quiet.but_alive(client, work.prompt_id):
                    yield Update("running")

    async def cancel(self, work: Work) -> bool:
        """Delete it if pending, interrupt it if running; True when it is confirmed to be neither."""
        try:
            return await self._client(work.pod).take_back(work.prompt_id)
        except (PodUnreachable, PodRefused) as error:
            if error.extra.get("restarting") and await _incident(self._client(work.pod), work.prompt_id):
                return True
            log.info("cancel of %s is not confirmed: %s", work.prompt_id, error)
            return False

    async def forget(self, work: Work) -> None:
        """Drop the pod's own record; a pod that does not answer keeps it until it restarts, which does no harm."""
        with contextlib.suppress(PodUnreachable, PodRefused):
            await self._client(work.pod).forget([work.prompt_id])

    async def handed_over(self, work: Work) -> HandedOver | None:
        """What has become of the files that the prompt promised; None where the pod has no word for that."""
        return await handed_over(self._client(work.pod), work.prompt_id)

    async def probe(self, pod: PodAddress) -> bool:
        """Whether the pod answers and takes our token."""
        try:
            await ComfyClient(self._session, pod.url, pod.token, PROBE_SECONDS).system_stats()
        except (PodUnreachable, PodRefused):
            return False
        return True

    async def log_tail(self, pod: PodAddress) -> tuple[str, ...]:
        """What ComfyUI logged last, newest last; nothing where no agent keeps it or the pod does not answer."""
        return await _log_tail(self._client(pod))

    async def _hints(self, socket: PodSocket, prompt_id: str, meter: _Meter) -> AsyncIterator[Update]:
        """Hints until the next look at the truth is due, which is at once when the prompt seems to have ended."""
        if socket.gone:
            await asyncio.sleep(self._pace.blind_poll)
            return
        due = time.monotonic() + self._pace.poll
        while (rest := due - time.monotonic()) > 0:
            message = await socket.next(rest)
            if message is None or _seems_over(message, prompt_id):
                return
            update = meter.read(message, prompt_id)
            if update is not None:
                yield update

    async def _is_there(self, client: ComfyClient, prompt_id: str) -> bool:
        try:
            return await client.history(prompt_id) is not None or (await client.queue()).holds(prompt_id)
        except (PodUnreachable, PodRefused):
            return False

    def _client(self, pod: PodAddress) -> ComfyClient:
        return ComfyClient(self._session, pod.url, pod.token, self._pace.submit_seconds)


FINAL_UPDATES = frozenset({"succeeded", "failed", "interrupted", "lost"})


def _seems_over(message: Message, prompt_id: str) -> bool:
    if isinstance(message, Executing):
        return message.node is None and message.prompt_id in (prompt_id, None)
    # execution_success precedes the history entry by some milliseconds; executing{node: null} follows it.
    return isinstance(message, Ended) and message.how != "succeeded" and message.prompt_id == prompt_id


async def _incident(client: ComfyClient, prompt_id: str) -> Update | None:
    """The end of a prompt that went down with its ComfyUI, where an agent knows of it."""
    try:
        incident = await client.incident(prompt_id)
    except (PodUnreachable, PodRefused):
        return None
    if incident is None:
        return None
    told = {"type": "Restarted", "code": incident.code, "message": incident.detail, "log_tail": incident.log_tail}
    return Update("lost", error=told)


async def _log_tail(client: ComfyClient) -> tuple[str, ...]:
    try:
        return await client.log_tail(LOG_LINES)
    except (PodUnreachable, PodRefused):
        return ()


@dataclass
class _Quiet:
    """Since when no hint came, and whether a pod that sends none is at work all the same. Monotonic seconds.

    On a ``guarded`` pod an agent judges how long a worker may be silent, knowing which node it is at, and restarts
    ComfyUI where it is too long: there a worker that lives and has the prompt is enough.
    """

    seconds: float
    guarded: bool
    since: float = field(default_factory=time.monotonic)
    asked: float = field(default_factory=time.monotonic)

    def heard(self) -> None:
        self.since = self.asked = time.monotonic()

    async def but_alive(self, client: ComfyClient, prompt_id: str) -> bool:
        """Whether it has been quiet for a while, and the worker is at this prompt and not given up."""
        now = time.monotonic()
        if now - self.asked < self.seconds:
            return False
        self.asked = now
        try:
            worker = await client.worker()
        except (PodUnreachable, PodRefused):
            return False
        if worker is None or not worker.alive or worker.prompt_id != prompt_id:
            return False
        if not self.guarded and (worker.beat_age is None or worker.beat_age >= now - self.since):
            return False
        self.heard()
        return True


@dataclass
class _Looks:
    """Asks the pod for the truth and remembers for how long it has been absent or silent."""

    pace: Pace
    absent: int = 0
    absent_since: float = 0.0
    silent_since: float | None = None

    async def look(self, client: ComfyClient, prompt_id: str) -> Update | None:
        try:
            finished = await client.history(prompt_id)
            queue = await client.queue() if finished is None else None
        except (PodUnreachable, PodRefused) as error:
            # An agent whose ComfyUI is away answers for itself, and may know that the prompt went down with it.
            told = await _incident(client, prompt_id) if error.extra.get("restarting") else None
            # A refused token is no proof either: the pod may be about to register again with a new one.
            return told or self._unreachable(error)
        self.silent_since = None
        if finished is not None:
            return await _final(client, finished)
        if queue is not None and queue.holds(prompt_id):
            self.absent = 0
            return Update("running" if prompt_id in queue.running else "queued")
        return await _incident(client, prompt_id) or self._absent()

    def _absent(self) -> Update | None:
        if self.absent == 0:
            self.absent_since = time.monotonic()
        self.absent += 1
        if self.absent < self.pace.absent_looks or time.monotonic() - self.absent_since < self.pace.absent_seconds:
            return None
        message = "The pod has it neither in its queue nor in its history; it was probably restarted."
        return Update("lost", error={"type": "Absent", "message": message})

    def _unreachable(self, error: PodUnreachable | PodRefused) -> Update | None:
        now = time.monotonic()
        if self.silent_since is None:
            self.silent_since = now
        if now - self.silent_since < self.pace.unreachable_seconds:
            return Update("away") if error.extra.get("refused") else None
        message = f"The pod did not answer for {now - self.silent_since:.0f} s: {error.detail}"
        return Update("lost", error={"type": "Unreachable", "message": message})


async def _final(client: ComfyClient, finished: Finished) -> Update:
    if finished.how != "failed":
        return Update(finished.how, outputs=finished.outputs, error=finished.error)
    error = {**(finished.error or {}), "log_tail": await _log_tail(client)}
    return Update("failed", outputs=finished.outputs, error=error)


@dataclass
class _Meter:
    """Turns hints into one number for the whole graph: nodes with steps or frames weigh as much as those."""

    graph: Mapping[str, Any]
    cached: set[str] = field(default_factory=set)
    states: Mapping[str, NodeState] = field(default_factory=dict)
    best: float = 0.0

    def read(self, message: Message, prompt_id: str) -> Update | None:
        """An update where the message tells of this prompt's progress."""
        match message:
            case Started(prompt_id=told) | Cached(prompt_id=told) if told != prompt_id:
                return None
            case Started():
                return Update("running")
            case Cached(nodes=nodes):
                self.cached.update(nodes)
                return Update("running")
            case ProgressState(prompt_id=told, nodes=states) if told == prompt_id:
                self.states = states
                return Update("progress", fraction=self._fraction())
            case Progress(prompt_id=told, node=node, value=value, maximum=maximum) if told in (prompt_id, None):
                return self._stepped(node, value, maximum)
            case Executing(prompt_id=told, node=node) if told in (prompt_id, None):
                return Update("progress", fraction=self._fraction(), node=node)
            case _:
                return None

    def _stepped(self, node: str | None, value: float, maximum: float) -> Update:
        if node is not None:
            self.states = {**self.states, node: NodeState(value, maximum, False)}
        return Update("progress", self._fraction(), node, int(value), int(maximum))

    def _fraction(self) -> float:
        weights = {node_id: _weight(node) for node_id, node in self.graph.items() if node_id not in self.cached}
        total = sum(weights.values())
        done = sum(weights[node_id] * _share(state) for node_id, state in self.states.items() if node_id in weights)
        self.best = max(self.best, min(done / total, 1.0) if total else 0.0)
        return self.best


def _share(state: NodeState) -> float:
    return 1.0 if state.finished else min(state.value / state.maximum, 1.0) if state.maximum > 0 else 0.0


def _weight(node: Mapping[str, Any]) -> float:
    inputs = node.get("inputs", {})
    steps, frames = inputs.get("steps"), inputs.get("frames")
    weight = float(steps) if isinstance(steps, (int, float)) else 1.0
    return max(1.0, weight * (float(frames) if isinstance(frames, (int, float)) else 1.0))
