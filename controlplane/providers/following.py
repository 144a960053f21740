"""Following: what comes in about one prompt, by hints and by looks, and what that means for whoever follows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Literal

from controlplane.comfy.client import ComfyClient
from controlplane.comfy.messages import Ended, Executing, Finished, Message, Preview
from controlplane.errors import PodRefused, PodUnreachable
from controlplane.ports import Update, Work
from controlplane.providers.metering import Meter

LOG_LINES = 40
PROGRESS_SECONDS = 0.5
"""Progress is told at most so often; what comes in between is in the next one."""

PREVIEW_SECONDS = 2.0
"""The same for previews; what comes in between is left out."""

FINAL_UPDATES = frozenset({"succeeded", "failed", "interrupted", "lost"})

Place = Literal["running", "queued", "absent"]
"""Where ``/queue`` has a prompt."""


@dataclass(frozen=True)
class Pace:
    """How often the truth is asked for, and when an absent prompt counts as lost. Seconds."""

    poll: float = 5.0
    """Between looks while hints come in."""
    blind_poll: float = 1.0
    """Between looks without hints, and while something is amiss."""
    absent_looks: int = 3
    absent_seconds: float = 5.0
    unreachable_seconds: float = 180.0
    quiet: float = 10.0
    """After so long without a hint about a running prompt the pod is asked whether its worker is at work."""
    submit_seconds: float = 30.0


class Follower:
    """One prompt on a pod. The pod's link tells it what it hears and sees; ``updates`` says what that means.

    Only the newest of everything is kept, so that whoever reads slowly holds up nobody.
    """

    def __init__(self, work: Work, client: ComfyClient, pace: Pace, look_soon: Callable[[], None]) -> None:
        self.work = work
        self.joined_at = time.monotonic()
        self.on_pod = False
        """Whether the prompt was submitted, so that its absence means something."""
        self.running = False
        self.is_followed = False
        """Whether anybody takes its updates."""
        self._client = client
        self._pace = pace
        self._look_soon = look_soon
        self._bell = asyncio.Event()
        self._meter = Meter(work.graph)
        self._quiet = Quiet(pace.quiet, guarded=work.pod.kind == "comfyui")
        self._patience = Patience(pace)
        self._moved = False
        self._progress_told_at = float("-inf")
        self._preview: bytes | None = None
        self._preview_told_at = float("-inf")
        self._seems_over = False
        self._seen: Place | None = None
        self._silence: PodUnreachable | PodRefused | None = None
        self._amiss = False

    @property
    def amiss(self) -> bool:
        """Whether the next look should come soon, whatever hints there are."""
        return self._amiss or self._patience.tried

    def hear(self, message: Message) -> None:
        """Take a hint about this prompt."""
        self._quiet.heard()
        if isinstance(message, Preview):
            if self.work.previews and time.monotonic() - self._preview_told_at >= PREVIEW_SECONDS:
                self._preview, self._preview_told_at = message.image, time.monotonic()
                self._bell.set()
            return
        if _is_end(message):
            self._seems_over = True
            self._bell.set()
            return
        if self._meter.read(message):
            self._moved = True
        if not self.running or (self._moved and time.monotonic() - self._progress_told_at >= PROGRESS_SECONDS):
            self.running = True
            self._bell.set()

    def see(self, place: Place) -> None:
        """Take what a look at the queue has shown."""
        self._seen, self._silence = place, None
        self.running = self.running or place == "running"
        self._bell.set()

    def miss(self, error: PodUnreachable | PodRefused) -> None:
        """Take that a look had no answer."""
        self._silence = error
        self._bell.set()

    async def updates(self) -> AsyncIterator[Update]:
        """Updates until a final one."""
        told_running = False
        self.is_followed = True
        while True:
            await self._bell.wait()
            self._bell.clear()
            update = await self._judged()
            if update is not None and update.kind != "running":
                yield update
                if update.kind in FINAL_UPDATES:
                    return
            if self.running and not told_running:
                told_running = True
                yield Update("running")
            if self._moved and time.monotonic() - self._progress_told_at >= PROGRESS_SECONDS:
                self._moved, self._progress_told_at = False, time.monotonic()
                yield self._meter.update()
            if self._preview is not None and self.running:
                picture, self._preview = self._preview, None
                yield Update("preview", picture=picture)
            if told_running and await self._quiet.but_alive(self._client, self.work.prompt_id):
                yield Update("running")

    async def _judged(self) -> Update | None:
        seen, silence, over = self._seen, self._silence, self._seems_over
        self._seen, self._silence, self._seems_over = None, None, False
        if silence is not None:
            return await self._unanswered(silence)
        if over or seen == "absent":
            return await self._ending(nowhere=seen == "absent")
        if seen is not None:
            self._amiss = False
            self._patience.answered(there=True)
            return Update(seen)
        return None

    async def _ending(self, nowhere: bool) -> Update | None:
        """How it ended; where the history does not say, what its absence means."""
        try:
            finished = await self._client.history(self.work.prompt_id)
        except (PodUnreachable, PodRefused) as error:
            return await self._unanswered(error)
        if finished is not None:
            return await _final(self._client, finished)
        self._patience.answered(there=False)
        if nowhere:
            return await _incident(self._client, self.work.prompt_id) or self._patience.absent()
        self._amiss = True
        self._look_soon()
        return None

    async def _unanswered(self, error: PodUnreachable | PodRefused) -> Update | None:
        # An agent whose ComfyUI is away answers for itself, and may know that the prompt went down with it.
        told = await _incident(self._client, self.work.prompt_id) if error.extra.get("restarting") else None
        # A refused token is no proof either: the pod may be about to register again with a new one.
        return told or self._patience.unanswered(error)


def _is_end(message: Message) -> bool:
    if isinstance(message, Executing):
        return message.node is None
    # execution_success precedes the history entry by some milliseconds; executing{node: null} follows it.
    return isinstance(message, Ended) and message.how != "succeeded"


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


async def is_incident(client: ComfyClient, prompt_id: str) -> bool:
    """Whether a prompt is known to have gone down with its ComfyUI."""
    return await _incident(client, prompt_id) is not None


async def log_tail(client: ComfyClient) -> tuple[str, ...]:
    """The newest lines of a pod's log; nothing where there are none to be had."""
    try:
        return await client.log_tail(LOG_LINES)
    except (PodUnreachable, PodRefused):
        return ()


async def _final(client: ComfyClient, finished: Finished) -> Update:
    if finished.how != "failed":
        return Update(finished.how, outputs=finished.outputs, error=finished.error)
    error = {**(finished.error or {}), "log_tail": await log_tail(client)}
    return Update("failed", outputs=finished.outputs, error=error)


@dataclass
class Patience:
    """For how long a prompt has been absent, or its pod silent, and from when on that means that it is lost."""

    pace: Pace
    _absent: int = 0
    _absent_since: float = 0.0
    _silent_since: float | None = None

    @property
    def tried(self) -> bool:
        """Whether something is missing at the moment."""
        return self._absent > 0 or self._silent_since is not None

    def answered(self, *, there: bool) -> None:
        """The pod has answered, and it may be that it has the prompt."""
        self._silent_since = None
        if there:
            self._absent = 0

    def absent(self) -> Update | None:
        """The prompt is neither in the queue nor in the history."""
        if self._absent == 0:
            self._absent_since = time.monotonic()
        self._absent += 1
        if self._absent < self.pace.absent_looks or time.monotonic() - self._absent_since < self.pace.absent_seconds:
            return None
        message = "The pod has it neither in its queue nor in its history; it was probably restarted."
        return Update("lost", error={"type": "Absent", "message": message})

    def unanswered(self, error: PodUnreachable | PodRefused) -> Update | None:
        """The pod did not answer, or not as it should."""
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        if now - self._silent_since < self.pace.unreachable_seconds:
            return Update("away") if error.extra.get("refused") else None
        message = f"The pod did not answer for {now - self._silent_since:.0f} s: {error.detail}"
        return Update("lost", error={"type": "Unreachable", "message": message})


@dataclass
class Quiet:
    """Since when no hint came, and whether a pod that sends none is at work all the same. Monotonic seconds.

    On a ``guarded`` pod an agent judges how long a worker may be silent, knowing which node it is at, and restarts
    ComfyUI where it is too long: there a worker that lives and has the prompt is enough.
    """

    seconds: float
    guarded: bool
    since: float = field(default_factory=time.monotonic)
    asked: float = field(default_factory=time.monotonic)

    def heard(self) -> None:
        """A hint came in."""
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
