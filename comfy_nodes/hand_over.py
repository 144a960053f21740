"""Handing over what prompts made while the next one runs: encoding, ticket and PUT in threads of the process's own."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from . import state
from .control_plane import ControlPlane, Upload
from .transport import Lines, TransportError

log = logging.getLogger(__name__)

THREADS = 3
WAITING_BYTES = 512 << 20
"""What all waiting files may hold in memory; one that is larger waits for all others."""
KEPT_PROMPTS = 1000
FLUSH_SECONDS = 10.0
MAX_REASON_CHARACTERS = 500
STALE = "stale_attempt"
_LOOK_EVERY_SECONDS = 0.1

Pause = Callable[[float], None]


@dataclass
class Parcel:
    """One file on its way. `pack` encodes it and is let go then, with the pixels it holds; `weight` is bytes in memory.

    `reference` is this file's own name towards the control plane, and unlike every other's.
    """

    prompt_id: str
    reference: str
    link: ControlPlane
    weight: int
    pack: Callable[[], Upload] | None


@dataclass
class _Prompt:
    """The files of one prompt by reference: on their way, lost for good with the reason, and in the store."""

    pending: dict[str, None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stored: list[str] = field(default_factory=list)
    dropped: str = ""


class _DroppedError(RuntimeError):
    """Nobody waits for this file any more."""


class HandOver:
    """A bounded queue of files and the threads that empty it; what becomes of each is kept for a while."""

    def __init__(self, waiting_bytes: int = WAITING_BYTES, threads: int = THREADS) -> None:
        self._waiting_bytes = waiting_bytes
        self._thread_count = threads
        self._queue: deque[Parcel] = deque()
        self._prompts: OrderedDict[str, _Prompt] = OrderedDict()
        self._weight = 0
        self._pending = 0
        self._moved_at = time.monotonic()
        self._changed = threading.Condition()
        # One core at most goes into encoding: the worker needs the others to keep the GPU busy.
        self._encoding = threading.Lock()
        self._threads: list[threading.Thread] = []

    def add(self, parcel: Parcel, pause: Pause) -> None:
        """Take a file; waits while there is no room, and `pause` may raise meanwhile."""
        while not self._take(parcel):
            pause(0.0)

    def told(self, prompt_id: str) -> dict[str, Any]:
        """The answer of GET /troupe/uploads/{prompt_id}; of a prompt that is not known every list is empty."""
        with self._changed:
            prompt = self._prompts.get(prompt_id, _Prompt())
            return {
                "prompt_id": prompt_id,
                "pending": list(prompt.pending),
                "failed": [{"upload": one, "reason": reason} for one, reason in prompt.failed.items()],
                "stored": list(prompt.stored),
                "idle_seconds": round(time.monotonic() - self._moved_at, 3),
            }

    @property
    def pending(self) -> int:
        """How many files of all prompts are on their way."""
        with self._changed:
            return self._pending

    def drop(self, prompt_id: str, reason: str) -> None:
        """Let go of every file of a prompt that is still on its way."""
        with self._changed:
            prompt = self._prompts.get(prompt_id)
            if prompt is None:
                return
            prompt.dropped = reason
            for parcel in [one for one in self._queue if one.prompt_id == prompt_id]:
                self._queue.remove(parcel)
                self._settle(parcel, reason)

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until nothing is on its way any more, at most so long; whether that came true."""
        with self._changed:
            return self._changed.wait_for(lambda: self._pending == 0, seconds)

    def _take(self, parcel: Parcel) -> bool:
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_room(parcel), _LOOK_EVERY_SECONDS):
                return False
            prompt = self._prompts.setdefault(parcel.prompt_id, _Prompt())
            self._prompts.move_to_end(parcel.prompt_id)
            prompt.pending[parcel.reference] = None
            if self._pending == 0:
                self._moved_at = time.monotonic()
            self._pending += 1
            self._weight += parcel.weight
            self._queue.append(parcel)
            state.note_uploads(self._pending)
            self._forget_oldest()
            self._start()
            self._changed.notify_all()
        return True

    def _has_room(self, parcel: Parcel) -> bool:
        return self._weight == 0 or self._weight + parcel.weight <= self._waiting_bytes

    def _forget_oldest(self) -> None:
        over = len(self._prompts) - KEPT_PROMPTS
        if over > 0:
            for prompt_id in [one for one, prompt in self._prompts.items() if not prompt.pending][:over]:
                del self._prompts[prompt_id]

    def _start(self) -> None:
        if not self._threads:
            # ComfyUI ends with Ctrl-C; whoever ends it otherwise waits for `pending` before.
            atexit.register(self.flush)
            self._threads = [
                threading.Thread(target=self._work, name=f"troupe-upload-{number}", daemon=True)
                for number in range(self._thread_count)
            ]
            for thread in self._threads:
                thread.start()

    def _work(self) -> None:
        lines = Lines(self._beat)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                parcel = self._queue.popleft()
            reason = self._carried(parcel, lines)
            with self._changed:
                self._settle(parcel, reason)
            if reason:
                log.warning("a file of prompt %s was not stored: %s", parcel.prompt_id, reason)

    def _carried(self, parcel: Parcel, lines: Lines) -> str:
        """Encode and upload; the words for what kept it from being stored, empty where nothing did."""
        try:
            upload = self._packed(parcel)
            link = replace(parcel.link, exchange=lines.exchange)
            link.upload(parcel.prompt_id, upload, lambda seconds: self._pause(parcel, seconds))
        except _DroppedError as error:
            return str(error)
        except TransportError as error:
            if error.code == STALE:
                self.drop(parcel.prompt_id, str(error))
            return str(error)
        except BaseException as error:  # an encoder may raise anything, and whoever waits has to hear of it
            log.exception("a file of prompt %s could not be made", parcel.prompt_id)
            return f"{type(error).__name__}: {error}"
        return ""

    def _packed(self, parcel: Parcel) -> Upload:
        pack, parcel.pack = parcel.pack, None
        assert pack is not None
        with self._encoding:
            self._pause(parcel, 0.0)
            upload = replace(pack(), upload=parcel.reference)
        weight = len(upload.content) if isinstance(upload.content, bytes) else 0
        with self._changed:
            self._weight += weight - parcel.weight
            parcel.weight = weight
            self._changed.notify_all()
        self._beat()
        return upload

    def _pause(self, parcel: Parcel, seconds: float) -> None:
        """Wait between two tries; raises as soon as nobody waits for the file any more."""
        with self._changed:
            prompt = self._prompts[parcel.prompt_id]
            if self._changed.wait_for(lambda: prompt.dropped, seconds):
                raise _DroppedError(prompt.dropped)

    def _settle(self, parcel: Parcel, reason: str) -> None:
        prompt = self._prompts[parcel.prompt_id]
        del prompt.pending[parcel.reference]
        if reason:
            prompt.failed[parcel.reference] = reason[:MAX_REASON_CHARACTERS]
        else:
            prompt.stored.append(parcel.reference)
        self._weight -= parcel.weight
        self._pending -= 1
        self._moved_at = time.monotonic()
        state.note_uploads(self._pending)
        self._changed.notify_all()

    def _beat(self) -> None:
        self._moved_at = time.monotonic()


def _waiting_bytes() -> int:
    given = os.environ.get("TROUPE_UPLOAD_WAITING_BYTES", "").strip()
    return int(given) if given.isdecimal() else WAITING_BYTES


_hand_over: HandOver | None = None
_made = threading.Lock()


def hand_over() -> HandOver:
    """The one of this process."""
    global _hand_over
    with _made:
        if _hand_over is None:
            _hand_over = HandOver(_waiting_bytes())
        return _hand_over


def flush(seconds: float = FLUSH_SECONDS) -> bool:
    """Wait for what is on its way, at most so long; True where nothing is left."""
    return _hand_over is None or _hand_over.flush(seconds)
