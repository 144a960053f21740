"""What people see: tables of things, verdicts, and the progress of jobs as bars, or lines outside a terminal."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn
from rich.table import Table

from controlplane.client import Client, Json

COLOURS = {
    "ok": "green",
    "ready": "green",
    "succeeded": "green",
    "warn": "yellow",
    "running": "yellow",
    "training": "yellow",
    "draining": "yellow",
    "suspect": "yellow",
    "reject": "red",
    "failed": "red",
    "lost": "red",
}
PERCENT_BETWEEN_LINES = 25.0


def table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Print a table without the columns that are empty; a cell that names a state gets the state's colour."""
    cells = [[_cell(value) for value in row] for row in rows]
    kept = [number for number in range(len(columns)) if not cells or any(row[number] for row in cells)]
    shown = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for number in kept:
        # Where a terminal is narrow, ids stay whole, so that they can be copied; the rest is folded, never cut.
        least = max(map(len, (row[number] for row in cells)), default=0) if number == 0 else None
        shown.add_column(columns[number], overflow="fold", no_wrap=number == 0, min_width=least)
    for row in cells:
        shown.add_row(*(row[number] for number in kept))
    console.print(shown)


def addresses(console: Console, rows: Sequence[tuple[str, str]], title: str) -> None:
    """Print (what, where) pairs as two columns; an address is never broken, however narrow the terminal."""
    console.print(title, style="bold")
    widest = max(len(what) for what, _ in rows)
    for what, where in rows:
        console.print(f"{what:{widest}}  {where}", markup=False, soft_wrap=True)


def verdicts(console: Console, dataset: Mapping[str, Any], name: str) -> None:
    """Print what intake said about every image, and its advice on the whole set."""
    rows = [
        (image["name"], _size(image), image["verdict"], "; ".join(image.get("reasons") or []))
        for image in dataset["images"]
    ]
    table(console, ("image", "pixels", "verdict", "why"), rows, title=f"Reference images of {escape(name)}")
    for advice in dataset.get("advice") or []:
        console.print(f"  {advice}", markup=False)


def failure(console: Console, job: Mapping[str, Any]) -> None:
    """Print why a job did not succeed."""
    error = job.get("error") or {}
    console.print(f"[red]{job['kind']} job {job['id']} {job['status']}[/]", end=" ")
    console.print(f"{error.get('code', '')}: {error.get('detail', 'no reason was given')}", markup=False)


def words_of(progress: Mapping[str, Any]) -> str:
    """A job's progress in words: phase, step, loss and the time left."""
    parts = [str(progress.get("phase") or "")]
    if progress.get("total_steps"):
        parts.append(f"step {progress.get('step') or 0}/{progress['total_steps']}")
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.4f}")
    if progress.get("eta_seconds") is not None:
        parts.append(f"{progress['eta_seconds']:.0f} s left")
    return ", ".join(part for part in parts if part)


class Board(ABC):
    """Live progress of several jobs at once; use it as ``with board(console) as shown``."""

    async def follow(self, client: Client, label: str, job: Mapping[str, Any]) -> Json:
        """Show one job under a label until it is final, and answer the final job."""
        row = self.add(label)

        def told(data: Mapping[str, Any]) -> None:
            if data.get("progress"):  # not every event of a job tells how far it is
                self.tell(row, data["progress"])

        final = await client.follow(job["id"], told)
        self.close(row, final["status"])
        return final

    def __enter__(self) -> Self:
        """Begin to show."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop showing; what was shown stays."""
        return None

    @abstractmethod
    def add(self, label: str) -> TaskID:
        """A new row."""

    @abstractmethod
    def tell(self, row: TaskID, progress: Mapping[str, Any]) -> None:
        """Show a job's progress object."""

    @abstractmethod
    def close(self, row: TaskID, status: str) -> None:
        """Show how a job ended."""


def board(console: Console) -> Board:
    """Bars on a terminal, lines elsewhere."""
    return _Bars(console) if console.is_terminal else _Lines(console)


class _Bars(Board):
    """Progress bars on a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[words]}"),
            console=console,
        )
        self._since: dict[TaskID, float] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def add(self, label: str) -> TaskID:
        row = self._progress.add_task(escape(label), total=100.0, words="")
        self._since[row] = time.monotonic()
        return row

    def tell(self, row: TaskID, progress: Mapping[str, Any]) -> None:
        self._progress.update(row, completed=progress.get("percent") or 0.0, words=escape(words_of(progress)))

    def close(self, row: TaskID, status: str) -> None:
        words = f"{_coloured(status)} after {time.monotonic() - self._since[row]:.1f} s"
        if status == "succeeded":
            self._progress.update(row, completed=100.0)
        self._progress.update(row, words=words)


class _Lines(Board):
    """The same as lines of text, one for every new phase and every quarter."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._labels: list[str] = []
        self._since: list[float] = []
        self._last: list[tuple[str, float]] = []

    def add(self, label: str) -> TaskID:
        self._labels.append(label)
        self._since.append(time.monotonic())
        self._last.append(("", -PERCENT_BETWEEN_LINES))
        return TaskID(len(self._labels) - 1)

    def tell(self, row: TaskID, progress: Mapping[str, Any]) -> None:
        phase, percent = str(progress.get("phase") or ""), float(progress.get("percent") or 0.0)
        last_phase, last_percent = self._last[row]
        if phase != last_phase or percent >= last_percent + PERCENT_BETWEEN_LINES:
            self._last[row] = (phase, percent)
            self._print(row, f"{percent:3.0f} % {words_of(progress)}")

    def close(self, row: TaskID, status: str) -> None:
        self._print(row, f"{status} after {time.monotonic() - self._since[row]:.1f} s")

    def _print(self, row: TaskID, words: str) -> None:
        self._console.print(f"{self._labels[row]}: {words}", markup=False, soft_wrap=True)


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return _coloured(text) if text in COLOURS else escape(text)


def _coloured(state: str) -> str:
    colour = COLOURS.get(state)
    return f"[{colour}]{state}[/]" if colour else escape(state)


def _size(image: Mapping[str, Any]) -> str:
    return f"{image['width']} x {image['height']}" if image.get("width") and image.get("height") else ""
