"""Holding: one job in this process's hands, and the orders that interrupt whoever carries it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from controlplane.domain.durations import Countdown
from controlplane.domain.jobs import COLLECTING, RUNNING, Attempt, Job
from controlplane.domain.pods import Pod
from controlplane.ports import PodAddress, Update, Work
from controlplane.services.outcomes import NO_NEWS, News

T = TypeVar("T")

Order = Literal["cancel", "deadline", "stalled", "pod_lost", "moved", "take_back"]
"""``take_back``: another pod could begin at once, so take the prompt off this one unless it has begun."""

EVERY_ORDER: frozenset[Order] = frozenset({"cancel", "deadline", "stalled", "pod_lost", "moved", "take_back"})
STOPPING: frozenset[Order] = frozenset({"cancel", "deadline"})
ABOUT_THE_RUN: frozenset[Order] = frozenset({"stalled", "moved", "take_back"})
"""Of no concern any more once the pod has finished."""

STAY_SECONDS = 15.0
"""A prompt that its pod has kept is not asked back sooner than this, the next time twice as long, and so on."""


@dataclass
class Held:
    """One job in this process's hands; the watcher gives orders, the carrier obeys them."""

    job: Job
    attempt: Attempt
    pod: Pod
    resumed: bool
    order: Order | None = None
    sent: bool = False
    """Whether the pod may have heard of the attempt."""
    collecting: bool = False
    """Whether its pod has told us how it ended; one that was taken over may be so far in its row and not here."""
    since: float = field(default_factory=time.monotonic)
    last_sign: float = field(default_factory=time.monotonic)
    """Monotonic time of the last thing heard of the attempt."""
    seen_progress: Mapping[str, Any] = field(default_factory=dict)
    away_at: float | None = None
    """Monotonic time at which nothing listened at the pod's address."""
    news: News = NO_NEWS
    """What is known of the attempt and not written yet."""
    progress_at: float = float("-inf")
    """Monotonic time at which progress was written last."""
    previews: bool = False
    """Whether its pod is asked for previews."""
    progress: Mapping[str, Any] | None = None
    """How far it is by the newest hint, written or not, with the key of its newest preview."""
    countdown: Countdown | None = None
    """What is left of it, once it runs."""
    stays_until: float = float("-inf")
    """Monotonic time before which nobody asks for its prompt to be taken back again."""
    _stay_seconds: float = STAY_SECONDS
    _waiting: asyncio.Timeout | None = None
    _interrupted_by: Collection[Order] = ()

    def give(self, order: Order) -> None:
        """Tell the carrier; what it waits for is interrupted where the order concerns it.

        A cancel is never replaced by another order, and nothing is replaced by ``take_back``.
        """
        if self.order == "cancel" or (order == "take_back" and self.order is not None):
            return
        if order in ABOUT_THE_RUN and self.collecting:
            return
        self.order = order
        if self._waiting is not None and order in self._interrupted_by and self._waiting.when() is None:
            self._waiting.reschedule(asyncio.get_running_loop().time())

    def obeyed(self, order: Order) -> None:
        """The order is done with; another one that came meanwhile stays."""
        if self.order == order:
            self.order = None

    def stay(self) -> None:
        """It was not taken back. Each asking begins to follow it anew, with all patience: so not too often."""
        self.obeyed("take_back")
        self.stays_until = time.monotonic() + self._stay_seconds
        self._stay_seconds *= 2

    async def unless(self, orders: Collection[Order], work: Callable[[], Awaitable[T]]) -> T | None:
        """What ``work`` comes to; None where one of these orders is there or comes first."""
        if self.order in orders:
            return None
        try:
            # An interruption is a time limit that is set when the order comes: that takes no second task.
            async with asyncio.timeout(None) as waiting:
                self._waiting, self._interrupted_by = waiting, orders
                return await work()
        except TimeoutError:
            if not waiting.expired():
                raise
            return None
        finally:
            self._waiting = None

    def reach(self, status: str) -> None:
        """Know that the attempt is so far, before it is written."""
        self.attempt = replace(self.attempt, status=status)
        self.collecting = status == COLLECTING

    @property
    def begun(self) -> bool:
        """Whether the pod is known to have begun."""
        return self.attempt.status in (RUNNING, COLLECTING)

    @property
    def in_doubt(self) -> bool:
        """Whether it was sent and nothing was heard of it since."""
        return self.sent and self.attempt.status == "created"

    @property
    def started_at(self) -> float | None:
        """Since when the job runs, written or not."""
        return self.job.started_at or self.attempt.started_at

    @property
    def claim(self) -> tuple[str, int]:
        """What fences every write: job id and claim number."""
        return self.job.id, self.job.claim_no

    @property
    def address(self) -> PodAddress:
        """The pod in the provider's words."""
        return PodAddress(self.pod.id, self.pod.address, self.pod.token, self.pod.kind)

    @property
    def work(self) -> Work:
        """The attempt in the provider's words."""
        nodes = tuple(str(one["node"]) for one in self.job.outputs if "node" in one)
        files = tuple(self.job.files)
        return Work(self.attempt.id, self.attempt.client_id, self.address, self.job.graph, files, nodes, self.previews)

    def heard(self, update: Update) -> None:
        """Take an update as a sign of life, where it is one."""
        if update.kind == "away":
            self.away_at = time.monotonic()
        elif not (update.kind == "running" and self.attempt.status == RUNNING and self.job.kind == "train"):
            # That a training's process lives is not enough: only steps and reports show that it does something.
            self.last_sign = time.monotonic()
