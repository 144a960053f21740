"""Arrivals: waiting until the files that a finished prompt promised are in the store, or will never be."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection

from controlplane.db import assets as asset_rows
from controlplane.db import attempts as attempt_rows
from controlplane.db.database import Database
from controlplane.domain.assets import Asset
from controlplane.domain.jobs import Job
from controlplane.ports import BlobInfo, BlobStore, HandedOver
from controlplane.services.outputs import Reported

T = TypeVar("T")
Ask = Callable[[], Awaitable[HandedOver | None]]
"""Ask the pod what has become of the prompt's files; None where it does not say."""

HINT_SECONDS = 0.02
"""How long a file is expected to come through this process before the database is asked, where there are others."""
ASK_SECONDS = 0.25
"""After this the pod is asked, and the database where no other process is at work."""
FIRST_PAUSE, LONGEST_PAUSE, PAUSE_GROWTH = 0.05, 1.0, 1.5
KEPT = 2000


async def nobody() -> HandedOver | None:
    """A pod that does not say."""
    return None


@dataclass(frozen=True)
class Gathered:
    """What was waited for: the attempt's files, what the store told of them meanwhile, and what will never come.

    Where every file came through this process ``announced`` holds these only, else all that the attempt announced.
    """

    announced: Sequence[Asset]
    infos: Mapping[str, BlobInfo] = field(default_factory=dict)
    problems: Sequence[str] = ()


class Arrivals:
    """One per process. Tickets and files that pass through it wake whoever waits for them; after what passes through
    another one the database and the store are asked every now and then."""

    def __init__(self, db: Database, blobs: BlobStore, stall_seconds: float) -> None:
        self._db = db
        self._blobs = blobs
        self._stall_seconds = stall_seconds
        self._bells: dict[str, asyncio.Event] = {}
        self._tickets: OrderedDict[str, Asset] = OrderedDict()
        self._stored: OrderedDict[str, BlobInfo] = OrderedDict()

    def announce(self, asset: Asset) -> None:
        """A ticket was given; call it after the transaction."""
        if asset.upload is not None and asset.job_id is not None:
            name = _promise(asset.job_id, asset.upload)
            _keep(self._tickets, name, asset)
            self._ring(name)

    def store(self, info: BlobInfo) -> None:
        """A file came in through this process and is stored for good."""
        _keep(self._stored, info.key, info)
        self._ring(info.key)

    async def gather(self, job: Job, named: Sequence[Reported], ask: Ask) -> Gathered:
        """Wait for every promised file; what a pod names by id is stored already.

        Ends early with ``problems`` where the pod says that one is lost, or nothing moved for long.
        """
        promised = [one for one in named if one.upload]
        if not promised:
            return Gathered(await self.announced(job))
        # SQLite has one server: nothing comes through another one, and looking costs what hints save.
        hint_seconds = ASK_SECONDS if self._db.is_sqlite else HINT_SECONDS
        wait = _Wait(self, job, promised, _Patience(self._stall_seconds), ask, hint_seconds)
        try:
            return await wait.over(in_memory=len(promised) == len(named))
        finally:
            for name in [name for name, bell in self._bells.items() if bell is wait.bell]:
                del self._bells[name]
            for one in promised:
                asset = self._tickets.pop(_promise(job.id, one.upload), None)
                self._stored.pop(asset.key if asset is not None else "", None)

    def listen(self, name: str, bell: asyncio.Event) -> None:
        """Ring ``bell`` when the ticket of this promise is given, or the file of this key stored."""
        self._bells[name] = bell

    def known(self, job: Job, promised: Sequence[Reported]) -> dict[str, Asset]:
        """The tickets that this process gave for a job, by reference."""
        given = {one.upload: self._tickets.get(_promise(job.id, one.upload)) for one in promised}
        return {upload: asset for upload, asset in given.items() if asset is not None}

    async def announced(self, job: Job) -> list[Asset]:
        """Everything that the job's current attempt announced."""
        return await self._db.read(_of_current, job)

    async def info(self, asset: Asset, *, in_memory: bool) -> BlobInfo | None:
        """What the store knows of a file, None where it is not there, or did not come through this process."""
        known = self._stored.get(asset.key)
        return known if known is not None or in_memory else await self._blobs.head(asset.key)

    def _ring(self, name: str) -> None:
        bell = self._bells.get(name)
        if bell is not None:
            bell.set()


@dataclass
class _Patience:
    """When something moved last, as far as we or the pod saw it. Monotonic seconds."""

    seconds: float
    moved: float = field(default_factory=time.monotonic)
    seen: tuple[int, int] = (0, 0)

    def saw(self, announced: int, missing: int) -> None:
        if (announced, missing) != self.seen:
            self.seen, self.moved = (announced, missing), time.monotonic()

    def told(self, told: HandedOver) -> None:
        if told.pending:
            self.moved = max(self.moved, time.monotonic() - told.idle_seconds)

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self.moved > self.seconds


@dataclass
class _Wait:
    """Waiting for the files of one attempt."""

    arrivals: Arrivals
    job: Job
    promised: Sequence[Reported]
    patience: _Patience
    ask: Ask
    hint_seconds: float
    bell: asyncio.Event = field(default_factory=asyncio.Event)
    infos: dict[str, BlobInfo] = field(default_factory=dict)
    announced: Sequence[Asset] = ()
    missing: list[Reported] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    async def over(self, *, in_memory: bool) -> Gathered:
        for one in self.promised:
            self.arrivals.listen(_promise(self.job.id, one.upload), self.bell)
        pause = FIRST_PAUSE
        while not await self._all_there(in_memory):
            if in_memory:
                in_memory = await self._rung(self.hint_seconds)
                continue
            problems = await self._problems() if time.monotonic() - self.since >= ASK_SECONDS else []
            if problems:
                return Gathered(self.announced, self.infos, problems)
            in_memory = await self._rung(pause)
            pause = min(pause * PAUSE_GROWTH, LONGEST_PAUSE)
        return Gathered(self.announced, self.infos)

    async def _all_there(self, in_memory: bool) -> bool:
        """Look for what is promised: at what came through this process, or into the database and the store."""
        if in_memory:
            tickets = self.arrivals.known(self.job, self.promised)
            self.announced = list(tickets.values())
        else:
            self.announced = await self.arrivals.announced(self.job)
            tickets = {asset.upload: asset for asset in self.announced if asset.upload is not None}
        self.missing = []
        for one in self.promised:
            asset = tickets.get(one.upload)
            if asset is None or not await self._is_there(asset, in_memory):
                self.missing.append(one)
        return not self.missing

    async def _is_there(self, asset: Asset, in_memory: bool) -> bool:
        if asset.key not in self.infos:
            self.arrivals.listen(asset.key, self.bell)
            info = await self.arrivals.info(asset, in_memory=in_memory)
            if info is None:
                return False
            self.infos[asset.key] = info
        return True

    async def _problems(self) -> list[str]:
        """Why some of it will never come; nothing while it may, or where it has come meanwhile."""
        self.patience.saw(len(self.announced), len(self.missing))
        told = await self.ask()
        if told is not None:
            self.patience.told(told)
        lost = _lost(self.missing, told)
        if not lost and self.patience.is_over:
            words = f"it did not arrive, and nothing moved for {self.patience.seconds:.0f} s"
            lost = {one.upload: words for one in self.missing}
        # The pod may have finished one between our look and its answer.
        if not lost or await self._all_there(in_memory=False):
            return []
        return [f"{one.name}: {lost[one.upload]}" for one in self.missing if one.upload in lost]

    async def _rung(self, seconds: float) -> bool:
        """Wait for the bell, at most so long; whether it rang."""
        # asyncio.timeout, not wait_for: before Python 3.12 the latter loses a cancel that meets the bell.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.bell.wait()
        rang = self.bell.is_set()
        self.bell.clear()
        return rang


def _lost(missing: Sequence[Reported], told: HandedOver | None) -> dict[str, str]:
    """What the pod says will never come, by reference, in words."""
    if told is None:
        return {}
    if told.gone:
        return {one.upload: told.gone for one in missing}
    lost = {one.upload: told.failed[one.upload] for one in missing if one.upload in told.failed}
    for one in missing:
        if one.upload in told.stored:
            lost[one.upload] = "the pod says that it stored it, and it is not in the store"
        elif one.upload not in told.pending and one.upload not in lost:
            lost[one.upload] = "the pod does not know of it any more; it was probably restarted"
    return lost


def _promise(job_id: str, upload: str) -> str:
    """What a promise is called here: a reference means something within its job only."""
    return f"{job_id} {upload}"


def _of_current(c: Connection, job: Job) -> list[Asset]:
    current = attempt_rows.current(c, job.project_id, job.id)
    return asset_rows.of_attempt(c, current.id) if current is not None else []


def _keep(known: OrderedDict[str, T], name: str, value: T) -> None:
    known[name] = value
    while len(known) > KEPT:
        known.popitem(last=False)
