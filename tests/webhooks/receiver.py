"""Somebody who is told things: a real HTTP server that verifies, remembers, and answers as it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from standardwebhooks import Webhook, WebhookVerificationError


@dataclass(frozen=True)
class Got:
    """One message as it came."""

    id: str
    headers: dict[str, str]
    body: bytes

    def verified(self, secret: str) -> Any:
        """What it says; WebhookVerificationError where the signature is not by this secret."""
        return Webhook(secret).verify(self.body, self.headers)

    def is_signed_by(self, secret: str) -> bool:
        try:
            self.verified(secret)
        except WebhookVerificationError:
            return False
        return True


@dataclass
class Receiver:
    """What came, and what is answered: ``answers`` in turn, then ``status``."""

    url: str = ""
    status: int = 200
    text: str = "thanks"
    headers: dict[str, str] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)
    got: list[Got] = field(default_factory=list)
    held: asyncio.Event | None = None
    most_at_once: int = 0
    _at_once: int = 0

    @property
    def ids(self) -> list[str]:
        return [one.id for one in self.got]

    async def take(self, request: web.Request) -> web.Response:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            body = await request.read()
            self.got.append(Got(request.headers["webhook-id"], dict(request.headers), body))
            if self.held is not None:
                await self.held.wait()
            status = self.answers.pop(0) if self.answers else self.status
            return web.Response(status=status, text=self.text, headers=self.headers)
        finally:
            self._at_once -= 1


@contextlib.asynccontextmanager
async def receiver(**values: Any) -> AsyncIterator[Receiver]:
    """A receiver on loopback."""
    made = Receiver(**values)
    app = web.Application()
    app.router.add_post("/hook", made.take)
    async with TestServer(app) as server:
        made.url = str(server.make_url("/hook"))
        try:
            yield made
        finally:
            if made.held is not None:
                made.held.set()
