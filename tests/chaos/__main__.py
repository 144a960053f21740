"""`python -m tests.chaos`: chaos runs on SQLite and on PostgreSQL, their tables, and docs/reliability.md."""
# ruff: noqa: T201 (a command prints)

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.chaos import page, report
from tests.chaos.run import Outcome, chaos
from tests.chaos.shape import PLANTED, Shape


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
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no further strike after so long")
    parser.add_argument("--planted", default="", choices=tuple(PLANTED), help="run a server with this bug instead")
    parser.add_argument("--folder", type=Path, help="keep everything here")
    parser.add_argument("--write", action="store_true", help="find the planted bugs too, and write docs/reliability.md")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="troupe-chaos-") as scratch:
        folder = options.folder or Path(scratch)
        wanted = shapes(options)
        with ProcessPoolExecutor(len(wanted)) as together:  # the databases have nothing to do with each other
            outcomes = list(together.map(run, wanted, [folder / shape.database for shape in wanted]))
        for outcome in outcomes:
            show(outcome)
        planted = {}
        if options.write:
            planted = {bug: run(shape, folder / bug) for bug, shape in PLANTED.items()}
            page.write(outcomes, planted)
    print(report.counts(outcomes), report.violations(outcomes), sep="\n\n")
    found = all(not one.is_good for one in planted.values())
    return 0 if found and all(one.is_good and not report.uncovered(one) for one in outcomes) else 1


def shapes(options: argparse.Namespace) -> list[Shape]:
    """The runs that were asked for."""
    if options.planted:
        return [dataclasses.replace(PLANTED[options.planted], seed=options.seed)]
    only = None if options.only is None else tuple(options.only)
    databases = ("sqlite", "postgresql") if options.database == "both" else (options.database,)
    given = {"times": options.times, "only": only, "servers": options.servers, "minutes": options.minutes}
    return [Shape(one, options.jobs, options.seed, **given) for one in databases]


def run(shape: Shape, folder: Path) -> Outcome:
    """One run."""
    return asyncio.run(chaos(shape, folder))


def show(outcome: Outcome) -> None:
    """Print what a run found."""
    print(report.coverage(outcome), report.stories([outcome]), report.details(outcome), sep="\n\n", flush=True)
    print(*(f"not often enough: {one}" for one in report.uncovered(outcome)), sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
