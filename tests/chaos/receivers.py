"""Receivers of webhooks: they check every signature, keep every id, and refuse or drop some messages at first."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from tests.chaos.proxy import Fault, Link

TYPES = ["job.queued", "job.retrying", "job.succeeded", "job.failed", "job.cancelled"]
SETTLE_SECONDS = 60.0
HURRY_SECONDS = 3.0


@dataclass
class Receiver:
    """One endpoint. ``refusals`` is the share of messages it refuses at their first try."""

    name: str
    refusals: float
    webhook_id: str = ""
    secret: str = ""
    arrived: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """(webhook-id, message) of every message that was answered with a 2xx."""
    refused: set[str] = field(default_factory=set)
    forged: list[str] = field(default_factory=list)


class Receivers:
    """All endpoints of a run, behind a link that may fail."""

    def __init__(self, seed: int) -> None:
        self.receivers = [Receiver("steady", 0.0), Receiver("choosy", 0.2)]
        self.faults: list[Fault] = []
        self.link: Link | None = None
        self._random = random.Random(f"receivers {seed}")

    @contextlib.asynccontextmanager
    async def open(self, door: str) -> AsyncIterator[Receivers]:
        """Listening, and known to the control planes (asked at ``door``)."""
        app = web.Application()
        app.router.add_post("/{name}", self._take)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        self.link = Link(lambda: ("127.0.0.1", port), self.faults)
        await self.link.start()
        try:
            async with aiohttp.ClientSession() as session:
                for one in self.receivers:
                    wanted = {"url": f"{self.link.url}/{one.name}", "types": TYPES}
                    async with session.post(f"{door}/webhooks", json=wanted) as response:
                        response.raise_for_status()
                        made = await response.json()
                    one.webhook_id, one.secret = made["webhook"]["id"], made["secret"]
            yield self
        finally:
            await self.link.stop()
            await runner.cleanup()

    async def settled(self, door: str) -> None:
        """Wait until nothing waits to be delivered; what would wait for minutes is asked for at once, by hand."""
        end = asyncio.get_running_loop().time() + SETTLE_SECONDS
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            for hurrying in range(int(SETTLE_SECONDS)):
                waiting = [one for receiver in self.receivers for one in await _waiting(session, door, receiver)]
                if not waiting or asyncio.get_running_loop().time() > end:
                    return
                if hurrying >= HURRY_SECONDS:
                    for path in waiting:
                        async with session.post(f"{door}{path}/redeliver"):
                            pass
                await asyncio.sleep(1.0)

    async def _take(self, request: web.Request) -> web.Response:
        receiver = next(one for one in self.receivers if one.name == request.match_info["name"])
        body, number = await request.read(), request.headers.get("webhook-id", "")
        try:
            Webhook(receiver.secret).verify(body, dict(request.headers))
        except WebhookVerificationError as error:
            receiver.forged.append(f"{number}: {error}")
        if number not in receiver.refused and self._random.random() < receiver.refusals:
            receiver.refused.add(number)
            return web.Response(status=503)
        receiver.arrived.append((number, json.loads(body)))
        return web.Response(status=204)


async def _waiting(session: aiohttp.ClientSession, door: str, receiver: Receiver) -> list[str]:
    """The paths of a receiver's deliveries that have not arrived, a page of them."""
    path = f"/webhooks/{receiver.webhook_id}/deliveries"
    async with session.get(f"{door}{path}?state=waiting&limit=100") as response:
        items = (await response.json())["items"]
    return [f"{path}/{one['id']}" for one in items]
