"""How many jobs a second, at what CPU and memory, with 1 to 1,000 simulated pods: `python -m bench.throughput`.

Pods and clients share the machine with what is measured. The last rows tell what a control plane with idle pods uses.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import load
from bench.verdicts import conclude

PODS = (1, 10, 100, 1000)
JOBS = {1: 400, 10: 1000, 100: 2000, 1000: 3000}
IDLE_PODS = 100
SETTLE_SECONDS, IDLE_SECONDS = 10.0, 30.0
CPU_MS = 4.0
LEAST_FINISHED = {"sqlite": (100, 300), "postgresql": (60, 150)}
GROWTH = 1.2
IDLE_SHARE, IDLE_BYTES = 0.02, 200 * 2**20


def _options(database: str, pods: int, jobs: int) -> argparse.Namespace:
    given = ["--database", database, "--pods", str(pods), "--jobs", str(jobs), "--concurrency", "16"]
    return load.parser().parse_args([*given, "--warm-up", str(max(100, pods))])


async def rounds_of(database: str, counts: Sequence[int], rounds: int, share: float) -> list[dict[str, Any]]:
    """Medians over the rounds for each number of pods; all take turns, so that growth shows in every round."""
    found: dict[int, list[dict[str, Any]]] = {pods: [] for pods in counts}
    async with contextlib.AsyncExitStack() as stack:
        places = {}
        for pods in counts:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="troupe-bench-"))
            options = _options(database, pods, max(50, int(JOBS[pods] * share)))
            places[pods] = await stack.enter_async_context(load.site(options, Path(folder))), options
        for number in range(rounds):
            for pods, (place, options) in places.items():
                options.warm_up = 0 if number else options.warm_up
                one = await load.drive(place, options)
                print(one.line(), flush=True)
                found[pods].append(asdict(one))
    return [_medians(found[pods]) for pods in counts]


def _medians(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    medians: dict[str, Any] = {**found[-1], "rounds": list(found)}
    for name, value in found[0].items():
        if isinstance(value, dict):
            medians[name] = {key: statistics.median(one[name][key] for one in found) for key in value}
        elif name in ("not_succeeded", "doubled"):
            medians[name] = sum(one[name] for one in found)
        elif isinstance(value, float):
            medians[name] = statistics.median(one[name] for one in found)
    return medians


async def idle(database: str) -> dict[str, float]:
    """The share of a core and the memory of a control plane (and its database) whose pods have nothing to do."""
    options = _options(database, IDLE_PODS, 0)
    with tempfile.TemporaryDirectory(prefix="troupe-bench-") as folder:
        async with load.site(options, Path(folder)) as place:
            await asyncio.sleep(SETTLE_SECONDS)
            before = place.usages()
            await asyncio.sleep(IDLE_SECONDS)
            after = place.usages()
    found = {name: (after[name].cpu - before[name].cpu) / IDLE_SECONDS for name in after if name != "load"}
    told = {f"{name} share of a core": value for name, value in found.items()}
    return {**told, "control plane bytes": after["control plane"].rss}


def judged(found: dict[str, Any]) -> list[tuple[str, bool]]:
    """The aims as sentences, and whether each is met."""
    verdicts: list[tuple[str, bool]] = []
    for database, rows in found["load"].items():
        by_pods = {row["pods"]: row for row in rows}
        for pods, row in by_pods.items():
            used = _used(row)
            verdicts.append((f"{database}, {pods} pods: {used:.2f} ms of CPU per job, aim {CPU_MS:g}", used <= CPU_MS))
            lost = row["not_succeeded"] + row["doubled"]
            verdicts.append((f"{database}, {pods} pods: {lost} jobs lost or doubled, aim 0", lost == 0))
        if 100 in by_pods:
            rate, (least, aim) = by_pods[100]["finished_per_second"], LEAST_FINISHED[database]
            verdicts.append((f"{database}, 100 pods: {rate:.0f} finished/s, at least {least}", rate >= least))
            verdicts.append((f"{database}, 100 pods: {rate:.0f} finished/s, aiming at {aim}", rate >= aim))
        if {10, 1000} <= set(by_pods):
            rounds = zip(by_pods[10]["rounds"], by_pods[1000]["rounds"], strict=True)
            grown = statistics.median(_used(many) / _used(few) for few, many in rounds)
            told = f"{database}: CPU per job grows {grown:.2f}-fold from 10 to 1,000 pods, aim under {GROWTH}"
            verdicts.append((told, grown < GROWTH))
    for database, row in found["idle"].items():
        share, memory = row["control plane share of a core"], row["control plane bytes"]
        told = f"{database}, {IDLE_PODS} idle pods: {share:.2%} of a core, aim under {IDLE_SHARE:.0%}"
        verdicts.append((told, share < IDLE_SHARE))
        told = f"{database}, {IDLE_PODS} idle pods: {memory / 2**20:.0f} MB, aim under {IDLE_BYTES / 2**20:.0f}"
        verdicts.append((told, memory < IDLE_BYTES))
    return verdicts


def _used(row: Mapping[str, Any]) -> float:
    """Milliseconds of control-plane CPU per job."""
    return float(row["cpu_ms_per_job"]["control plane"])


async def _all(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"load": {}, "idle": {}}
    for database in options.databases:
        found["load"][database] = await rounds_of(database, options.pods, options.rounds, options.share)
        if not options.no_idle:
            found["idle"][database] = await idle(database)
            print(f"{database}, {IDLE_PODS} idle pods: {found['idle'][database]}", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.add_argument("--pods", type=int, nargs="*", choices=PODS, default=PODS)
    parser.add_argument("--databases", nargs="*", choices=("sqlite", "postgresql"), default=("sqlite", "postgresql"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of jobs (1)")
    parser.add_argument("--no-idle", action="store_true", help="leave the idle control plane out")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    found = asyncio.run(_all(options))
    conclude(judged(found), found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
