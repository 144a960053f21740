"""`python -m tests.chaos`: chaos runs on SQLite and on PostgreSQL, their tables, and docs/reliability.md."""
# ruff: noqa: T201 (a command prints)

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.chaos import report
from tests.chaos.run import Outcome, chaos
from tests.chaos.shape import Shape


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000, help="at least so many on each database")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", type=int, default=3, help="how often each failpoint fails in each of its ways")
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument(
        "--only", action="append", metavar="STEP|FAILPOINT[: KIND]", help="only these steps or failpoints; repeat"
    )
    parser.add_argument("--servers", type=int, default=0, help="control planes (1 on SQLite, 3 on PostgreSQL)")
    parser.add_argument("--planted", default="", choices=("", "no claim check", "no key row"), help="a bug to find")
    parser.add_argument("--folder", type=Path, help="keep everything here")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    databases = ("sqlite", "postgresql") if options.database == "both" else (options.database,)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="troupe-chaos-") as scratch:
        for database in databases:
            shape = Shape(
                database,
                options.jobs,
                options.seed,
                options.times,
                None if options.only is None else tuple(options.only),
                servers=options.servers,
                planted=options.planted,
            )
            outcomes.append(asyncio.run(chaos(shape, (options.folder or Path(scratch)) / database)))
            show(outcomes[-1])
    print(report.counts(outcomes), report.violations(outcomes), sep="\n\n")
    return 0 if all(one.is_good for one in outcomes) else 1


def show(outcome: Outcome) -> None:
    print(report.coverage(outcome), report.stories([outcome]), report.details(outcome), sep="\n\n", flush=True)
    for point, kind in outcome.tally.late:
        print(f"never reached: {point.title}: {kind}")


if __name__ == "__main__":
    sys.exit(main())
