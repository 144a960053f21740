"""The sender put together for tests: a real database, real HTTP, bodies that show what events tell."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from controlplane.domain.addresses import any_address
from controlplane.domain.events import Event
from controlplane.domain.webhooks import Delivery, Webhook
from controlplane.internet import WebhookPoster
from controlplane.services.events import append
from controlplane.services.webhook_bodies import message
from controlplane.services.webhook_sending import WebhookSender
from controlplane.services.webhooks import Webhooks
from tests.services.engine import PROJECT, Engine, engine

GIVE_UP_SECONDS = 5 * 24 * 3600.0


class EventBodies:
    """Bodies of what the event itself tells."""

    async def of(self, event: Event) -> str:
        return message(event.type, event.created_at, dict(event.data))


@dataclass
class Room:
    """An engine with webhooks."""

    engine: Engine
    webhooks: Webhooks
    poster: WebhookPoster
    sender: WebhookSender
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run the sender."""
        self._task = asyncio.create_task(self.sender.run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def happen(self, *types: str, **data: Any) -> None:
        """Let something happen: one transaction."""

        def write(c: Connection) -> None:
            for type_ in types:
                append(c, PROJECT, type_, data)

        await self.engine.db.write(write)
        self.engine.hints.wake()

    async def hook(self, url: str, *types: str) -> Webhook:
        return await self.webhooks.create(PROJECT, url, types or ("job.succeeded",))

    async def deliveries(self, webhook: Webhook) -> list[Delivery]:
        """What there is for a webhook, oldest first."""
        page = await self.webhooks.deliveries(PROJECT, webhook.id, limit=100)
        return list(reversed(page.items))

    async def reached(
        self, webhook: Webhook, true: Callable[[list[Delivery]], object], seconds: float = 60.0
    ) -> list[Delivery]:
        """The deliveries once something holds of them."""
        end = time.monotonic() + seconds
        while not true(found := await self.deliveries(webhook)):
            assert time.monotonic() < end, [(one.state, one.attempts) for one in found]
            await asyncio.sleep(0.02)
        return found


def all_are(state: str, number: int = 1) -> Callable[[list[Delivery]], bool]:
    return lambda found: len(found) == number and all(one.state == state for one in found)


@contextlib.asynccontextmanager
async def room(folder: Path, *, private: bool = True, **values: Any) -> AsyncIterator[Room]:
    """A room whose sender is not running yet; ``private`` lets it send to loopback."""
    seconds = values.pop("post_seconds", 15.0)
    async with engine(folder, webhook_private=private, **values) as made:
        poster, give_up = WebhookPoster(any_address, seconds=seconds), GIVE_UP_SECONDS
        sender = WebhookSender(made.db, made.clock, made.hints, poster, EventBodies(), give_up)  # type: ignore[arg-type]
        found = Room(made, Webhooks(made.db, made.clock, made.hints, made.settings), poster, sender)
        try:
            yield found
        finally:
            await found.stop()
            await poster.close()
