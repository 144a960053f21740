"""What went wrong under which prompt: the reasons of restarts, kept so that a lost prompt's owner can be told."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Code = Literal["zombie_worker", "hung", "died", "dead_device", "memory_limit", "drained"]

KEPT_INCIDENTS = 1000
KEPT_RESTARTS = 50
KEPT_PROMPTS = 10_000
TAIL_LINES = 60


@dataclass(frozen=True)
class Incident:
    """Why a prompt is lost: `at` is Unix time in seconds, the tail is ComfyUI's log up to then, newest line last."""

    code: Code
    detail: str
    at: float
    log_tail: tuple[str, ...] = ()

    def shown(self) -> dict[str, Any]:
        """As GET /troupe/agent lists it: without the log."""
        return {"at": self.at, "code": self.code, "detail": self.detail}


class Incidents:
    """The restarts of ComfyUI and the prompts each cost. Bounded: the oldest are forgotten."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, Incident] = OrderedDict()
        self._restarts: deque[Incident] = deque(maxlen=KEPT_RESTARTS)
        self.restart_count = 0

    def restarted(self, code: Code, detail: str, log_tail: Sequence[str]) -> Incident:
        """Notes that ComfyUI is restarted, and why."""
        incident = Incident(code, detail, time.time(), tuple(log_tail[-TAIL_LINES:]))
        self._restarts.append(incident)
        self.restart_count += 1
        return incident

    def lost(self, prompt_ids: Iterable[str], incident: Incident) -> None:
        """Notes which prompts are lost by it."""
        for prompt_id in prompt_ids:
            self._of[prompt_id] = incident
            self._of.move_to_end(prompt_id)
        while len(self._of) > KEPT_INCIDENTS:
            self._of.popitem(last=False)

    def under(self, prompt_id: str) -> Incident | None:
        """What happened under a prompt; None where nothing did, or too long ago."""
        return self._of.get(prompt_id)

    @property
    def last_restart(self) -> Incident | None:
        return self._restarts[-1] if self._restarts else None

    def restarts(self) -> list[Incident]:
        """Oldest first."""
        return list(self._restarts)


class Ledger:
    """Which prompts this pod was given through the proxy and has not been relieved of.

    A restart loses them all: what waits, what runs, and the results that nobody has collected yet.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, float | None] = OrderedDict()
        """Since when each has been seen finished (monotonic seconds), as far as anybody asked."""

    def took(self, prompt_id: str) -> bool:
        """A prompt was, or may have been, accepted. False where it was known before."""
        known = prompt_id in self._open
        self._open[prompt_id] = None
        while len(self._open) > KEPT_PROMPTS:
            self._open.popitem(last=False)
        return not known

    def relieved(self, prompt_ids: Iterable[str]) -> None:
        """These are somebody else's now: refused, taken back, or collected."""
        for prompt_id in prompt_ids:
            self._open.pop(prompt_id, None)

    def relieved_of_all(self) -> None:
        self._open.clear()

    def awaits(self, at: float, seconds: float) -> bool:
        """With nothing running or waiting: whether a result still waits for its owner, and not for too long."""
        for prompt_id, since in self._open.items():
            self._open[prompt_id] = at if since is None else since
        return any(since is not None and at - since < seconds for since in self._open.values())

    def open(self) -> list[str]:
        return list(self._open)
