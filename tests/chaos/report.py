"""Reports of chaos runs: tables for the terminal and the page docs/reliability.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.chaos.points import KINDS, points_of
from tests.chaos.run import Outcome

CHECKS = (
    "not final",
    "final events",
    "final event and state differ",
    "events after the end",
    "accepted and gone",
    "never answered",
    "refused without a reason",
    "one key, several jobs",
    "one key, several answers",
    "jobs that nobody was promised",
    "keys kept",
    "too many attempts",
    "attempts without an end",
    "attempts without a story",
    "winners",
    "run again without a loss",
    "runs that no attempt asked for",
    "succeeded without a run",
    "assets of a job",
    "assets without a job",
    "assets of a job that did not succeed",
    "assets of a losing attempt",
    "announced and left behind",
    "another job's picture",
    "bytes",
    "assets without a file",
    "files without an asset",
    "streams of one job",
    "the project's stream",
    "webhook ids of one event",
    "events without a webhook",
    "webhooks lost",
    "webhooks of nobody",
    "webhooks that changed",
    "webhooks with a bad signature",
    "API and database differ",
)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)])


def counts(outcomes: Sequence[Outcome]) -> str:
    """What was counted, side by side."""
    names = dict.fromkeys(name for one in outcomes for name in one.findings.counts)
    rows = [[name, *(one.findings.counts.get(name, 0) for one in outcomes)] for name in names]
    deaths = dict.fromkeys(name for one in outcomes for name in one.deaths)
    rows += [[f"deaths of {name}", *(one.deaths.get(name, "-") for one in outcomes)] for name in deaths]
    rows += [["seconds", *(round(one.seconds) for one in outcomes)]]
    return table(["", *(one.shape.database for one in outcomes)], rows)


def violations(outcomes: Sequence[Outcome]) -> str:
    """Every check and how often it failed."""
    others = {name for one in outcomes for name in one.findings.violations} - set(CHECKS)
    rows = [[name, *(len(one.findings.violations.get(name, ())) for one in outcomes)] for name in (*CHECKS, *others)]
    return table(["must be 0", *(one.shape.database for one in outcomes)], rows)


def stories(outcomes: Sequence[Outcome]) -> str:
    """Why attempts ended without success, and jobs with them."""
    names = sorted({name for one in outcomes for name in one.findings.notes})
    return table(
        ["", *(one.shape.database for one in outcomes)],
        [[name, *(one.findings.notes[name] for one in outcomes)] for name in names],
    )


def coverage(outcome: Outcome) -> str:
    """How often each failpoint failed in each way; why some know some ways not."""
    rows = []
    for point in points_of(outcome.shape.database):
        if not any(outcome.shape.wants(point.step, point.title, kind) for kind in point.kinds):
            continue
        cells = [
            outcome.tally.fired[(point.title, kind)] if kind in point.kinds else f"- ({point.why_not.get(kind, '')})"
            for kind in KINDS
        ]
        rows.append([point.step, point.title, *cells])
    return table(["step", "failpoint", *KINDS], rows)


def uncovered(outcome: Outcome) -> list[str]:
    """What did not fail as often as was asked for."""
    shape = outcome.shape
    return [
        f"{point.title}: {kind} ({outcome.tally.fired[(point.title, kind)]})"
        for point in points_of(shape.database)
        for kind in point.kinds
        if shape.wants(point.step, point.title, kind) and outcome.tally.fired[(point.title, kind)] < shape.times
    ]


def details(outcome: Outcome, most: int = 20) -> str:
    """The violations of a run, with their first examples."""
    lines = []
    for name, found in outcome.findings.violations.items():
        lines.append(f"{name}: {len(found)}")
        lines += [f"    {one}" for one in found[:most]]
    return "\n".join(lines)
