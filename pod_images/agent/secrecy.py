"""Keeping the agent's memory and the environment it was started with from other processes of its user, ComfyUI's nodes
above all: Linux shows both in /proc to whoever runs as the same user."""

from __future__ import annotations

import ctypes
import sys

_PR_SET_DUMPABLE = 4


def hide_from_own_user() -> bool:
    """Whether only root may look from now on; children that start another program are as open as ever."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return int(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)) == 0
    except (OSError, AttributeError):  # a C library without it
        return False
