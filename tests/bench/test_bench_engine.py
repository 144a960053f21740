"""The bench of the job engine measures what it says: one small run of each part, and its verdicts."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from bench import filling, load, overhead, placement, scale, throughput
from bench.placement import Scene

SMALL = Scene("small", 4, 30, 1.1, 0.0, jobs=300)


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> tuple[load.Result, Path]:
    """A control plane, two simulated pods, ten jobs; and the database that is left."""
    folder = tmp_path_factory.mktemp("load")
    options = load.parser().parse_args(["--pods", "2", "--jobs", "10", "--concurrency", "2", "--warm-up", "2"])

    async def run() -> load.Result:
        async with load.site(options, folder) as place:
            return await load.drive(place, options)

    return asyncio.run(run()), folder / "data" / "troupe.sqlite3"


def test_every_job_of_a_run_succeeds_once(driven: tuple[load.Result, Path]) -> None:
    assert (driven[0].not_succeeded, driven[0].doubled) == (0, 0)


def test_a_run_tells_the_cpu_of_every_process(driven: tuple[load.Result, Path]) -> None:
    assert set(driven[0].cpu_ms_per_job) == {"control plane", "pods", "load"}


def test_a_filled_database_has_the_copies_and_what_belongs_to_them(driven: tuple[load.Result, Path]) -> None:
    path = driven[1]
    filling.fill_jobs(f"sqlite:///{path}", 0, 5, 3)
    filling.fill_characters(f"sqlite:///{path}", 3)
    with sqlite3.connect(path) as connection:
        copied = "SELECT count(*) FROM {} t JOIN characters c ON c.id = t.character_id"
        counts = [connection.execute(copied.format(table)).fetchone()[0] for table in ("jobs", "assets", "versions")]
    assert counts == [5, 5, 3]


def test_both_policies_run_every_job_of_a_scene() -> None:
    outcomes = placement.compare(SMALL, 1)
    assert all(outcome.lora_loads > 0 and outcome.seconds > 0 for outcome in outcomes.values())


def test_round_robin_costs_more_loads_than_switch_cost_in_a_backlog() -> None:
    outcomes = placement.compare(SMALL, 1)
    assert outcomes["switch_cost"].lora_loads < outcomes["round_robin"].lora_loads / 2


def test_the_same_seed_gives_the_same_jobs() -> None:
    assert placement.arrivals(SMALL, 3) == placement.arrivals(SMALL, 3)


def row(pods: int, cpu: float, rate: float, yardstick: float = 1.0) -> dict[str, Any]:
    return {
        "pods": pods, "cpu_ms_per_job": {"control plane": cpu}, "finished_per_second": rate, "not_succeeded": 0,
        "doubled": 0, "yardstick_ms": yardstick,
    }  # fmt: skip


def test_a_missed_rate_is_told() -> None:
    verdicts = throughput.judged({"load": {"sqlite": [row(100, 3.0, 250.0)]}, "idle": {}})
    assert [met for told, met in verdicts if "finished/s" in told] == [True, False]


def test_growth_with_pods_is_the_median_of_the_rounds() -> None:
    rounds = [(1.0, 1.1), (2.0, 2.2), (1.0, 5.0)]
    rows = [row(10, 1.0, 1.0), row(1000, 9.0, 1.0)]
    for index, one in enumerate(rows):
        one["rounds"] = [row(one["pods"], pair[index], 1.0) for pair in rounds]
    told = [one for one in throughput.judged({"load": {"sqlite": rows}, "idle": {}}) if "grows 1.10-fold" in one[0]]
    assert [met for _, met in told] == [True]


def test_growth_is_judged_by_the_yardstick() -> None:
    # Twice the CPU time on a machine that was half as fast is no growth.
    assert load.growth(row(10, 3.0, 0.0, 1.0), row(1000, 6.0, 0.0, 2.0)) == 1.0


def test_lost_jobs_are_told() -> None:
    found = {"load": {"sqlite": [row(1, 3.0, 10.0) | {"not_succeeded": 1}]}, "idle": {}}
    assert [met for told, met in throughput.judged(found) if "lost or doubled" in told] == [False]


def test_growth_over_a_long_past_is_judged() -> None:
    rows = [
        row(4, cpu, 1.0) | {"database": "sqlite", "finished_jobs": size} for size, cpu in ((10_000, 1.0), (10**6, 2.0))
    ]
    assert [met for _, met in scale.judged(rows)] == [False]


def test_added_latency_is_against_the_direct_median_of_the_same_round() -> None:
    ways = {
        "direct": overhead.Rounds([10.0, 20.0], [[0.1, 0.1], [0.2, 0.2]]),
        "troupe": overhead.Rounds([5.0, 10.0], [[0.11, 0.11], [0.21, 0.21]]),
    }
    told = overhead._told(ways)["troupe"]
    assert (told["share_of_direct"], round(told["added_p50_ms"])) == (0.5, 10)
