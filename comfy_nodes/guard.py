"""A guard beside a child process: if we die, however that may be, the child's whole process group dies too."""

from __future__ import annotations

import subprocess
import sys

# Waits for the end of the process that started it, whatever ends that, even SIGKILL: then the pipe to it closes.
_GUARD = "import os, signal, sys; sys.stdin.buffer.read(); os.killpg(int(sys.argv[1]), signal.SIGKILL)"


def start_guard(group: int) -> subprocess.Popen[bytes]:
    """A tiny process that ends this group if we die: an orphan would hold the device and work on, for nobody."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def end_guard(guard: subprocess.Popen[bytes]) -> None:
    """Dismiss a guard whose group has ended."""
    guard.kill()  # before its pipe closes, or it would do its work
    guard.wait()
    if guard.stdin is not None:
        guard.stdin.close()
