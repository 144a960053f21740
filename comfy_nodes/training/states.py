"""A trainer's saved state as one tar: packed for its upload, and unpacked on the pod that goes on from it."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..control_plane import SavedState
from ..transport import Stream, TransportError, retrying
from .job import Resume

MEDIA_TYPE = "application/x-tar"
MAX_STATE_BYTES = 16 << 30
# In the tar, beside the folder `state`: where the training stood, and the settings it has to be continued with.
_NOTE = "troupe.json"
_FOLDER = "state"

Download = Callable[[str], AbstractContextManager[Stream]]


class StateError(ValueError):
    """A saved state that cannot be used; the message says why."""


def state_name(epoch: int, step: int) -> str:
    """The name of an uploaded state; the control plane reads epoch and step from it."""
    return f"state-e{epoch:06d}-s{step:08d}.tar"


def pack(folder: Path, target: Path, epoch: int, step: int, settings: Mapping[str, Any]) -> None:
    """Write the tar of a state folder. Raises OSError, also where a file is deleted meanwhile."""
    note = target.with_suffix(".json")
    note.write_text(json.dumps({"epoch": epoch, "step": step, "settings": dict(settings)}), encoding="utf-8")
    with tarfile.open(target, "w") as archive:
        archive.add(note, _NOTE)
        archive.add(folder, _FOLDER)
    note.unlink()


def fetch(saved: SavedState, folder: Path, download: Download, check: Callable[[], None]) -> Resume:
    """Download and unpack a state into `folder`; `check` may raise. Raises StateError or TransportError."""
    folder.mkdir(parents=True)
    archive = folder / "state.tar"
    retrying(lambda: _download(saved, archive, download, check))
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        resume = Resume(folder / _FOLDER, int(note["step"]), int(note["epoch"]), dict(note["settings"]))
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"it is damaged: {type(error).__name__} {error}") from error
    finally:
        archive.unlink()
    if not resume.folder.is_dir():
        raise StateError("it is damaged: it holds no state")
    return resume


def _download(saved: SavedState, target: Path, download: Download, check: Callable[[], None]) -> None:
    if saved.bytes > MAX_STATE_BYTES:
        raise StateError(f"it has {saved.bytes} bytes")
    digest, size = hashlib.sha256(), 0
    with download(saved.url) as stream, target.open("wb") as file:
        for chunk in stream.chunks:
            check()
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            if size > saved.bytes:
                raise StateError("it is longer than stated")
    if size < saved.bytes:
        raise TransportError(None, "cut_off", f"the saved state ended after {size} of {saved.bytes} bytes")
    if digest.hexdigest() != saved.sha256:
        raise StateError("it is not the one that was stored: its sha256 differs")
