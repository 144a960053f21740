"""How much main memory there is for this container or machine."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_of_this_machine() -> int:
    """Bytes: the container's limit where it has one below the machine's memory, 0 where nobody says."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        machine = 0
    for path in _CGROUP_LIMITS:
        try:
            limit = int(path.read_text())
        except (OSError, ValueError):  # absent, or "max"
            continue
        return min(limit, machine) if machine else limit
    return machine
