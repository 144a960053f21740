"""Judging whether ComfyUI still works: pure functions from what was seen to a verdict, no process and no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .incidents import Code

LONG_SILENT = ("Load", "Save")
"""What the class names of nodes that read model files, or hand over what was made, have in common."""


@dataclass(frozen=True)
class WorkerState:
    """What GET /troupe/state said, as far as it is judged."""

    worker_alive: bool = True
    prompt_id: str | None = None
    node_id: str | None = None
    node_class: str | None = None
    beat_age_seconds: float | None = None
    seconds_per_step: float | None = None
    device_error: str | None = None
    rss_bytes: int = 0
    uploads_pending: int = 0
    """Files of finished prompts that are still on their way to the store."""


@dataclass(frozen=True)
class Snapshot:
    """One look: the time (monotonic seconds), the worker (None: no answer), and the prompts in the queue."""

    at: float
    worker: WorkerState | None
    running: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits, and nothing that was made is still on its way to the store."""
        return not self.running and not self.pending and not self.uploads_pending

    @property
    def uploads_pending(self) -> int:
        return 0 if self.worker is None else self.worker.uploads_pending


@dataclass(frozen=True)
class Limits:
    """How patient the judge is. `memory_bytes` 0 is no limit."""

    hung_seconds: float = 120.0
    hung_steps: float = 20.0
    silent_factor: float = 5.0
    """A node that reads or writes a big file gives no sign of life meanwhile, and cold volumes and lines are slow."""
    device_grace_seconds: float = 10.0
    """What a running prompt gets to fail by itself on a dead device, so that its own error is what is told."""
    collect_seconds: float = 4.0
    """What the owner of a prompt that failed so gets to read its history before the restart loses it."""
    memory_bytes: int = 0


@dataclass(frozen=True)
class Past:
    """What earlier looks left behind; times are those of the looks."""

    answered_at: float
    dead_looks: int = 0
    device_error_at: float | None = None
    unseen: tuple[str, float] | None = None
    """A prompt that runs by the queue's word while the worker does not know of it, and since when."""


@dataclass(frozen=True)
class Verdict:
    """ComfyUI must be restarted: why, in a word and in words, and under which prompt."""

    code: Code
    detail: str
    prompt_id: str | None = None


def worker_state(answer: Mapping[str, Any]) -> WorkerState:
    """Reads the answer of GET /troupe/state; what is missing or ill-typed is taken as unknown."""

    def number(name: str) -> float | None:
        value = answer.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def text(name: str) -> str | None:
        value = answer.get(name)
        return value if isinstance(value, str) and value else None

    return WorkerState(
        worker_alive=answer.get("worker_alive") is not False,
        prompt_id=text("prompt_id"),
        node_id=text("node_id"),
        node_class=text("node_class"),
        beat_age_seconds=number("beat_age_seconds"),
        seconds_per_step=number("seconds_per_step"),
        device_error=text("device_error"),
        rss_bytes=int(number("rss_bytes") or 0),
        uploads_pending=int(number("uploads_pending") or 0),
    )


def judge(past: Past, seen: Snapshot, limits: Limits) -> tuple[Past, Verdict | None]:
    """One look's verdict, and the past for the next look."""
    worker = seen.worker
    if worker is None:
        return past, _silent(past, seen, limits)
    since = seen.at if past.device_error_at is None else past.device_error_at
    now = replace(
        past,
        answered_at=seen.at,
        dead_looks=0 if worker.worker_alive else past.dead_looks + 1,
        device_error_at=None if worker.device_error is None else since,
        unseen=_unseen(past, seen, worker),
    )
    verdict = (
        _zombie(now, seen)
        or _dead_device(now, seen, worker, limits)
        or _hung(now, seen, worker, limits)
        or _too_fat(seen, worker, limits)
    )
    return now, verdict


def _silent(past: Past, seen: Snapshot, limits: Limits) -> Verdict | None:
    """HTTP that does not answer at all: its event loop is blocked, for longer than any model takes to load."""
    silence = seen.at - past.answered_at
    patience = limits.hung_seconds * limits.silent_factor
    if silence < patience:
        return None
    return Verdict("hung", f"ComfyUI's server has not answered for {silence:.0f} s", _first(seen.running))


def _zombie(past: Past, seen: Snapshot) -> Verdict | None:
    # Twice, because a thread may be seen dead in the instant in which ComfyUI ends in order.
    if past.dead_looks < 2:
        return None
    words = "the thread that executes prompts is dead while the server goes on taking them"
    return Verdict("zombie_worker", words, _first(seen.running))


def _dead_device(past: Past, seen: Snapshot, worker: WorkerState, limits: Limits) -> Verdict | None:
    if past.device_error_at is None:
        return None
    waited = seen.at - past.device_error_at
    patience = limits.device_grace_seconds if seen.running else limits.collect_seconds
    if waited < patience:
        return None
    words = f"the device can compute nothing any more: {worker.device_error}"
    return Verdict("dead_device", words, _first(seen.running))


def _hung(past: Past, seen: Snapshot, worker: WorkerState, limits: Limits) -> Verdict | None:
    if not worker.worker_alive:
        return None
    if past.unseen is not None:
        prompt_id, since = past.unseen
        silence, patience = seen.at - since, limits.hung_seconds * limits.silent_factor
        if silence >= patience:
            return Verdict("hung", f"a prompt has been running unseen for {silence:.0f} s", prompt_id)
    if worker.prompt_id is None or worker.beat_age_seconds is None:
        return None
    patience = patience_for(worker, limits)
    if worker.beat_age_seconds < patience:
        return None
    where = f"node {worker.node_id} ({worker.node_class})" if worker.node_id else "the running prompt"
    detail = f"{where} gave no sign of life for {worker.beat_age_seconds:.0f} s"
    return Verdict("hung", detail, worker.prompt_id)


def patience_for(worker: WorkerState, limits: Limits) -> float:
    """How long the running node may be silent: 120 s, or 20 of its own steps, or five times as long over files."""
    patience = max(limits.hung_seconds, limits.hung_steps * (worker.seconds_per_step or 0.0))
    moves_files = any(word in (worker.node_class or "") for word in LONG_SILENT)
    return patience * limits.silent_factor if moves_files else patience


def _too_fat(seen: Snapshot, worker: WorkerState, limits: Limits) -> Verdict | None:
    if not limits.memory_bytes or worker.rss_bytes <= limits.memory_bytes or not seen.idle:
        return None
    held, limit = worker.rss_bytes / 2**30, limits.memory_bytes / 2**30
    return Verdict("memory_limit", f"ComfyUI holds {held:.1f} GiB with nothing to do; the limit is {limit:.1f} GiB")


def _unseen(past: Past, seen: Snapshot, worker: WorkerState) -> tuple[str, float] | None:
    running = _first(seen.running)
    if running is None or worker.prompt_id is not None:
        return None
    return past.unseen if past.unseen is not None and past.unseen[0] == running else (running, seen.at)


def _first(prompt_ids: tuple[str, ...]) -> str | None:
    return prompt_ids[0] if prompt_ids else None
