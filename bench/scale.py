"""What a long past costs: latency of lists and of jobs, CPU per job, with 10 to 1,000,000 finished jobs.

`python -m bench.scale` fills a database with copies of a real job and with 100,000 characters, and asks a control plane
on it over HTTP after each step.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from bench import filling, load
from bench.http_wire import Caller
from bench.rivals import Troupe
from bench.verdicts import conclude

FINISHED = (10, 10_000, 1_000_000)
CHARACTERS = 100_000
PODS, JOBS, ALONE = 4, 300, 100
ASKED = 40
GROWTH = 1.2
LISTS = {
    "jobs": "/jobs?limit=50",
    "jobs that succeeded": "/jobs?limit=50&status=succeeded",
    "jobs that failed": "/jobs?limit=50&status=failed",
    "jobs of a kind": "/jobs?limit=50&kind=image",
    "jobs of a character": "/jobs?limit=50&character_id={character}",
    "one job": "/jobs/{job}",
    "assets": "/assets?limit=50",
    "assets of a character": "/assets?limit=50&character_id={character}",
    "favourites": "/assets?limit=50&favourite=true",
    "characters": "/characters?limit=50",
    "one character": "/characters/{character}",
    "metrics": "/metrics",
}


async def measure(database: str, sizes: Sequence[int], characters: int) -> list[dict[str, Any]]:
    """One row of figures for each size."""
    given = ["--database", database, "--pods", str(PODS), "--jobs", str(JOBS), "--concurrency", "8", "--warm-up", "50"]
    options = load.parser().parse_args(given)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="troupe-bench-") as name:
        folder, filled = Path(name), 0
        with load.store(database, folder) as kept:
            async with load.serving(options, folder, kept) as place:
                await load.drive(place, options)
            url = kept.url or f"sqlite:///{folder / 'data' / 'troupe.sqlite3'}"
            for size in sizes:
                began = time.monotonic()
                await asyncio.to_thread(filling.fill_jobs, url, filled, size, characters)
                if not filled:
                    await asyncio.to_thread(filling.fill_characters, url, characters)
                filled = size
                filling_seconds = time.monotonic() - began
                row = await _asked(options, folder, kept)
                rows.append({"database": database, "finished_jobs": size, "filling_seconds": filling_seconds, **row})
                _print(rows[-1])
    return rows


async def _asked(options: argparse.Namespace, folder: Path, kept: load.Store) -> dict[str, Any]:
    began = time.monotonic()
    async with load.serving(options, folder, kept) as place:
        started = time.monotonic() - began
        driven = await load.drive(place, options)
        alone = await _alone(place)
        lists = await _lists(place)
        memory = place.server.usage().rss
    return {
        "start_seconds": started,
        "cpu_ms_per_job": driven.cpu_ms_per_job,
        "yardstick_ms": driven.yardstick_ms,
        "finished_per_second": driven.finished_per_second,
        "lost_or_doubled": driven.not_succeeded + driven.doubled,
        "one_job_p50_ms": statistics.median(alone),
        "one_job_p95_ms": load.share(alone, 0.95),
        "lists_ms": lists,
        "rss_bytes": memory,
    }


async def _alone(place: load.Site) -> list[float]:
    """Milliseconds of one job after another, from the request to the picture: claiming is in it."""
    rival, took = Troupe(place.server.url), []
    for number in range(ALONE):
        began = time.monotonic()
        await rival.make(0.0, number)
        took.append(1000 * (time.monotonic() - began))
    return took


async def _lists(place: load.Site) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of each list, in ms."""
    caller = Caller(place.server.url)
    newest = orjson.loads((await caller.call("GET", "/jobs?limit=1"))[1])["items"][0]["id"]
    character = "filled-1000000"
    found = {}
    for name, path in LISTS.items():
        took = []
        for _ in range(ASKED):
            began = time.monotonic()
            status, body = await caller.call("GET", path.format(job=newest, character=character))
            took.append(1000 * (time.monotonic() - began))
            if status != 200:
                raise RuntimeError(f"{path}: {status} {body[:300]!r}")
        found[name] = {"p50": statistics.median(took), "p95": load.share(took, 0.95)}
    caller.close()
    return found


def _print(row: dict[str, Any]) -> None:
    cpu = "  ".join(f"{name} {value:.2f}" for name, value in row["cpu_ms_per_job"].items())
    lists = "  ".join(f"{name} {one['p50']:.1f}" for name, one in row["lists_ms"].items())
    print(
        f"{row['database']:10} {row['finished_jobs']:9,} finished jobs (filled in {row['filling_seconds']:.0f} s, "
        f"started in {row['start_seconds']:.1f} s): CPU ms per job: {cpu}; one job p50 {row['one_job_p50_ms']:.1f} "
        f"p95 {row['one_job_p95_ms']:.1f} ms\n{'':11}lists p50 ms: {lists}",
        flush=True,
    )


def judged(rows: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
    """The aims as sentences, and whether each is met."""
    verdicts: list[tuple[str, bool]] = []
    for database in dict.fromkeys(row["database"] for row in rows):
        by_size = {row["finished_jobs"]: row for row in rows if row["database"] == database}
        few, many = by_size.get(FINISHED[1]), by_size.get(FINISHED[2])
        if few is not None and many is not None:
            grown = load.growth(few, many)
            told = f"{database}: CPU per job grows {grown:.2f}-fold from 10,000 to 1,000,000 finished jobs"
            verdicts.append((f"{told}, aim under {GROWTH}", grown < GROWTH))
    return verdicts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--databases", nargs="*", choices=("sqlite", "postgresql"), default=("sqlite", "postgresql"))
    parser.add_argument("--sizes", type=int, nargs="*", default=FINISHED, help="finished jobs, growing")
    parser.add_argument("--characters", type=int, default=CHARACTERS)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for database in options.databases:
        rows += asyncio.run(measure(database, options.sizes, options.characters))
    conclude(judged(rows), {"rows": rows}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
