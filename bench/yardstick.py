"""How fast this machine is just now: CPU time of a fixed piece of work, for comparing runs on a shared machine.

A core that somebody else's hardware thread or host shares does less per CPU second; figures from two runs compare only
by what the yardstick took beside each.
"""

from __future__ import annotations

import json
import time

PIECES = 40
_DOCUMENT = {"items": [{"id": f"job_{number}", "values": [number, 1.5, "text", None]} for number in range(10)]}


def milliseconds() -> float:
    """CPU time of the piece of work, in ms (about 1)."""
    began = time.thread_time()
    for _ in range(PIECES):
        json.loads(json.dumps(_DOCUMENT))
    return 1000 * (time.thread_time() - began)
