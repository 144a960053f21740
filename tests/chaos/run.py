"""One chaos run from its first request to its audit."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.chaos.audit import Findings, audited
from tests.chaos.clients import Clients
from tests.chaos.points import Prelude
from tests.chaos.receivers import Receivers
from tests.chaos.shape import Shape, Wishes
from tests.chaos.strikes import Director, Tally
from tests.chaos.world import SWEEP_SECONDS, World, pods_joined, world

SETTLE_SECONDS = 90.0
"""How long after the last strike it may take until the next job ends."""
PARTING_SECONDS = 30.0
MOST_TRAININGS = 3
"""At a time, of those that strikes ask for."""
AHEAD_PAUSE_SECONDS = 0.2
"""Between two requests while there are more strikes left than jobs to go with them."""
LONGEST_RUN_SECONDS = 3600.0


@dataclass
class Outcome:
    """How a run went. ``deaths`` by program."""

    shape: Shape
    findings: Findings
    tally: Tally
    seconds: float
    deaths: dict[str, int] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    @property
    def is_good(self) -> bool:
        return not self.findings.violations


async def chaos(shape: Shape, folder: Path) -> Outcome:
    """Run the jobs of a shape through everything that can fail, then count. NoServer where there is no PostgreSQL."""
    began = time.monotonic()
    async with world(shape, folder) as made:
        await pods_joined(made, len(made.pods))
        clients = Clients([door.url for door in made.doors], shape.seed)
        async with Receivers(shape.seed).open(made.doors[0].url) as receivers, clients.connected():
            tally = await _struck(made, clients, receivers)
            await receivers.settled(made.doors[0].url)
            await asyncio.sleep(shape.grace + 3 * SWEEP_SECONDS)
            findings = await audited(made, clients.ledger, receivers)
        deaths = {program.name: program.deaths for program in (*made.servers, *made.pods)}
        if made.database is not None:
            deaths["database server"] = made.database.deaths
        return Outcome(shape, findings, tally, time.monotonic() - began, deaths, made.seen())


async def _struck(made: World, clients: Clients, receivers: Receivers) -> Tally:
    """Ask for every job while every strike is made; ask for more where strikes are left."""
    shape, wishes = made.shape, Wishes(made.shape)
    wanted: set[asyncio.Task[None]] = set()

    def want(**changes: object) -> None:
        wish = replace(wishes.next(), **changes)  # type: ignore[arg-type]
        task = asyncio.create_task(clients.want(wish))
        wanted.add(task)

    async def ask(prelude: Prelude) -> None:
        if prelude == "training" and clients.training() < MOST_TRAININGS:
            want(training=True, cancel_after=None, twin=False)
        elif prelude == "cancel":
            want(training=False, seconds=5.0, cancel_after=0.2, cancelled_at_work=True, again=False)
        elif prelude == "long":
            for _ in made.pods:
                want(training=False, seconds=1.5, cancel_after=None, again=False)
        elif prelude == "stream":
            want(training=False, streamed=True, cancel_after=None)

    director = Director(made, ask, receivers.faults)
    striking = asyncio.create_task(director.run())
    end = time.monotonic() + LONGEST_RUN_SECONDS
    while (wishes.made < shape.jobs or not striking.done()) and time.monotonic() < end:
        await clients.room(shape.outstanding)
        want()
        is_ahead = wishes.made / shape.jobs > 1.0 - director.left / max(1, director.total)
        await asyncio.sleep(AHEAD_PAUSE_SECONDS if is_ahead else 0.0)
        if striking.done() and (error := striking.exception()) is not None:
            raise error
    await striking
    await _settled(made, clients)
    # Who still waits for a job that never ends is sent home; the audit tells of the job.
    _, waiting = await asyncio.wait(wanted, timeout=PARTING_SECONDS)
    for task in waiting:
        task.cancel()
    for failed in await asyncio.gather(*wanted, return_exceptions=True):
        if isinstance(failed, Exception):
            raise failed
    return director.tally


async def _settled(made: World, clients: Clients) -> None:
    """Wait until every accepted job has ended; the audit tells which have not."""
    for server in made.servers:
        await server.ready()
    ended, since = 0, time.monotonic()
    while clients.outstanding() and time.monotonic() - since < SETTLE_SECONDS:
        await clients.room(clients.outstanding())
        if len(clients.ledger.final) != ended:
            ended, since = len(clients.ledger.final), time.monotonic()
