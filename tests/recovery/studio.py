"""What the tests of recovery ask of a running studio, over HTTP, and what its pod's journal says of them."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.chaos.programs import Program
from tests.chaos.world import World

Json = dict[str, Any]
FINAL = ("succeeded", "failed", "cancelled")
PATIENCE_SECONDS = 60.0


@dataclass
class Studio:
    """A client of one control plane with one pod."""

    world: World
    session: aiohttp.ClientSession
    _seeds: Any = field(default_factory=lambda: itertools.count(1))

    @property
    def server(self) -> Program:
        return self.world.servers[0]

    @property
    def pod(self) -> Program:
        return self.world.pods[0]

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Json]:
        """Status and body of one answer; asks again while the server is on its way back."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                async with self.session.request(method, f"{self.world.doors[0].url}{path}", **options) as response:
                    return response.status, json.loads(await response.read() or b"{}")
            except aiohttp.ClientConnectionError:
                assert time.monotonic() < end, "the server did not come back"
            await asyncio.sleep(0.1)

    async def ask(self, seconds: float = 0.0, **fields: Any) -> Json:
        """An accepted picture that takes so many seconds; its seed is like no other's."""
        body = {"workflow": "chaos_image", "prompt": "a picture", "seed": next(self._seeds), "seconds": seconds}
        key = {"Idempotency-Key": f"picture {body['seed']}"}
        status, answer = await self.call("POST", "/generate-image", json={**body, **fields}, headers=key)
        assert status == 202, answer
        return dict(answer["job"])

    async def job(self, job: Json) -> Json:
        """A job as it is now."""
        return (await self.call("GET", f"/jobs/{job['id']}"))[1]

    async def cancel(self, job: Json) -> int:
        """The status of the answer to a cancel."""
        return (await self.call("DELETE", f"/jobs/{job['id']}"))[0]

    async def reached(self, job: Json, true: Callable[[Json], object], seconds: float = PATIENCE_SECONDS) -> Json:
        """The job once something holds of it."""
        end = time.monotonic() + seconds
        while not true(seen := await self.job(job)):
            assert time.monotonic() < end, f"still {seen['status']}: {seen['placement']}"
            await asyncio.sleep(0.05)
        return seen

    async def final(self, job: Json, seconds: float = PATIENCE_SECONDS) -> Json:
        """The job once it is over."""
        return await self.reached(job, lambda seen: seen["status"] in FINAL, seconds)

    async def running(self, job: Json) -> Json:
        """The job once its pod is at work on it."""
        return await self.reached(job, lambda seen: seen["status"] == "running" and self.ran(job))

    async def pause(self, reason: str = "") -> None:
        """Let nothing new begin."""
        status, _ = await self.call("PATCH", "/project", json={"paused": True, "reason": reason})
        assert status == 200

    async def resume(self) -> None:
        """Let it begin again."""
        status, _ = await self.call("PATCH", "/project", json={"paused": False})
        assert status == 200

    async def assets_of(self, job: Json) -> list[Json]:
        """The assets of a job that people can see."""
        return list((await self.call("GET", f"/assets?job_id={job['id']}"))[1]["items"])

    def ran(self, *jobs: Json) -> list[int]:
        """The seeds of the jobs' prompts that the pod has begun, in order, each as often as it was begun."""
        (journal,) = self.world.journals
        lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
        seeds = [job["seed"] for job in jobs]
        return [line["seed"] for line in map(json.loads, lines) if line["what"] == "ran" and line["seed"] in seeds]

    async def is_free(self) -> None:
        """See that the pod takes and does work: nothing of before keeps it."""
        done = await self.final(await self.ask())
        assert done["status"] == "succeeded", done["error"]
