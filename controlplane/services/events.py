"""Events: writing them with the change they tell of, and the hints that wake whoever waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection

from controlplane.db import events as event_rows
from controlplane.domain.jobs import Job


class Hints:
    """Wakes what sleeps inside this process. A hint may be lost or needless; whoever waits polls as well.

    ``tell_others`` passes the topics on to other processes on the same database, where there may be any.
    """

    JOBS = "jobs"
    EVENTS = "events"
    PODS = "pods"
    WEBHOOKS = "webhooks"
    CANCELS = "cancels"
    """Held jobs were told to stop."""
    TOPICS = (JOBS, EVENTS, PODS, WEBHOOKS, CANCELS)

    def __init__(self, tell_others: Callable[..., None] | None = None) -> None:
        self._counts: Counter[str] = Counter()
        self._bells: dict[str, asyncio.Event] = {}
        self._calls: dict[str, list[Callable[[], None]]] = {}
        self._tell_others = tell_others

    def wake(self, *topics: str) -> None:
        """Say that something changed; call it from the event loop after the transaction. No topic means every topic."""
        self.ring(*topics)
        if self._tell_others is not None:
            self._tell_others(*(topics or self.TOPICS))

    def ring(self, *topics: str) -> None:
        """Wake this process only: what another one has told."""
        for topic in topics or self.TOPICS:
            self._counts[topic] += 1
            bell = self._bells.pop(topic, None)
            if bell is not None:
                bell.set()
            for call in self._calls.get(topic, ()):
                call()

    def on(self, topic: str, call: Callable[[], None]) -> None:
        """Call something quick at every wake of a topic, for those who wait for several things at once."""
        self._calls.setdefault(topic, []).append(call)

    def count(self, topic: str) -> int:
        """How often a topic was woken: take it before looking, hand it to ``wait``, and no hint in between is lost."""
        return self._counts[topic]

    async def wait(self, topic: str, seen: int, seconds: float) -> None:
        """Sleep until the topic was woken more often than ``seen`` times, at most so many seconds."""
        if self._counts[topic] != seen:
            return
        bell = self._bells.setdefault(topic, asyncio.Event())
        # asyncio.timeout, not wait_for: before Python 3.12 the latter loses a cancel that meets the bell.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await bell.wait()


def append(
    c: Connection,
    project_id: str,
    type: str,
    data: Mapping[str, Any],
    job_id: str | None = None,
    character_id: str | None = None,
    now: float | None = None,
) -> None:
    """Write an event in the transaction of the change it tells of. Wake the hints after the commit."""
    moment = time.time() if now is None else now
    event_rows.append(c, project_id, type, data, job_id, character_id, moment)


def append_of_job(c: Connection, job: Job, type: str, now: float, **data: Any) -> None:
    """Write an event of one job, with its id, kind, status and progress."""
    told = {"job_id": job.id, "kind": job.kind, "status": job.status, "progress": dict(job.progress), **data}
    append(c, job.project_id, type, told, job.id, job.character_id, now)
