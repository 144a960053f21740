"""Durations: how long a job will take, judged by earlier ones, and how long one that runs still needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Key = tuple[str, str | None, str]
"""Template, base model and kind: what jobs must have in common to tell of each other."""

REMEMBERED = 32
"""So many of the newest jobs are judged by."""
ENOUGH = 3
"""With fewer, what the template says counts too."""
ALIKE = 2.0
"""Jobs of up to so many times the work are better witnesses than others: not everything grows with the work."""
PIXELS = 1_000_000
STEADINESS = 0.5
"""How much of the way a countdown goes at once to what is thought now."""
SURE_FRACTION = 0.5
"""From here on a job's own pace says everything."""


@dataclass(frozen=True)
class Took:
    """One job that was done: seconds on its pod, and how much work it was."""

    seconds: float
    work: float


def key_of(template: str, base_model: str | None, kind: str) -> Key:
    """What jobs are remembered by."""
    return template, base_model, kind


def work_of(request: Mapping[str, Any]) -> float:
    """How much work a request is, for comparison within its key: steps x count x frames x megapixels, where named.

    ``request`` is a job's: what its inputs came to stands in ``values``, a training's parameters in ``params``.
    """
    values = request.get("values") or request.get("params") or {}
    work = 1.0
    for name in ("steps", "count", "frames"):
        work *= _number(values.get(name))
    return work * _number(values.get("width")) * _number(values.get("height")) / PIXELS


def expected_seconds(remembered: Sequence[Took], work: float, told: float) -> float:
    """How long a job of so much work will take; ``told`` is what its template says, for want of anything better."""
    if not remembered or work <= 0:
        return told
    alike = [one for one in remembered if 1 / ALIKE <= one.work / work <= ALIKE]
    witnesses = alike if len(alike) >= ENOUGH else remembered
    seen = median(one.seconds / one.work for one in witnesses) * work
    weight = min(1.0, len(remembered) / ENOUGH)
    return weight * seen + (1.0 - weight) * told


@dataclass(frozen=True)
class Countdown:
    """What is left of a job that runs (seconds): by its history first, by its own pace more and more.

    It goes only part of the way to a new opinion at once, so that it does not jump about. ``at`` is when it was told.
    """

    expected: float
    left: float
    at: float

    @classmethod
    def begun(cls, expected: float, at: float) -> Countdown:
        """The countdown of a job that has just begun."""
        return cls(expected, expected, at)

    def after(self, now: float, elapsed: float, fraction: float) -> Countdown:
        """The countdown once ``fraction`` of the work is done, ``elapsed`` seconds after it began."""
        by_history = max(self.expected - elapsed, 0.0)
        by_pace = elapsed * (1.0 - fraction) / fraction if fraction > 0 else by_history
        # A job that takes longer than others did has only its own pace to go by.
        weight = 1.0 if by_history == 0.0 else min(1.0, fraction / SURE_FRACTION)
        thought = weight * by_pace + (1.0 - weight) * by_history
        foreseen = max(self.left - (now - self.at), 0.0)
        return Countdown(self.expected, foreseen + STEADINESS * (thought - foreseen), now)


def waiting_seconds(ahead: float, pods: int, busy: float, soonest: float) -> float | None:
    """A guess at how long a job waits for its pod; None where there is none for it.

    ``ahead``: seconds of work before it in its lane; ``pods`` could do it, have ``busy`` seconds of work in hand all
    together, and the first of them is free in ``soonest``.
    """
    if pods <= 0:
        return None
    return soonest if ahead <= 0 else max(soonest, (busy + ahead) / pods)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 else 1.0
