"""Taking back: which prompts that wait on a pod are wanted elsewhere, because a pod that could do them is idle."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import islice

from controlplane.domain.placement import TRAIN
from controlplane.domain.pods import CAPACITY, Load
from controlplane.services.fleet import Fleet
from controlplane.services.holding import Held

LOOKED_AT = 32
"""On so many pods one look searches."""
WORTH_SECONDS = 1.0
"""A prompt that would wait less than this, by estimate, is left where it is."""


def to_take_back(fleet: Fleet, held: Mapping[str, Held], now: float) -> list[Held]:
    """Of the jobs in this process's hands those to fetch back; call it only when nothing waits that idle pods could do.

    One that got behind a training - two processes may have placed them at the same moment - is fetched in any case.
    """
    wanted: list[Held] = []
    used: set[str] = set()
    for load in islice(fleet.stacked, LOOKED_AT):
        for position in range(CAPACITY, len(load.live)):
            one = held.get(load.live[position].job_id)
            if one is None or not _may_be_waiting(one, load.live[position].attempt_id):
                continue
            if any(before.kind == TRAIN for before in load.live[:position]):
                wanted.append(one)
            elif _wait(load, position, now) >= WORTH_SECONDS:
                idle = fleet.idle_for(one.job, {load.pod_id, *used})
                if idle is not None:
                    used.add(idle.id)
                    wanted.append(one)
    return wanted


def _may_be_waiting(held: Held, attempt_id: str) -> bool:
    """Whether this is its first try - one that failed somewhere may not like the idle pod - not begun that we know."""
    known = held.order is None and held.attempt.id == attempt_id and not held.in_doubt
    return known and held.attempt.number == 1 and not held.begun and time.monotonic() >= held.stays_until


def _wait(load: Load, position: int, now: float) -> float:
    """How many seconds of work are before a place on a pod, by estimate."""
    return load.rest(now) - sum(one.estimate_seconds for one in load.live[position:])
