"""The engine put together for tests: a real database, a real scheduler, pods that are real servers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from controlplane.comfy.client import open_session
from controlplane.db.database import Database
from controlplane.db.migrate import migrate
from controlplane.domain.ids import new_id
from controlplane.domain.jobs import Attempt, Job, JobResult, NewJob, is_final
from controlplane.domain.pods import Pod
from controlplane.ports import Provider
from controlplane.providers.comfyui import ComfyUIProvider, Pace
from controlplane.services.claiming import Claimed, Claimer, occupied
from controlplane.services.durations import Durations
from controlplane.services.event_streams import Events
from controlplane.services.events import Hints
from controlplane.services.fleet import Fleet
from controlplane.services.jobs import Jobs, JobView
from controlplane.services.outcomes import Hooks
from controlplane.services.pods import Pods
from controlplane.services.previews import Previews
from controlplane.services.scheduler import Scheduler
from controlplane.settings import Settings
from controlplane.storage.local import LocalStore
from tests.comfy.comfyui_double import ComfyUIDouble, replay_graph

PROJECT = "default"
JOIN_TOKEN = "join"
PACE = Pace(poll=0.1, blind_poll=0.05, absent_looks=3, absent_seconds=0.2, unreachable_seconds=1.0)


class WallClock:
    """The time of this machine, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:
        return time.time() + self.ahead


def complete(c: Connection, job: Job, attempt: Attempt, outputs: Mapping[str, Any], now: float) -> JobResult:
    """Keep what came out and which attempt it came from."""
    return JobResult({"outputs": dict(outputs), "attempt": attempt.id})


@dataclass
class Engine:
    """Everything around one database file; several of these may share the file, as processes do."""

    db: Database
    clock: WallClock
    hints: Hints
    settings: Settings
    jobs: Jobs
    pods: Pods
    events: Events
    provider: Provider
    hooks: Hooks
    fleet: Fleet
    ended: list[tuple[str, str]] = field(default_factory=list)
    durations: Durations = field(default_factory=Durations)
    previews: Previews | None = None
    scheduler: Scheduler | None = None
    _task: asyncio.Task[None] | None = None

    async def register(self, double: ComfyUIDouble, **values: Any) -> tuple[Pod, str]:
        """Register a double as a pod."""
        body = {
            "protocol": 1,
            "instance_id": f"instance of {double.url}",
            "address": double.url,
            "token": double.token,
            "kind": "comfyui",
            "name": double.url,
            "node_classes": ["EmptyImage", "ImageScale", "Replay"],
            **values,
        }
        return await self.pods.register(body, JOIN_TOKEN)

    async def submit(self, transcript: str = "01_success", *, held: bool = False, **values: Any) -> Job:
        """Accept a job that replays a transcript."""
        new = NewJob(
            **{
                "kind": "image",
                "template": "replay",
                "template_digest": "0",
                "graph": replay_graph(transcript, held=held),
                "needs": {"nodes": ["Replay"]},
                "outputs": [{"node": "3", "kind": "image"}],
                "deadline_seconds": 60.0,
                **values,
            }
        )
        job = await self.db.write(self.jobs.insert, new)
        self.hints.wake()
        return job

    async def view(self, job: Job) -> JobView:
        """The job as it is now."""
        return await self.jobs.get(PROJECT, job.id)

    async def final(self, job: Job, seconds: float = 90.0) -> JobView:
        """The job once it is final."""
        view = await self.jobs.wait(PROJECT, job.id, seconds)
        assert is_final(view.job.status), f"still {view.job.status}: {view.job.placement}"
        return view

    async def reached(self, job: Job, true: Callable[[JobView], object], seconds: float = 90.0) -> JobView:
        """The job once something holds of it."""
        end = time.monotonic() + seconds
        while not true(view := await self.view(job)):
            assert time.monotonic() < end, f"still {view.job.status}"
            await asyncio.sleep(0.02)
        return view

    async def told(self, job: Job) -> list[str]:
        """The types of the job's events so far, progress left out."""
        stream = self.events.stream(PROJECT, job_id=job.id)
        return [event.type async for event in stream if event.type != "job.progress"]

    async def claim(
        self, owner: str = "owner", lease_seconds: float = 60.0, fleet: Fleet | None = None
    ) -> Sequence[Claimed]:
        """What a process that looks at the pods now claims of all that waits."""
        seen = Fleet(self.db, self.clock, self.hints, self.settings) if fleet is None else fleet
        await seen.refresh(at_once=True)
        claimer = Claimer(
            seen, owner, self.provider.client_id, self.settings.placement, self.settings.age_bound_seconds
        )
        now = self.clock.now()
        chosen = claimer.choose(await self.db.read(claimer.candidates, now), now)
        claimed = await self.db.write(claimer.take, chosen, now + lease_seconds, now)
        seen.gave(occupied(claimed, chosen))
        return claimed

    def start(self) -> None:
        """Run the scheduler."""
        providers = {"comfyui": self.provider, "embedded": self.provider}
        self.scheduler = Scheduler(
            self.db,
            providers,
            self.settings,
            self.clock,
            self.hooks,
            self.hints,
            self.fleet,
            self.durations,
            self.previews,
        )
        self._task = asyncio.create_task(self.scheduler.run())

    async def stop(self) -> None:
        """End the scheduler in an orderly way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def settings_for(folder: Path, **values: Any) -> Settings:
    """Settings with the times that tests can wait for."""
    quick = {"lease_seconds": 1.0, "poll_seconds": 0.05, "stall_seconds": 5.0, "_env_file": None}
    return Settings(data=folder, **{**quick, **values})


@contextlib.asynccontextmanager
async def engine(folder: Path, pace: Pace = PACE, **values: Any) -> AsyncIterator[Engine]:
    """An engine on the database in ``folder``; its scheduler is not running yet."""
    settings = settings_for(folder, **values)
    migrate(settings.effective_database_url)
    db, clock, hints = Database(settings.effective_database_url), WallClock(), Hints()
    fleet = Fleet(db, clock, hints, settings)
    ended: list[tuple[str, str]] = []
    hooks = Hooks(
        complete={"image": complete, "train": complete},
        on_failed={"train": lambda c, job, error, now: ended.append(("failed", job.id))},
        on_cancelled={"train": lambda c, job, error, now: ended.append(("cancelled", job.id))},
    )
    blobs = LocalStore(folder / "blobs", settings.effective_files_url, "key", clock)
    async with open_session() as session:
        provider = ComfyUIProvider(session, blobs, pace)
        made = Engine(
            db=db,
            clock=clock,
            hints=hints,
            settings=settings,
            jobs=Jobs(db, clock, hints, hooks.on_cancelled, fleet.explain),
            pods=Pods(db, clock, hints, settings, JOIN_TOKEN),
            events=Events(db, hints, settings.poll_seconds),
            provider=provider,
            hooks=hooks,
            fleet=fleet,
            ended=ended,
        )
        try:
            yield made
        finally:
            await made.stop()
            await provider.close()
            await db.close()


def random_instance() -> str:
    """An instance id that nobody else has."""
    return new_id("instance")
