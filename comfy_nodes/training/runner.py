"""One trainer process: started in its own group, read as it prints, stopped for certain with all its children."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ..guard import end_guard, start_guard
from .failure import TrainerError, diverged
from .progress import Event, LineSplitter, Step, events_in, is_bar

POLL_SECONDS = 0.25
TERM_GRACE_SECONDS = 5.0
KILL_GRACE_SECONDS = 3.0
LOG_LINES_KEPT = 200
# No step for this long, or for 20 steps' time, after the first one: the trainer hangs.
HUNG_SECONDS = 120.0
HUNG_STEPS = 20.0


_SECRET = re.compile(r"(?:^|_)(?:KEY|KEYS|TOKEN|SECRET|PASSWORD|CREDENTIALS)(?:_|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Command:
    """What to run: an argument list (never a shell), a folder to run in, additions to the environment."""

    argv: Sequence[str]
    cwd: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """How the trainer ended: its exit code, the end of its log, and the last step it told of."""

    returncode: int
    log: tuple[str, ...]
    last_step: Step | None


def run(
    command: Command,
    on_event: Callable[[Event], None],
    stop_reason: Callable[[], str | None],
    hung_seconds: float = HUNG_SECONDS,
) -> Finished:
    """Run the trainer to its end, calling `on_event` for what it prints, in the calling thread.

    `stop_reason` is asked four times a second. Raises TrainerError `cancelled` with its answer, `loss_diverged` at the
    first loss that is no number, `hung`, or `missing_interpreter`; whatever `on_event` raises passes through. However
    this function ends, the process group is gone.
    """
    process = _start(command)
    guard = start_guard(process.pid)
    lines: queue.Queue[str | None] = queue.Queue(maxsize=10_000)
    log: deque[str] = deque(maxlen=LOG_LINES_KEPT)
    readers = [_reader(stream, lines) for stream in (process.stdout, process.stderr) if stream is not None]
    try:
        watch = _Watch(hung_seconds)
        _follow(process, lines, log, watch, on_event, stop_reason, len(readers))
    finally:
        _end_group(process)
        end_guard(guard)
        _drain(readers, lines, log)
    returncode = -signal.SIGKILL if process.returncode is None else process.returncode
    return Finished(returncode, tuple(log), watch.last)


def _start(command: Command) -> subprocess.Popen[bytes]:
    # Unbuffered and wide: a block-buffered pipe would show nothing, rich would wrap at 80 columns.
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "COLUMNS": "200",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        **command.environment,
    }
    # The trainer has no business with the control plane, with the provider or with any store.
    environment = {name: value for name, value in environment.items() if not _SECRET.search(name)}
    try:
        return subprocess.Popen(
            list(command.argv),
            cwd=command.cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        detail = f"the trainer's interpreter cannot be started: {command.argv[0]}: {error.strerror}"
        raise TrainerError("missing_interpreter", detail) from error


class _Watch:
    """Notices a loss that is no number and a trainer that no longer steps."""

    def __init__(self, hung_seconds: float) -> None:
        self.last: Step | None = None
        self._least = hung_seconds
        self._moved = time.monotonic()

    def see(self, event: Event, log: deque[str]) -> None:
        if isinstance(event, Step):
            self._moved = time.monotonic() if self._is_new(event) else self._moved
            self.last = event
            if event.loss is not None and not math.isfinite(event.loss):
                raise diverged(list(log))

    def hear(self, line: str) -> None:
        """Anything but the bar is a sign of life: painting samples and saving take their time between two steps."""
        if not is_bar(line):
            self._moved = time.monotonic()

    def check(self, log: deque[str]) -> None:
        """Only from the first step on: loading a model may rightly take minutes in silence."""
        if self.last is None or self.last.step == 0:
            return
        patience = max(self._least, HUNG_STEPS * (self.last.seconds_per_step or 0.0))
        if time.monotonic() - self._moved > patience:
            raise TrainerError("hung", f"the trainer made no step for {patience:.0f} s", list(log))

    def _is_new(self, step: Step) -> bool:
        return self.last is None or step.step != self.last.step


def _follow(
    process: subprocess.Popen[bytes],
    lines: queue.Queue[str | None],
    log: deque[str],
    watch: _Watch,
    on_event: Callable[[Event], None],
    stop_reason: Callable[[], str | None],
    open_streams: int,
) -> None:
    """Until both streams are closed, or the process is gone and silent (a child of it may hold a stream open)."""
    next_look = 0.0
    while open_streams:
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + POLL_SECONDS
            reason = stop_reason()
            if reason is not None:
                raise TrainerError("cancelled", reason, list(log))
            watch.check(log)
        try:
            line = lines.get(timeout=POLL_SECONDS)
        except queue.Empty:
            if process.poll() is not None:
                return
            continue
        if line is None:
            open_streams -= 1
            continue
        log.append(line)
        watch.hear(line)
        for event in events_in(line):
            watch.see(event, log)
            on_event(event)
    # Both streams may be closed by a process that lives on: wait for it under the same watch.
    while process.poll() is None:
        reason = stop_reason()
        if reason is not None:
            raise TrainerError("cancelled", reason, list(log))
        watch.check(log)
        time.sleep(POLL_SECONDS)


def _reader(stream: IO[bytes], lines: queue.Queue[str | None]) -> threading.Thread:
    def read() -> None:
        splitter = LineSplitter()
        with contextlib.suppress(OSError, ValueError):  # the stream is closed under us when the group is ended
            while chunk := os.read(stream.fileno(), 65_536):
                for line in splitter.feed(chunk):
                    lines.put(line)
        for line in splitter.feed(b"", last=True):
            lines.put(line)
        lines.put(None)

    thread = threading.Thread(target=read, name="trainer-output", daemon=True)
    thread.start()
    return thread


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the whole group, 5 s, SIGKILL; also after a normal end, because a worker process may be left."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERM_GRACE_SECONDS)
    _signal_group(process.pid, signal.SIGKILL)
    # A process in an uninterruptible system call outlives even this for a while; it is beyond anybody's reach.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_GRACE_SECONDS)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _drain(readers: Sequence[threading.Thread], lines: queue.Queue[str | None], log: deque[str]) -> None:
    """Let the readers end and keep their last lines: the reason of a failure is often the very last one."""
    until = time.monotonic() + KILL_GRACE_SECONDS
    while any(thread.is_alive() for thread in readers) or not lines.empty():
        try:
            line = lines.get(timeout=0.05)
        except queue.Empty:
            if time.monotonic() > until:
                return
            continue
        if line is not None:
            log.append(line)
