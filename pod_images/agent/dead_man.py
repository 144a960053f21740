"""The dead-man switch: how long the control plane has been silent, and whether that is too long."""

from __future__ import annotations

import time
from collections.abc import Callable


class DeadMan:
    """Starts to count at once: a pod that never reaches its control plane is as useless as one that lost it.

    Only what the control plane *took* is a sign of life. A control plane that refuses this pod, with a wrong join
    token for instance, will never give it work, and the pod bills all the same.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._heard = clock()

    def heard(self) -> None:
        """The control plane took a request."""
        self._heard = self._clock()

    def silent_seconds(self) -> float:
        return self._clock() - self._heard

    def expired(self) -> bool:
        return self.silent_seconds() >= self._seconds
