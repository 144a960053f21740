"""What was verified on a volume: one small record per model file, so that a boot does not hash gigabytes again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .model_manifest import ModelFile

RECORDS = ".troupe/verified"


def _record_path(file: ModelFile, root: Path) -> Path:
    return root / RECORDS / file.folder / f"{file.name}.json"


def _read_record(file: ModelFile, root: Path) -> dict[str, Any]:
    """What was verified under this name, as long as the file has not changed since."""
    try:
        found = json.loads(_record_path(file, root).read_text(encoding="utf-8"))
        status = file.path(root).stat()
    except (OSError, ValueError):  # no record, half a record or no file: all mean "not verified"
        return {}
    same = isinstance(found, dict) and (found.get("bytes"), found.get("mtime_ns")) == (
        status.st_size,
        status.st_mtime_ns,
    )
    return found if same else {}


def is_ours(file: ModelFile, root: Path) -> bool:
    """True where the file under this name was put or verified there by us, whatever its content."""
    return bool(_read_record(file, root))


def is_recorded(file: ModelFile, root: Path) -> bool:
    """True where the file lies there unchanged since it was verified to be the one the manifest means."""
    found = _read_record(file, root)
    if not found:
        return False
    if file.sha256:
        return bool(found.get("sha256") == file.sha256)
    return all(found.get(key) == getattr(file, key) for key in ("repo", "file", "revision"))


def record(file: ModelFile, root: Path, sha256: str, commit: str) -> None:
    """Note that the file under this name has this digest; `commit` is what its revision meant on the hub."""
    target = _record_path(file, root)
    target.parent.mkdir(parents=True, exist_ok=True)
    status = file.path(root).stat()
    body = asdict(file) | {
        "sha256": sha256,
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "commit": commit,
    }
    draft = target.with_name(f"{target.name}.{os.getpid()}")
    draft.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    draft.replace(target)
