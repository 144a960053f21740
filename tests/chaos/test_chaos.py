"""A short chaos run on each database, and planted bugs that a run has to find; `make chaos` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.report import details
from tests.chaos.run import chaos
from tests.chaos.shape import PLANTED, Shape

pytestmark = pytest.mark.slow

HANDFUL = (
    "POST /generate-image from clients, request: duplicate",
    "POST /generate-image from clients, answer: cut",
    "POST /prompt to pods, request: cut",
    "POST /prompt to pods, answer: cut",
    "POST /prompt to pods, answer: kill",
    "PUT /files/ from pods, request: cut",
    "PUT /files/ from pods, answer: cut",
    "take before commit: kill",
    "succeed before commit: kill",
    "succeed after commit: kill",
    "a control plane: stall",
    "connections of clients: cut",
    "connections to pods: cut",
    "the database server: kill",
)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_a_short_run_loses_nothing_and_does_nothing_twice(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if database == "postgresql":
        request.getfixturevalue("postgresql")  # says aloud where there is none
    shape = Shape(
        database, jobs=70, seed=4, times=1, only=HANDFUL, servers=2 if database == "postgresql" else 1,
        picture_pods=2, trainings=0, stall=3.0, grace=6.0, longest_job=0.5,
    )  # fmt: skip
    outcome = await chaos(shape, tmp_path)
    assert outcome.is_good, details(outcome)
    assert outcome.findings.counts["succeeded"] > 50
    assert outcome.tally.late == []


@pytest.mark.parametrize(
    ("bug", "violation"), [("no claim check", "final events"), ("no key row", "one key, several jobs")]
)
async def test_a_run_finds_a_planted_bug(bug: str, violation: str, tmp_path: Path) -> None:
    assert violation in (await chaos(PLANTED[bug], tmp_path)).findings.violations
