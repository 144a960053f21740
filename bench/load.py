"""Accepted and finished jobs a second with simulated pods: `python -m bench.load --pods 100 --jobs 2000`.

Starts the control plane and the pods as processes of their own, drives it over HTTP, and says what each process used.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from bench import yardstick
from bench.http_wire import Caller
from bench.postgresql import postgresql
from bench.processes import Program, Usage, control_plane, simulated_pods, usage

UNFINISHED = ("queued", "claimed", "submitted", "running", "collecting")
LOOK_SECONDS = 0.1
YARDSTICK_SECONDS, LOOKS_PER_YARDSTICK = 0.2, 5
PAGE = 100


@dataclass(frozen=True)
class Result:
    """One run. Seconds, jobs a second, milliseconds of CPU per finished job by process, peak bytes of memory."""

    database: str
    pods: int
    jobs: int
    concurrency: int
    accepted_per_second: float
    finished_per_second: float
    seconds: float
    accept_p50_ms: float
    accept_p95_ms: float
    finish_p50_ms: float
    finish_p95_ms: float
    cpu_ms_per_job: dict[str, float]
    peak_bytes: dict[str, int]
    not_succeeded: int
    doubled: int
    yardstick_ms: float
    """CPU time of a fixed piece of work meanwhile (see yardstick.py)."""

    def line(self) -> str:
        cpu = "  ".join(f"{name} {value:.2f}" for name, value in self.cpu_ms_per_job.items())
        memory = "  ".join(f"{name} {value / 2**20:.0f}" for name, value in self.peak_bytes.items())
        return (
            f"{self.database:10} {self.pods:5} pods {self.jobs:6} jobs, {self.concurrency} clients: "
            f"accepted {self.accepted_per_second:.0f}/s, finished {self.finished_per_second:.0f}/s; "
            f"accept p50 {self.accept_p50_ms:.1f} p95 {self.accept_p95_ms:.1f} ms; "
            f"finish p50 {self.finish_p50_ms:.0f} p95 {self.finish_p95_ms:.0f} ms\n"
            f"{'':11}CPU ms per job: {cpu}  (yardstick {self.yardstick_ms:.2f})\n{'':11}peak MB: {memory}"
            + (f"\n{'':11}NOT SUCCEEDED: {self.not_succeeded}" if self.not_succeeded else "")
            + (f"\n{'':11}RUN MORE THAN ONCE: {self.doubled}" if self.doubled else "")
        )


@dataclass(frozen=True)
class Site:
    """A control plane with its pods, and everything that uses CPU for them."""

    server: Program
    pods: Program
    postgresql_pid: int | None

    def usages(self) -> dict[str, Usage]:
        found = {
            "control plane": self.server.usage(),
            "pods": self.pods.usage(),
            "load": usage(os.getpid(), children=False),
        }
        if self.postgresql_pid is not None:
            found["postgresql"] = usage(self.postgresql_pid)
        return found


@dataclass(frozen=True)
class Store:
    """Where a control plane keeps its rows: the URL (empty: SQLite in its data folder), and the server's process."""

    url: str
    pid: int | None = None


@contextlib.contextmanager
def store(database: str, folder: Path) -> Iterator[Store]:
    """``sqlite``, ``postgresql`` (a server of its own) or a URL, until the block ends."""
    if database != "postgresql":
        yield Store("" if database == "sqlite" else database)
        return
    with postgresql(folder) as started:
        yield Store(started.url, started.pid)


@contextlib.asynccontextmanager
async def serving(options: argparse.Namespace, folder: Path, kept: Store) -> AsyncIterator[Site]:
    """A control plane on ``folder`` and its pods, until the block ends."""
    # Enough hands for every pod and the prompts that wait on it.
    environment = {"TROUPE_MAX_RUNNING_JOBS": str(max(64, 4 * options.pods))}
    how = ["--run-seconds", str(options.run_seconds), "--steps", str(options.steps)]
    how += ["--hand-over", options.hand_over, "--connections", options.connections]
    async with contextlib.AsyncExitStack() as stack:
        (folder / "data").mkdir(exist_ok=True)
        server = await stack.enter_async_context(control_plane(folder / "data", kept.url, environment))
        pods = await stack.enter_async_context(simulated_pods(server.url, options.pods, folder, *how))
        yield Site(server, pods, kept.pid)


@contextlib.asynccontextmanager
async def site(options: argparse.Namespace, folder: Path) -> AsyncIterator[Site]:
    """Everything that a run needs, until the block ends."""
    with store(options.database, folder) as kept:
        async with serving(options, folder, kept) as place:
            yield place


async def drive(place: Site, options: argparse.Namespace) -> Result:
    """Post the jobs from concurrent clients and wait until every one of them is final."""
    if options.warm_up:
        await _round(place, options.warm_up, options)
    before = place.usages()
    counts = await _counts(place)
    peak: dict[str, int] = {}
    yardsticks: list[float] = []
    watch = asyncio.create_task(_watched(place, peak, yardsticks))
    began = time.monotonic()
    took, accepted = await _post(place, options.jobs, options)
    accepting = time.monotonic() - began
    await _until_finished(place, counts["succeeded"] + options.jobs)
    seconds = time.monotonic() - began
    after = place.usages()
    watch.cancel()
    jobs = await _newest(place, options.jobs)
    succeeded = [job for job in jobs if job["status"] == "succeeded" and job["id"] in accepted]
    waits = [1000 * (_epoch(job["finished_at"]) - _epoch(job["created_at"])) for job in succeeded] or [0.0]
    executed = (await _counts(place))["executed"][len(counts["executed"]) :]
    cpu = {name: 1000 * (after[name].cpu - before[name].cpu) / options.jobs for name in after}
    return Result(
        options.database.split(":")[0], options.pods, options.jobs, options.concurrency,
        options.jobs / accepting, options.jobs / seconds, seconds,
        1000 * statistics.median(took), 1000 * share(took, 0.95), statistics.median(waits), share(waits, 0.95),
        cpu, peak, options.jobs - len(succeeded), len(executed) - len(set(executed)), statistics.median(yardsticks),
    )  # fmt: skip


async def _round(place: Site, jobs: int, options: argparse.Namespace) -> None:
    done = (await _counts(place))["succeeded"]
    await _post(place, jobs, options)
    await _until_finished(place, done + jobs)


async def _post(place: Site, jobs: int, options: argparse.Namespace) -> tuple[list[float], set[str]]:
    """Seconds that each POST took, and the ids of the jobs."""
    caller = Caller(place.server.url)
    took: list[float] = []
    accepted: set[str] = set()
    left = iter(range(jobs))
    headers = {"Content-Type": "application/json"}
    if options.client == "wait":
        headers["Prefer"] = "wait=60"

    async def client() -> None:
        for number in left:
            body: dict[str, Any] = {"prompt": "bench", "seed": number % 2**24, "workflow": options.workflow}
            if options.workflow == "bench_work":
                body["work_seconds"] = options.work_seconds
            began = time.monotonic()
            status, answered = await caller.call("POST", "/generate-image", headers, orjson.dumps(body))
            took.append(time.monotonic() - began)
            if status not in (200, 202):
                raise RuntimeError(f"a job was not accepted: {status} {answered[:500]!r}")
            accepted.add(orjson.loads(answered)["job"]["id"])

    async with asyncio.TaskGroup() as group:
        for _ in range(options.concurrency):
            group.create_task(client())
    caller.close()
    return took, accepted


async def _until_finished(place: Site, succeeded: int) -> None:
    """Until the pods have run all, and then no job is on its way any more. Raises TimeoutError after ten minutes."""
    caller = Caller(place.server.url)
    async with asyncio.timeout(600):
        while True:
            counts = await _counts(place, short=True)
            if counts["succeeded"] + counts["failed"] + counts["interrupted"] >= succeeded:
                pages = [await _page(caller, f"status={status}&limit=1") for status in UNFINISHED]
                if not any(page["items"] for page in pages):
                    break
            await asyncio.sleep(LOOK_SECONDS)
    caller.close()


async def _newest(place: Site, count: int) -> list[dict[str, Any]]:
    caller, cursor = Caller(place.server.url), ""
    jobs: list[dict[str, Any]] = []
    while len(jobs) < count:
        page = await _page(caller, f"limit={PAGE}{cursor}")
        jobs += page["items"]
        if not page.get("next_cursor"):
            break
        cursor = f"&cursor={page['next_cursor']}"
    caller.close()
    return jobs[:count]


async def _page(caller: Caller, query: str) -> dict[str, Any]:
    status, body = await caller.call("GET", f"/jobs?{query}")
    if status != 200:
        raise RuntimeError(f"GET /jobs: {status} {body[:300]!r}")
    return orjson.loads(body)


async def _counts(place: Site, short: bool = False) -> dict[str, Any]:
    caller = Caller(place.pods.url, keep=False)
    return orjson.loads((await caller.call("GET", "/counts?short" if short else "/counts"))[1])


async def _watched(place: Site, peak: dict[str, int], yardsticks: list[float]) -> None:
    for number in itertools.count():
        yardsticks.append(yardstick.milliseconds())
        if number % LOOKS_PER_YARDSTICK:
            await asyncio.sleep(YARDSTICK_SECONDS)
            continue
        for name, one in place.usages().items():
            peak[name] = max(peak.get(name, 0), one.rss)
        await asyncio.sleep(YARDSTICK_SECONDS)


def _epoch(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def share(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def growth(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """How much more CPU a job costs the control plane, each measured by the yardstick beside it."""
    costs = [row["cpu_ms_per_job"]["control plane"] / row["yardstick_ms"] for row in (before, after)]
    return costs[1] / costs[0]


async def run(options: argparse.Namespace) -> Result:
    """One run in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="troupe-bench-") as folder:
        async with site(options, Path(folder)) as place:
            return await drive(place, options)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    options.add_argument("--pods", type=int, default=10)
    options.add_argument("--jobs", type=int, default=500)
    options.add_argument("--concurrency", type=int, default=16, help="clients at a time (16)")
    options.add_argument("--database", default="sqlite", help="sqlite, postgresql (one of its own) or a URL")
    options.add_argument("--client", choices=("post", "wait"), default="post", help="wait: with Prefer: wait (post)")
    options.add_argument("--workflow", default="bench_noop", help="bench_noop or bench_work")
    options.add_argument("--work-seconds", type=float, default=0.1, help="of bench_work (0.1)")
    options.add_argument("--run-seconds", type=float, default=0.003, help="of every prompt (0.003)")
    options.add_argument("--steps", type=int, default=0, help="progress messages of each prompt (0)")
    options.add_argument("--hand-over", choices=("inline", "background"), default="background")
    options.add_argument("--connections", choices=("fresh", "kept"), default="kept", help="of S3Save (kept)")
    options.add_argument("--warm-up", type=int, default=50, help="jobs before the measured ones (50)")
    options.add_argument("--json", type=Path, help="also write the figures here")
    return options


def main() -> None:
    options = parser().parse_args()
    result = asyncio.run(run(options))
    print(result.line())
    if options.json:
        options.json.write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
    sys.exit(bool(result.not_succeeded or result.doubled))


if __name__ == "__main__":
    main()
