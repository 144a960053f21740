"""A lock file on a disk that several machines share: it names its owner, shows a beat, and a dead owner loses it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


class LockLostError(RuntimeError):
    """Another owner took the lock, because this one gave no sign of life for too long."""


@dataclass(frozen=True)
class Patience:
    """Seconds between an owner's beats, until a silent owner counts as dead, and between looks while waiting.

    `dead` must be several beats: network disks show a change late.
    """

    beat: float = 15.0
    dead: float = 120.0
    poll: float = 2.0


@dataclass(frozen=True)
class Waiting:
    """What one who waits sees: who owns the lock, and for how long (seconds) its beat has not changed."""

    owner: str
    silent_seconds: float


class Held:
    """A lock in our hands. Its thread keeps beating until release."""

    def __init__(self, path: Path, descriptor: int, owner: str, patience: Patience) -> None:
        self._path = path
        self._descriptor = descriptor
        self._owner = owner
        self._beat_seconds = patience.beat
        self._released = threading.Event()
        self._lost = threading.Event()
        self._beats = 0
        self._beat()
        self._thread = threading.Thread(target=self._keep_beating, name=f"lock {path.name}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LockLostError once another owner has taken the lock."""
        if self._lost.is_set():
            raise LockLostError(f"{self._path.name} was taken over by another process")

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        if self._is_ours():
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _keep_beating(self) -> None:
        while not self._released.wait(self._beat_seconds):
            if not self._is_ours():
                self._lost.set()
                return
            with suppress(OSError):  # a disk that fails for a moment costs one beat, a dead one costs the lock
                self._beat()

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except OSError:
            return False

    def _beat(self) -> None:
        # Written through our own descriptor: after a take-over this touches a file that has no name any more.
        self._beats += 1
        body = json.dumps({"owner": self._owner, "beat": self._beats, "at": round(time.time(), 3)}).encode()
        os.pwrite(self._descriptor, body, 0)
        os.ftruncate(self._descriptor, len(body))
        os.fsync(self._descriptor)


@contextmanager
def hold(path: Path, patience: Patience, on_wait: Callable[[Waiting], None]) -> Iterator[Held]:
    """Hold the lock `path`; call `on_wait` at every look while another holds it: what it raises ends the wait."""
    held = _acquire(path, patience, on_wait)
    try:
        yield held
    finally:
        held.release()


def _acquire(path: Path, patience: Patience, on_wait: Callable[[Waiting], None]) -> Held:
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    seen: tuple[int, bytes] | None = None
    seen_since = time.monotonic()
    while True:
        try:
            # O_EXCL is atomic on local disks, on NFS since version 3 and on the FUSE disks pods are given.
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            pass
        else:
            try:
                return Held(path, descriptor, owner, patience)
            except OSError:  # a full disk takes no beat: nobody shall wait for this lock
                os.close(descriptor)
                path.unlink(missing_ok=True)
                raise
        now = _look(path)
        if now != seen:
            # Age is measured with our own clock from our own first sight: clocks of two machines may differ.
            seen, seen_since = now, time.monotonic()
        if now is None:
            continue
        silent = time.monotonic() - seen_since
        if silent > patience.dead:
            _bury(path, now[0])
            continue
        on_wait(Waiting(_owner_of(now[1]), silent))
        time.sleep(patience.poll)


def _look(path: Path) -> tuple[int, bytes] | None:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_ino, file.read(1024)
    except OSError:
        return None


def _owner_of(body: bytes) -> str:
    try:
        return str(json.loads(body)["owner"])
    except (ValueError, KeyError, TypeError):  # between creation and its first beat the file is empty
        return "an unnamed process"


def _bury(path: Path, inode: int) -> None:
    """Remove a dead owner's lock, unless somebody else was faster and the name now means a living one."""
    grave = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(grave)
    except FileNotFoundError:
        return
    if grave.stat().st_ino != inode:
        with suppress(OSError):  # where the disk cannot do this, the owner notices at its next beat and starts over
            os.link(grave, path)  # gives a living owner its name back
    grave.unlink(missing_ok=True)
