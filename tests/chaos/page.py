"""The page docs/reliability.md: what is promised, what was done to it, and what was counted afterwards."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.chaos import report
from tests.chaos.run import Outcome
from tests.short_recipes import REPOSITORY

PAGE = REPOSITORY / "docs" / "reliability.md"

INTRODUCTION = """\
# Reliability: no job lost, none doubled

`make chaos` wrote this page. It runs jobs over real HTTP while everything that can fail is made to fail, and then
counts from outside - through the API, in the database, in the blob store, at the webhooks' receivers and in the
pods' own journals - whether every promise was kept.

## What is promised

- An accepted request (a 2xx) is one job, whatever happened to the answer: the same `Idempotency-Key` again gets the
  same answer, byte for byte, from any control plane.
- Every job reaches exactly one final state, told by exactly one final event; event streams, resumed by
  `Last-Event-ID`, show every event once and in order.
- A job that succeeded has exactly its files, each with the bytes that its SHA-256 says; a job that did not has
  none, and nothing stays in the store that belongs to nobody.
- A job's work runs again only after a proven loss, at most three times, and every attempt tells what became of it.
- Every event has one webhook id for each endpoint that wants it, and arrives, signed, where the endpoint answers.
"""

METHOD = """\
## What was done

The control planes are `troupe serve`; a supervisor starts each again when it dies. Pods are `pod_images.embedded`
processes that do not try their model before they call themselves ready; their pictures take none, their colours
tell whose they are, and their trainer is done at once, so that the hand-over is what is tested, not the painting.
Between clients, control planes, pods, webhooks' receivers and PostgreSQL lies a network of the harness's own that
cuts, stalls and repeats single requests. Inside the control planes named failpoints (`controlplane/failpoints.py`)
strike at the steps of a job's life: each kill is a SIGKILL of the process at that step, each stall a SIGSTOP until
after its leases have run out. PostgreSQL runs with `fsync=on` and is killed with all its processes.

- **kill**: the process ends there and then (at requests to pods the pod, at requests of clients the control plane).
- **stall**: process or request stands still for longer than a lease.
- **cut**: the connection breaks, before the other side had the request or before the answer came back.
- **duplicate**: the network delivers it twice.

Clients send every request with an `Idempotency-Key` and repeat it until it is answered; some send it twice at the
same moment to two control planes, some send it again after the end, some cancel, some follow event streams over all
breaks. The plan (jobs, strikes, their order) follows from the seed; what the processes are doing at that moment
does not.
"""


def write(outcomes: Sequence[Outcome], planted: Mapping[str, Outcome], path: Path = PAGE) -> None:
    """Write the page."""
    parts = [INTRODUCTION, METHOD, "## What was counted", _circumstances(outcomes), report.counts(outcomes)]
    parts += ["Every check, and how often it failed:", report.violations(outcomes)]
    parts += [
        "Why attempts ended without success, each followed by another or told by the job:",
        report.stories(outcomes),
    ]
    for one in outcomes:
        if not one.is_good:
            parts += [f"### Violations on {one.shape.database}", f"```\n{report.details(one)}\n```"]
    parts += ["## Planted bugs", _planted(planted)]
    for one in outcomes:
        parts += [f"## Coverage on {one.shape.database}", _uncovered(one), report.coverage(one)]
    path.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")


def _circumstances(outcomes: Sequence[Outcome]) -> str:
    shape = outcomes[0].shape
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.strip()
    servers = ", ".join(f"{one.shape.replicas} on {one.shape.database}" for one in outcomes)
    return (
        f"Commit {commit or 'unknown'}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, seed {shape.seed}, at least "
        f"{shape.jobs} jobs on each database and each failpoint {shape.times} times in each of its ways; "
        f"control planes: {servers}; {shape.picture_pods} pods for pictures and one that trains; leases of "
        f"{shape.lease:g} s, stalls of {shape.stall:g} s; {os.cpu_count()} cores, Python {platform.python_version()}."
    )


def _planted(planted: Mapping[str, Outcome]) -> str:
    """That the harness can fail: a server with one safety taken out, and what the same audit says of it."""
    rows = [[bug, "; ".join(f"{name}: {len(found)}" for name, found in one.findings.violations.items()) or "NOT FOUND"]
            for bug, one in planted.items()]  # fmt: skip
    return "Each is a server with one safety taken out; the same audit has to fail.\n\n" + report.table(
        ["planted", "violations found"], rows
    )


def _uncovered(outcome: Outcome) -> str:
    late = report.uncovered(outcome)
    return "Nothing is missing." if not late else "Not often enough: " + "; ".join(late) + "."
