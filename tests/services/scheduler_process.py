"""A scheduler in a process of its own that dies, without any goodbye, at the step named on its command line."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from controlplane.domain.jobs import Attempt, Job, JobResult
from controlplane.ports import PodAddress, Provider, Update, Work
from tests.services.engine import engine

KILLED = 9


def die() -> None:
    """End this process as kill -9 would: no handlers, no flushes, no finally."""
    os._exit(KILLED)


class DyingProvider:
    """The real provider, with a death at one step."""

    def __init__(self, real: Provider, step: str) -> None:
        self._real = real
        self._step = step

    def client_id(self, pod: PodAddress) -> str:
        return self._real.client_id(pod)

    async def start(self, work: Work) -> None:
        if self._step == "attempt row":
            die()
        await self._real.start(work)
        if self._step == "post":
            die()

    async def follow(self, work: Work) -> AsyncIterator[Update]:
        async for update in self._real.follow(work):
            if self._step == "history" and update.kind == "succeeded":
                die()
            yield update
            if self._step == "running" and update.kind in ("running", "progress"):
                die()

    async def cancel(self, work: Work) -> bool:
        return await self._real.cancel(work)

    async def withdraw(self, work: Work) -> bool:
        return await self._real.withdraw(work)

    async def forget(self, work: Work) -> None:
        if self._step == "commit":
            die()
        await self._real.forget(work)

    async def probe(self, pod: PodAddress) -> bool:
        return await self._real.probe(pod)

    async def log_tail(self, pod: PodAddress) -> Sequence[str]:
        return await self._real.log_tail(pod)


async def verify_and_die(job: Job, outputs: Mapping[str, Any], ask: object) -> list[str]:
    """Die while the outputs are checked."""
    die()
    return []


def complete_and_die(c: Connection, job: Job, attempt: Attempt, outputs: Mapping[str, Any], now: float) -> JobResult:
    """Die in the middle of the transaction that stores the outcome."""
    die()
    return JobResult({})


async def main(folder: Path, step: str) -> None:
    """Work on the database in ``folder`` until the step comes."""
    async with engine(folder) as room:
        room.provider = DyingProvider(room.provider, step)
        if step == "verify":
            room.hooks = dataclasses.replace(room.hooks, verify=verify_and_die)
        if step == "transaction":
            room.hooks = dataclasses.replace(room.hooks, complete={"image": complete_and_die})
        room.start()
        await asyncio.sleep(300)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
