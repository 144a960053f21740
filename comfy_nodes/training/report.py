"""Telling the control plane how a training goes, from a thread of its own, and hearing whether it is cancelled."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, replace

from ..control_plane import ControlPlane, ProgressReport
from ..transport import TransportError

INTERVAL_SECONDS = 1.0
# How long the end of a training waits for the last reports to be taken.
FLUSH_SECONDS = 3.0
MAX_NOTE_CHARACTERS = 500
# The control plane knows no such attempt, or another one is the job's by now.
_GONE = (404, 409, 410)


@dataclass(frozen=True)
class Standing:
    """How far the training is."""

    phase: str = "downloading"
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    eta_seconds: float | None = None


class ProgressReporter:
    """Sends the newest standing at most once a second; a lost report is replaced by the next, asset ids and notes are
    kept until they were taken.

    Use it as a context manager.
    """

    def __init__(self, link: ControlPlane, prompt_id: str, interval: float = INTERVAL_SECONDS) -> None:
        self._link = link
        self._prompt_id = prompt_id
        self._interval = interval
        self._standing = Standing()
        self._assets: deque[tuple[str, str]] = deque()
        self._notes: deque[str] = deque()
        self._seq = 0
        self._cancelled: str | None = None
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="training-report", daemon=True)

    @property
    def cancelled(self) -> str | None:
        """Why the training has to stop, or None."""
        return self._cancelled

    @property
    def standing(self) -> Standing:
        """What was told last."""
        return self._standing

    def tell(self, standing: Standing) -> None:
        """Replace what is sent next. Never waits for the network."""
        self._standing = standing

    def phase(self, phase: str) -> None:
        """Say that a phase begins; step and loss stay as they are."""
        self._standing = replace(self._standing, phase=phase, eta_seconds=None)

    def add_asset(self, kind: str, asset_id: str) -> None:
        """Tell of an uploaded `sample` or `checkpoint` with one of the next reports."""
        with self._lock:
            self._assets.append((kind, asset_id))

    def note(self, sentence: str) -> None:
        """Tell people something of the training that they should see; the job keeps it as a warning."""
        with self._lock:
            self._notes.append(sentence[:MAX_NOTE_CHARACTERS])

    def __enter__(self) -> ProgressReporter:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ending.set()
        self._thread.join(FLUSH_SECONDS)

    def _run(self) -> None:
        while not self._ending.wait(self._interval):
            self._send()
        for _ in range(max(len(self._assets), len(self._notes)) + 1):
            if not self._send():
                return

    def _send(self) -> bool:
        standing = self._standing
        with self._lock:
            asset = self._assets[0] if self._assets else None
            note = self._notes[0] if self._notes else None
        self._seq += 1
        report = ProgressReport(
            seq=self._seq,
            phase=standing.phase,
            step=standing.step,
            total_steps=standing.total_steps,
            loss=standing.loss,
            eta_seconds=standing.eta_seconds,
            sample_asset_id=asset[1] if asset and asset[0] == "sample" else None,
            checkpoint_asset_id=asset[1] if asset and asset[0] == "checkpoint" else None,
            note=note,
        )
        try:
            cancel = self._link.progress(self._prompt_id, report)
        except TransportError as error:
            if error.status in _GONE:
                self._cancelled = f"the control plane no longer wants this attempt: {error.detail}"
            return False
        with self._lock:
            if asset is not None:
                self._assets.popleft()
            if note is not None:
                self._notes.popleft()
        if cancel:
            self._cancelled = "the job was cancelled"
        return True
