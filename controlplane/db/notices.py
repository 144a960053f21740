"""Notices: how control planes on one PostgreSQL wake each other, by LISTEN and NOTIFY. Any notice may get lost."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from controlplane.db.postgresql import CONNECT_SECONDS, with_driver

if TYPE_CHECKING:  # the driver is an extra of the installation
    from psycopg import AsyncConnection

log = logging.getLogger(__name__)

CHANNEL = "troupe"
PAUSE_SECONDS = 0.02
"""Between two notices: notifying commits wait for each other on the whole server, and one wake serves for many."""
RECONNECT_SECONDS = 2.0


def notices_on(url: str) -> Notices | None:
    """The notices of a database that several processes may share; a SQLite file has one control plane."""
    return Notices(url) if with_driver(url).get_backend_name() == "postgresql" else None


class Notices:
    """One process's part in the conversation: ``tell`` the others, and hear them while ``run`` runs.

    Two connections of its own, outside of every transaction: a server that is slow to notify slows nothing else.
    """

    def __init__(self, url: str) -> None:
        """``url`` in SQLAlchemy's form."""
        parsed = with_driver(url)
        # Word by word: SQLAlchemy's URLs and libpq's differ in how they write spaces and plus signs.
        self._address: dict[str, Any] = {
            **parsed.translate_connect_args(username="user", database="dbname"),
            **{name: value if isinstance(value, str) else ",".join(value) for name, value in parsed.query.items()},
        }
        self._name = secrets.token_hex(4)
        self._untold: set[str] = set()
        self._bell = asyncio.Event()

    def tell(self, *topics: str) -> None:
        """Wake the other processes soon; call it from the event loop. Never waits, never fails."""
        self._untold.update(topics)
        self._bell.set()

    async def run(self, heard: Callable[..., None]) -> None:
        """Call ``heard(*topics)`` for what other processes tell (no topic: any), until cancelled.

        A lost connection is made anew.
        """
        import psycopg

        while True:
            try:
                async with AsyncExitStack() as stack:
                    listening = await stack.enter_async_context(await self._connected())
                    telling = await stack.enter_async_context(await self._connected())
                    await listening.execute(f"LISTEN {CHANNEL}")
                    heard()  # whatever was told before we listened
                    async with asyncio.TaskGroup() as both:
                        both.create_task(self._hear(listening, heard))
                        both.create_task(self._tell_on(telling))
            except* (psycopg.Error, OSError) as lost:
                log.info("no notices for a moment, polling goes on: %s", lost.exceptions[0])
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _connected(self) -> AsyncConnection:
        from psycopg import AsyncConnection

        return await AsyncConnection.connect(
            **{"connect_timeout": CONNECT_SECONDS, "application_name": "troupe notices", **self._address},
            autocommit=True,
        )

    async def _hear(self, connection: AsyncConnection, heard: Callable[..., None]) -> None:
        async for notice in connection.notifies():
            sender, *topics = notice.payload.split()
            if sender != self._name:
                heard(*topics)

    async def _tell_on(self, connection: AsyncConnection) -> None:
        while True:
            await self._bell.wait()
            self._bell.clear()
            topics, self._untold = self._untold, set()
            await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, " ".join([self._name, *sorted(topics)])))
            await asyncio.sleep(PAUSE_SECONDS)
