"""Pruning: what is told of progress is dropped soon, events and ended deliveries after some days, in small bites."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from controlplane.db import events as event_rows
from controlplane.db import outbox
from controlplane.db import webhooks as webhook_rows
from controlplane.db.database import Database
from controlplane.ports import Clock
from controlplane.settings import Settings

BITE = 1000
"""Rows in one transaction, so that nobody waits long for its locks."""
PAUSE_SECONDS = 0.05
PROGRESS_SECONDS = 120.0
"""Progress of a finished job is kept so long, for readers that come back."""
DAY_SECONDS = 24 * 3600.0


class EventPruning:
    """Keeps the event log and the delivery log from growing for ever."""

    def __init__(self, db: Database, clock: Clock, settings: Settings) -> None:
        self._db = db
        self._clock = clock
        self._event_seconds = settings.event_days * DAY_SECONDS
        self._delivery_seconds = settings.webhook_delivery_days * DAY_SECONDS

    async def sweep(self) -> None:
        """Drop everything that is too old by now. Any number of processes may do so at once."""
        now = self._clock.now()
        await self._drop(event_rows.drop_progress, now - PROGRESS_SECONDS)
        await self._drop(event_rows.drop_older, now - self._event_seconds)
        await self._drop(outbox.drop_older, now - self._delivery_seconds)
        await self._db.write(webhook_rows.forget_previous_secrets, now)

    async def _drop(self, drop: Callable[..., Any], before: float) -> None:
        """Bite after bite, until there is nothing more."""
        more = True
        while more:
            more = bool(await self._db.write(drop, before, BITE))
            await asyncio.sleep(PAUSE_SECONDS if more else 0.0)
