"""Placement in virtual time: LoRA and base loads, and waits, of switch-cost placement against plain round-robin.

`python -m bench.placement` lets both policies of the control plane's own `domain/placement.py` place the same jobs of
Zipf-distributed characters on the same pods, and steps a clock from event to event.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bench.verdicts import conclude
from controlplane.domain.placement import Assignment, Policy, Waiting, assign, lane_of
from controlplane.domain.pods import READY, Live, Load, Needs, Pod

JOB_SECONDS, LORA_SECONDS, BASE_SECONDS = 3.0, 2.0, 10.0
WINDOW = 128
"""The control plane's own, in services/claiming.py: so many of each lane are looked at."""
POLICIES: tuple[Policy, ...] = ("round_robin", "switch_cost")
LOADS_SHARE = 1 / 3

Decide = Callable[[Sequence[Waiting], Sequence[Pod], Mapping[str, Load], float], Sequence[Assignment]]


@dataclass(frozen=True)
class Scene:
    """What is placed: ``load`` is the share of what the pods could do if every job switched its LoRA, 0 a backlog."""

    name: str
    pods: int
    characters: int
    zipf: float
    load: float
    jobs: int = 3000
    second_base: float = 0.0
    """The share of the characters that are trained on another base."""


SCENES = (
    Scene("calm (0.7)", 8, 200, 1.1, 0.7),
    Scene("busy (0.95)", 8, 200, 1.1, 0.95),
    Scene("over (1.2)", 8, 200, 1.1, 1.2),
    Scene("far over (1.4)", 8, 200, 1.1, 1.4),
    Scene("backlog", 8, 200, 1.1, 0.0),
    Scene("backlog, 50 characters", 8, 50, 1.1, 0.0),
    Scene("backlog, 1000 characters", 8, 1000, 1.1, 0.0),
    Scene("over (1.2), 32 pods", 32, 1000, 1.1, 1.2),
    Scene("busy (0.95), two bases", 8, 200, 1.1, 0.95, second_base=0.3),
)


@dataclass
class Machine:
    """One pod: what it has loaded, what it runs until when, what waits on it."""

    pod: Pod
    base: str | None = None
    lora: str | None = None
    live: list[Live] = field(default_factory=list)
    """What it runs, then what waits on it."""
    idle_since: float = 0.0
    told: tuple[str | None, str | None] = (None, None)
    """What the newest attempt sent to it leaves resident, whether that has begun or not."""


@dataclass(frozen=True)
class Outcome:
    """One policy on one scene and seed. Loads per 1,000 jobs, seconds."""

    lora_loads: float
    base_loads: float
    worst_wait: float
    p99_wait: float
    mean_wait: float
    seconds: float
    decision_us: float


def arrivals(scene: Scene, seed: int) -> list[Waiting]:
    """The jobs of a scene, in the order in which they come."""
    rng = random.Random(seed)
    weights = list(itertools.accumulate(1 / rank**scene.zipf for rank in range(1, scene.characters + 1)))
    others = set(rng.sample(range(scene.characters), int(scene.second_base * scene.characters)))
    rate = scene.load * scene.pods / (JOB_SECONDS + LORA_SECONDS)
    now, jobs = 0.0, []
    for number in range(scene.jobs):
        now += rng.expovariate(rate) if rate else 0.001
        character = bisect.bisect(weights, rng.random() * weights[-1])
        base = "other" if character in others else "first"
        raw = {"nodes": ["KSampler"], "models": {}, "labels": ["image"], "lora_sha256": f"{character:064x}"}
        jobs.append(_waiting(f"job-{number:06}", raw, base, now))
    return jobs


def _waiting(job_id: str, raw: Mapping[str, Any], base: str, now: float) -> Waiting:
    return Waiting(
        id=job_id,
        project_id="default",
        kind="image",
        lane=lane_of("default", "image", raw, base),
        needs=Needs.of(raw, base),
        base_model=base,
        lora_sha256=raw["lora_sha256"],
        priority=0,
        created_at=now,
        estimate_seconds=JOB_SECONDS,
        tried=frozenset(),
    )


class Simulation:
    """One run of one policy over the jobs of a scene."""

    def __init__(self, scene: Scene, jobs: Sequence[Waiting], decide: Decide) -> None:
        self._jobs = {job.id: job for job in jobs}
        self._machines = {f"pod-{number:03}": Machine(_pod(f"pod-{number:03}")) for number in range(scene.pods)}
        self._decide = decide
        self._order = itertools.count()
        self._events: list[tuple[float, int, str, str]] = [
            (job.created_at, next(self._order), "arrives", job.id) for job in jobs
        ]
        heapq.heapify(self._events)
        self._queue: dict[str, Waiting] = {}
        self.waits: list[float] = []
        self.lora_loads = self.base_loads = self.decisions = 0
        self.deciding = self.now = 0.0

    def run(self) -> Outcome:
        while self._events:
            self.now, _, what, which = heapq.heappop(self._events)
            if what == "arrives":
                self._queue[which] = self._jobs[which]
            else:
                self._finish(self._machines[which])
            self._place()
        if self._queue or len(self.waits) != len(self._jobs):
            raise RuntimeError(f"{len(self._queue)} jobs were never placed")
        per_thousand = 1000 / len(self.waits)
        ordered = sorted(self.waits)
        return Outcome(
            self.lora_loads * per_thousand,
            self.base_loads * per_thousand,
            ordered[-1],
            ordered[int(0.99 * len(ordered))],
            statistics.fmean(ordered),
            self.now,
            1e6 * self.deciding / max(self.decisions, 1),
        )

    def _place(self) -> None:
        """Ask until nothing more is placed, as the scheduler's loop does; the oldest of each lane are shown."""
        while self._queue and any(len(machine.live) < 2 for machine in self._machines.values()):
            shown = self._window()
            pods = [machine.pod for machine in self._machines.values()]
            began = time.perf_counter()
            chosen = self._decide(shown, pods, self._loads(), self.now)
            self.deciding += time.perf_counter() - began
            self.decisions += 1
            for one in chosen:
                self._give(self._machines[one.pod_id], self._queue.pop(one.job_id), one.slot)
            if not chosen:
                return

    def _window(self) -> list[Waiting]:
        lanes: dict[str, int] = {}
        shown = []
        for job in self._queue.values():
            lanes[job.lane] = lanes.get(job.lane, 0) + 1
            if lanes[job.lane] <= WINDOW:
                shown.append(job)
        return shown

    def _loads(self) -> dict[str, Load]:
        return {
            pod_id: Load(
                pod_id=pod_id,
                live=tuple(machine.live),
                base_model=machine.told[0],
                lora_sha256=machine.told[1],
                idle_since=machine.idle_since,
            )
            for pod_id, machine in self._machines.items()
        }

    def _give(self, machine: Machine, job: Waiting, slot: int) -> None:
        live = Live(job.id, job.id, job.project_id, slot, job.kind, job.estimate_seconds, self.now)
        machine.live.append(live)
        machine.told = job.base_model, job.lora_sha256
        if len(machine.live) == 1:
            self._start(machine)

    def _start(self, machine: Machine) -> None:
        job, seconds = self._jobs[machine.live[0].job_id], JOB_SECONDS
        if job.base_model != machine.base:
            machine.base, machine.lora = job.base_model, None
            self.base_loads += 1
            seconds += BASE_SECONDS
        if job.lora_sha256 != machine.lora:
            machine.lora = job.lora_sha256
            self.lora_loads += 1
            seconds += LORA_SECONDS
            if job.lora_sha256 not in machine.pod.loras:
                machine.pod = replace(machine.pod, loras=(*machine.pod.loras, str(job.lora_sha256)))
        self.waits.append(self.now - job.created_at)
        heapq.heappush(self._events, (self.now + seconds, next(self._order), "ends", machine.pod.id))

    def _finish(self, machine: Machine) -> None:
        del machine.live[0]
        machine.idle_since = self.now
        if machine.live:
            self._start(machine)


def _pod(pod_id: str) -> Pod:
    return Pod(
        id=pod_id, project_id="default", instance_id=pod_id, name=pod_id, kind="comfyui", address="", token="",
        key_hash="", state=READY, protocol=1, node_classes=("KSampler",), models={}, trainers=(), labels=("image",),
        loras=(), created_at=0.0, last_heartbeat_at=0.0,
    )  # fmt: skip


def compare(scene: Scene, seed: int) -> dict[Policy, Outcome]:
    """Both policies on the same arrivals."""
    jobs = arrivals(scene, seed)
    found: dict[Policy, Outcome] = {}
    for policy in POLICIES:

        def decide(
            waiting: Sequence[Waiting], pods: Sequence[Pod], loads: Mapping[str, Load], now: float, by: Policy = policy
        ) -> Sequence[Assignment]:
            return assign(waiting, pods, loads, now, by)

        found[policy] = Simulation(scene, jobs, decide).run()
    return found


def measure(scenes: Sequence[Scene], seeds: int) -> list[dict[str, Any]]:
    """Medians over the seeds, for each scene: both policies, and the share of round-robin's loads that is left."""
    rows = []
    for scene in scenes:
        found = [compare(scene, seed) for seed in range(seeds)]
        row: dict[str, Any] = {"scene": asdict(scene)}
        for policy in POLICIES:
            row[policy] = {
                one.name: statistics.median(getattr(outcome[policy], one.name) for outcome in found)
                for one in fields(Outcome)
            }
        shares = [one["switch_cost"].lora_loads / one["round_robin"].lora_loads for one in found]
        waits = [one["switch_cost"].worst_wait / max(one["round_robin"].worst_wait, 1e-9) for one in found]
        row |= {"lora_share": statistics.median(shares), "worst_wait_share": statistics.median(waits)}
        rows.append(row)
        _print(row)
    return rows


def _print(row: Mapping[str, Any]) -> None:
    plain, ours = row["round_robin"], row["switch_cost"]
    print(
        f"{row['scene']['name']:28} LoRA loads {plain['lora_loads']:4.0f} -> {ours['lora_loads']:4.0f} "
        f"({row['lora_share']:.2f})  base {plain['base_loads']:4.0f} -> {ours['base_loads']:4.0f}  worst wait "
        f"{plain['worst_wait']:6.1f} -> {ours['worst_wait']:6.1f} s  p99 {plain['p99_wait']:6.1f} -> "
        f"{ours['p99_wait']:6.1f} s  mean {plain['mean_wait']:5.1f} -> {ours['mean_wait']:5.1f} s  "
        f"{ours['decision_us']:.0f} us each",
        flush=True,
    )


def judged(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """The aim for every scene as a sentence, and whether it is met."""
    return [
        (
            f"{row['scene']['name']}: {row['lora_share']:.2f} of round-robin's LoRA loads at "
            f"{row['worst_wait_share']:.2f} of its worst wait, aim {LOADS_SHARE:.2f} at 1",
            row["lora_share"] <= LOADS_SHARE and row["worst_wait_share"] <= 1.0,
        )
        for row in rows
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.placement", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    rows = measure(SCENES, options.seeds)
    conclude(judged(rows), {"rows": rows}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
