"""Model files from the Hugging Face hub onto a pod's volume: resumed, verified, and shared with pods beside it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .model_hub import Source, Surroundings, describe, download, in_gb, size_of
from .model_manifest import ModelFile, ModelFilesError, load_manifest
from .model_records import is_ours, is_recorded, record
from .shared_lock import Held, LockLostError, Waiting, hold

__all__ = ["ModelFile", "ModelFilesError", "Progress", "Surroundings", "fetch", "load_manifest"]

# What a download leaves free on the disk for everything else.
DISK_MARGIN_BYTES = 256 << 20
REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Progress:
    """How far a fetch is: bytes of the file at hand, percent of everything; `doing` is downloading|checking|waiting."""

    name: str
    done_bytes: int
    total_bytes: int
    percent: float
    doing: str = "downloading"


OnProgress = Callable[[Progress], None]


def fetch(
    manifest: Sequence[ModelFile], root: Path, on_progress: OnProgress, around: Surroundings | None = None
) -> None:
    """Make every file of the manifest lie verified under `root`; blocks. Files recorded as verified cost one `stat`.

    Each file appears whole under its name or not at all; what was downloaded of it is kept for the next try. What
    `on_progress` raises ends the fetch at once. Raises ModelFilesError.
    """
    around = around or Surroundings()
    root.mkdir(parents=True, exist_ok=True)
    wanted = [file for file in manifest if not is_recorded(file, root)]
    if not wanted:
        return
    # What lies there already may be the file that is meant: to find that out nobody needs the hub.
    sources = [describe(file, around, ask=not file.path(root).exists()) for file in wanted]
    _require_space(sources, root, around)
    report = _Reporter(on_progress, sources)
    for source in sources:
        _fetch_alone(source, root, around, report)
        report.finished(source)


def _fetch_alone(source: Source, root: Path, around: Surroundings, report: _Reporter) -> None:
    """One file, fetched by one process at a time, whichever pod that is."""
    path = source.file.path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = source.part(path)

    def waiting(_seen: Waiting) -> None:
        report(source, size_of(part), "waiting")

    while not is_recorded(source.file, root):
        try:
            with hold(path.with_name(f".{path.name}.lock"), around.patience, waiting) as held:
                if not is_recorded(source.file, root):
                    _fetch_held(source, root, around, report, held)
        except LockLostError:
            continue  # whoever took the lock fetches it now; wait for that


def _fetch_held(source: Source, root: Path, around: Surroundings, report: _Reporter, held: Held) -> None:
    path = source.file.path(root)
    part = source.part(path)
    _drop_other_parts(path, part)
    if path.exists():
        if found := source.verify(path, _telling(source, report, held, "checking")):
            record(source.file, root, found, source.commit)
            return
        if not is_ours(source.file, root):
            raise ModelFilesError(
                "in_the_way", f"{path} is not the file the manifest means and was not put there by this: move it away"
            )
    found = _verified_part(source, part, around, report, held)
    held.check()
    with part.open("rb") as content:
        os.fsync(content.fileno())
    part.replace(path)
    record(source.file, root, found, source.commit)


def _verified_part(source: Source, part: Path, around: Surroundings, report: _Reporter, held: Held) -> str:
    """Download until the bytes are the ones meant; answers their sha256. Bytes that are not are deleted."""
    tries = 2 if part.exists() else 1  # what an earlier run left behind may be bad: then once more, from the start
    for _ in range(tries):
        download(source, part, around, _telling(source, report, held, "downloading"))
        if found := source.verify(part, _telling(source, report, held, "checking")):
            return found
        part.unlink()
    raise ModelFilesError("wrong_digest", f"{source.file.title}: the bytes received are not {source.digest}")


def _telling(source: Source, report: _Reporter, held: Held, doing: str) -> Callable[[int], None]:
    """Hears how many bytes are done; stops the work when the lock is lost."""

    def told(done: int) -> None:
        held.check()
        report(source, done, doing)

    return told


def _require_space(sources: Sequence[Source], root: Path, around: Surroundings) -> None:
    """Before the first byte: is there room for everything that is still missing?"""
    missing = 0
    for source in sources:
        path = source.file.path(root)
        if not path.exists() or is_ours(source.file, root):
            missing += max(0, source.size - size_of(source.part(path)))
    free = around.free_bytes(root)
    if missing and missing + DISK_MARGIN_BYTES > free:
        raise ModelFilesError(
            "no_space",
            f"{in_gb(missing)} of model files are missing and {root} has {in_gb(free)} free: "
            f"make the volume {in_gb(missing + DISK_MARGIN_BYTES - free)} larger",
        )


def _drop_other_parts(path: Path, part: Path) -> None:
    """Pieces of another content under the same name: an earlier manifest wanted them."""
    prefix = f".{path.name}."
    for other in path.parent.iterdir():
        if other.name.startswith(prefix) and other.suffix == ".part" and other != part:
            other.unlink(missing_ok=True)


class _Reporter:
    """Counts over all files and speaks at most every half second, but always when a file is done."""

    def __init__(self, on_progress: OnProgress, sources: Sequence[Source]) -> None:
        self._on_progress = on_progress
        self._total = sum(source.size for source in sources)
        self._finished = 0
        self._spoke = float("-inf")

    def __call__(self, source: Source, done: int, doing: str) -> None:
        if time.monotonic() - self._spoke >= REPORT_SECONDS:
            # While a file is checked all of it is there already.
            self._speak(source, done, self._finished + (source.size if doing == "checking" else done), doing)

    def finished(self, source: Source) -> None:
        self._finished += source.size
        self._speak(source, source.size, self._finished, "checking")

    def _speak(self, source: Source, done: int, overall: int, doing: str) -> None:
        self._spoke = time.monotonic()
        percent = round(100 * min(overall, self._total) / self._total, 2) if self._total else 100.0
        self._on_progress(Progress(source.file.title, done, source.size, percent, doing))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pod_images.model_files", description=__doc__)
    parser.add_argument("manifest", type=Path, help="a YAML list of model files")
    parser.add_argument("root", type=Path, help="the model folder; files go to ROOT/<folder>/<name>")
    options = parser.parse_args(arguments)
    on_terminal = sys.stderr.isatty()
    end = "\n" if on_terminal else ""

    def show(progress: Progress) -> None:
        line = (
            f"{progress.percent:5.1f}%  {progress.name}: {progress.doing}"
            f" {in_gb(progress.done_bytes)} of {in_gb(progress.total_bytes)}"
        )
        sys.stderr.write(f"\r\033[K{line}" if on_terminal else f"{line}\n")
        sys.stderr.flush()

    try:
        manifest = load_manifest(options.manifest)
        fetch(manifest, options.root, show)
    except (ModelFilesError, OSError) as error:  # the disk speaks for itself: read only, full, not ours
        sys.stderr.write(f"{end}{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; what was downloaded is kept and continued next time\n")
        return 130
    total = sum(file.path(options.root).stat().st_size for file in manifest)
    sys.stderr.write(f"{end}{len(manifest)} model files ({in_gb(total)}) are verified\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
