"""Failpoints: named steps at which the chaos harness may kill, stall, cut or repeat; off unless TROUPE_FAILPOINTS says.

``TROUPE_FAILPOINTS`` holds entries separated by ``;`` - or, beginning with ``/``, names a file with one entry a line,
which is read again whenever it changes, so that a running process can be armed. An entry is ``<kind> <name>`` or
``<kind>@<n> <name>`` for the n-th arrival in a process; equal entries of a file are told apart by ``#<tag>`` behind
them. Each entry fires once: of a file, once among all processes that were given it and those started later, as
``<file>.fired`` keeps a line of JSON (``entry, kind, name, pid, at``), on disk before anything happens.
``<file>.seen`` gathers the names that were reached at all.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

ENVIRONMENT = "TROUPE_FAILPOINTS"

Kind = Literal["kill", "stall", "cut", "duplicate"]
"""SIGKILL to ourselves; SIGSTOP to ourselves, until somebody continues us; raise ``Cut``; do it twice."""

KINDS: tuple[str, ...] = get_args(Kind)


class Cut(ConnectionError):
    """A connection that broke at a failpoint."""


@dataclass(frozen=True)
class Entry:
    """One thing that is to happen once."""

    text: str
    kind: str
    name: str
    arrival: int = 1

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Read ``<kind>[@<n>] <name> [#<tag>]``. ValueError."""
        told, _, rest = text.strip().partition(" ")
        kind, _, arrival = told.partition("@")
        name = rest.partition("#")[0].strip()
        if kind not in KINDS or not name:
            raise ValueError(f"not a failpoint: {text!r}; write <kind> <name>, with a kind of {', '.join(KINDS)}")
        return cls(text.strip(), kind, name, int(arrival or 1))


class Failpoints:
    """What is armed, and what of it has fired."""

    def __init__(self, spec: str) -> None:
        """``spec`` as described for the module. ValueError for entries that cannot be read."""
        self._file = Path(spec) if spec.startswith("/") else None
        self._lock = threading.Lock()
        self._entries: tuple[Entry, ...] = () if self._file else _parse(spec.split(";"))
        self._version: tuple[int, int, int] | None = None
        self._arrivals: dict[str, int] = {}
        self._fired: set[str] = set()
        self._seen: set[str] = set()

    def take(self, name: str, kinds: tuple[str, ...]) -> str | None:
        """The kind of what is to happen here now, noted as fired; None where nothing is."""
        with self._lock:
            self._note_seen(name)
            for entry in self._armed():
                if entry.name != name or entry.kind not in kinds or entry.text in self._fired:
                    continue
                self._arrivals[entry.text] = self._arrivals.get(entry.text, 0) + 1
                if self._arrivals[entry.text] >= entry.arrival and self._is_ours(entry):
                    return entry.kind
        return None

    def _armed(self) -> tuple[Entry, ...]:
        if self._file is not None:
            try:
                state = self._file.stat()
            except FileNotFoundError:
                return ()
            version = (state.st_ino, state.st_mtime_ns, state.st_size)
            if version != self._version:
                self._entries = _parse(self._file.read_text(encoding="utf-8").splitlines())
                self._version = version
        return self._entries

    def _is_ours(self, entry: Entry) -> bool:
        """Note the entry as fired; False where another process was faster."""
        self._fired.add(entry.text)
        if self._file is None:
            return True
        line = {"entry": entry.text, "kind": entry.kind, "name": entry.name, "pid": os.getpid(), "at": time.time()}
        with open(f"{self._file}.fired", "a+", encoding="utf-8") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            log.seek(0)
            if any(json.loads(one)["entry"] == entry.text for one in log):
                return False
            log.write(json.dumps(line) + "\n")
            log.flush()
            os.fsync(log.fileno())
        return True

    def _note_seen(self, name: str) -> None:
        if self._file is not None and name not in self._seen:
            self._seen.add(name)
            with open(f"{self._file}.seen", "a", encoding="utf-8") as log:
                log.write(name + "\n")


def _parse(lines: list[str]) -> tuple[Entry, ...]:
    return tuple(Entry.parse(line) for line in lines if line.strip())


_points = Failpoints(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None
ON = _points is not None
"""Whether this process has failpoints at all; where it is False, each of the functions below does nothing."""


def reach(name: str) -> None:
    """Say that this step is reached: the process may die or stop here, or ``Cut`` is raised."""
    if ON:
        _happen(name)


async def areach(name: str) -> None:
    """The same as ``reach``, on the event loop."""
    if ON:
        _happen(name)


def twice(name: str) -> bool:
    """Whether what ``name`` names is to be done twice, as by a network that repeats."""
    return ON and _points is not None and _points.take(name, ("duplicate",)) is not None


def _happen(name: str) -> None:
    kind = _points.take(name, ("kill", "stall", "cut")) if _points is not None else None
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stall":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "cut":
        raise Cut(f"The connection was cut: {name}.")
