"""Strikes: one failpoint made to fail in one of its ways while it is in use, and what follows from that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tests.chaos.points import Point, Prelude, points_of
from tests.chaos.programs import Program
from tests.chaos.proxy import Fault, Link, Pipe
from tests.chaos.world import World

PATIENCE_SECONDS = 20.0
"""How long a strike waits for its point to be reached."""
UNKNOWN_SECONDS = 8.0
"""The same for a failpoint that no control plane has passed yet."""
PREPARE_SECONDS = 3.0
LOOK_SECONDS = 0.05
AWAY_SECONDS = 1.5
SLOW, SLOW_SECONDS = "slow", 1.5
DEATH_SECONDS = 0.3
"""After this a death is noticed."""
ROUNDS = 3
"""How often a strike that was never reached is tried again."""

Ask = Callable[[Prelude], Awaitable[None]]
"""Makes the clients do what a point needs to be reached."""


@dataclass
class Tally:
    """What has fired, by title and kind. ``late`` are strikes whose point was not reached in time, in any round."""

    fired: Counter[tuple[str, str]] = field(default_factory=Counter)
    late: list[tuple[str, str]] = field(default_factory=list)


class Director:
    """Works through every strike of a run, a few at a time, in an order given by the seed."""

    def __init__(self, world: World, ask: Ask, receiver_faults: list[Fault]) -> None:
        self.tally = Tally()
        self._world = world
        self._ask = ask
        self._faults = {
            "clients": world.client_faults,
            "halls": world.hall_faults,
            "pods": world.pod_faults,
            "receivers": receiver_faults,
        }
        self._random = random.Random(f"strikes {world.shape.seed}")
        self._armed: dict[int, str] = {}
        self._numbers = 0
        shape = world.shape
        once = [
            (point, kind)
            for point in points_of(shape.database)
            for kind in point.kinds
            if shape.wants(point.step, point.title, kind)
        ]
        # Each once before any is made again; the last ones are made first.
        self._strikes = [one for _ in range(shape.times) for one in self._random.sample(once, len(once))]
        self._end = time.monotonic() + 60.0 * shape.minutes
        self.total = len(self._strikes)
        self._alone = asyncio.Lock()
        self._dying = asyncio.Lock()

    @property
    def left(self) -> int:
        """How many strikes have not been tried to their end."""
        return self.total - self.tally.fired.total() - len(self.tally.late)

    async def run(self) -> None:
        """Strike until everything has fired, or was tried often enough."""
        for number in range(ROUNDS):
            missed: list[tuple[Point, str]] = []
            await asyncio.gather(*(self._lane(missed) for _ in range(self._world.shape.lanes)))
            self._strikes = [*self._strikes, *missed]
            if not missed or number == ROUNDS - 1 or time.monotonic() > self._end:
                break
        self.tally.late = [(point.title, kind) for point, kind in self._strikes]

    async def _lane(self, missed: list[tuple[Point, str]]) -> None:
        while self._strikes and time.monotonic() < self._end:
            point, kind = self._strikes.pop()
            began = time.monotonic()
            fired = await self._strike(point, kind)
            if fired:
                self.tally.fired[(point.title, kind)] += 1
            else:
                missed.append((point, kind))
            self._note(f"{kind} {point.title}: {'fired' if fired else 'missed'} in {time.monotonic() - began:.1f} s")

    def _note(self, line: str) -> None:
        with (self._world.folder / "strikes.log").open("a", encoding="utf-8") as log:
            log.write(f"{time.time():.1f} {line}\n")

    async def _strike(self, point: Point, kind: str) -> bool:
        if point.where == "world":
            await self._strike_world(point.name, kind)
            return True
        if point.where == "inside":
            return await self._strike_inside(point, kind)
        return await self._strike_on_the_way(point, kind)

    async def _prepare(self, prelude: Prelude) -> None:
        world = self._world
        if prelude == "pod dies":
            async with self._dying:  # one at a time, and each is up again before the next
                pod = self._random.choice(world.pods[: world.shape.picture_pods])
                await pod.ready()
                await self._ask("long")
                await asyncio.sleep(0.3)
                await pod.kill()
                await pod.ready()
        elif prelude == "slow file":
            faults = self._faults["halls"]
            faults[:] = [one for one in faults if one.how != SLOW]
            faults.append(Fault(re.compile("^PUT /files/"), SLOW, SLOW_SECONDS))
        elif prelude == "server dies":
            await self._ask("long")
            await asyncio.sleep(0.5)
            await self._random.choice(world.servers).kill()
            await asyncio.sleep(0.7 * world.shape.lease)
        elif prelude:
            await self._ask(prelude)

    async def _strike_inside(self, point: Point, kind: str) -> bool:
        if point.prelude == "server dies":
            await self._prepare(point.prelude)  # first, as a look for what is left behind passes there as well
        number = self._numbers = self._numbers + 1
        entry = f"{kind} {point.name} #{number}"
        self._arm(number, entry)
        try:
            is_known = point.prelude or point.name in self._world.seen()
            patience = PATIENCE_SECONDS if is_known else UNKNOWN_SECONDS
            pid = await self._reached(point, lambda: self._pid_of(entry), patience)
        finally:
            self._arm(number, None)
        pid = pid or self._pid_of(entry)
        if pid is None:
            return False
        if kind == "stall":
            await asyncio.sleep(self._world.shape.stall)
            self._go_on(pid)
        elif kind == "kill":
            await asyncio.sleep(DEATH_SECONDS)
            await asyncio.gather(*(server.ready() for server in self._world.servers))
        return True

    async def _reached(
        self, point: Point, look: Callable[[], int | None], patience: float = PATIENCE_SECONDS
    ) -> int | None:
        end = time.monotonic() + patience * (3 if point.prelude else 1)
        preparing = asyncio.create_task(self._prepare_again_and_again(point.prelude))
        try:
            while time.monotonic() < end:
                if (found := look()) is not None:
                    return found
                await asyncio.sleep(LOOK_SECONDS)
            return None
        finally:
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)

    async def _prepare_again_and_again(self, prelude: Prelude) -> None:
        while prelude and prelude != "server dies":
            await self._prepare(prelude)
            await asyncio.sleep(PREPARE_SECONDS)

    def _arm(self, number: int, entry: str | None) -> None:
        if entry is None:
            self._armed.pop(number, None)
        else:
            self._armed[number] = entry
        scratch = self._world.armed.with_suffix(".part")
        scratch.write_text("".join(f"{one}\n" for one in self._armed.values()), encoding="utf-8")
        scratch.replace(self._world.armed)

    def _pid_of(self, entry: str) -> int | None:
        return next((int(str(one["pid"])) for one in self._world.fired() if one["entry"] == entry), None)

    def _go_on(self, pid: int) -> None:
        if any(server.pid == pid for server in self._world.servers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _strike_on_the_way(self, point: Point, kind: str) -> bool:
        world = self._world
        faults = self._faults[point.where]
        hit: list[Program] = []

        async def kill(link: Link) -> None:
            owner = link.owner if isinstance(link.owner, Program) else self._random.choice(world.pods)
            hit.append(owner)
            await owner.kill()

        side = "after" if point.after else "before"
        how = {"kill": f"call {side}", "cut": f"cut {side}"}.get(kind, kind)
        fault = Fault(re.compile(point.name), how, world.shape.stall if kind == "stall" else 0.0, kill)
        faults.append(fault)
        try:
            reached = await self._reached(point, lambda: 1 if fault.fired.is_set() else None)
        finally:
            faults.remove(fault)
        if not reached and not fault.fired.is_set():
            return False
        for program in hit:
            await program.ready()
        return True

    async def _strike_world(self, name: str, kind: str) -> None:
        await asyncio.sleep(self._random.uniform(0.0, 1.0))
        async with self._alone:
            await self._world_strikes()[(name, kind)]()

    def _world_strikes(self) -> dict[tuple[str, str], Callable[[], Awaitable[object]]]:
        world, stall = self._world, self._world.shape.stall

        async def cut(links: Sequence[Link | Pipe]) -> None:
            for link in links:
                link.cut_all()

        async def kill(programs: list[Program]) -> None:
            one = self._random.choice(programs)
            await one.kill()
            await one.ready()

        strikes: dict[tuple[str, str], Callable[[], Awaitable[object]]] = {
            ("a control plane", "kill"): lambda: kill(world.servers),
            ("a control plane", "stall"): lambda: self._random.choice(world.servers).stall(stall),
            ("a pod", "kill"): lambda: kill(world.pods),
            ("a pod", "stall"): lambda: self._random.choice(world.pods).stall(stall),
            ("connections of clients", "cut"): lambda: cut(world.doors),
            ("connections to pods", "cut"): lambda: cut(world.pod_links),
            ("the files' folder", "cut"): self._take_files_away,
        }
        if (database := world.database) is not None and (pipe := world.pipe) is not None:
            strikes["the database server", "kill"] = database.kill
            strikes["the database server", "stall"] = lambda: database.stall(stall)
            strikes["connections to the database", "cut"] = lambda: cut([pipe])
            strikes["connections to the database", "stall"] = lambda: pipe.stall(stall)
        return strikes

    async def _take_files_away(self) -> None:
        """As when a volume is not mounted for a moment."""
        files = self._world.files
        away = files.with_name("files-away")
        files.rename(away)
        try:
            await asyncio.sleep(AWAY_SECONDS)
        finally:
            if files.exists():  # somebody has made the folder anew meanwhile: what is in it belongs to the same store
                for path in sorted(files.rglob("*")):
                    target = away / path.relative_to(files)
                    if path.is_file():
                        target.parent.mkdir(parents=True, exist_ok=True)
                        path.rename(target)
                for path in sorted(files.rglob("*"), reverse=True):
                    path.rmdir()
                files.rmdir()
            away.rename(files)
