"""The list of model files a pod needs: which file of which hub repository belongs where, and its digest."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ModelFilesError(RuntimeError):
    """A model file cannot be had. `code` is for programs, the sentence is for the operator."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True)
class ModelFile:
    """One line of a manifest: `file` at `revision` of hub repository `repo` belongs at `root/folder/name`.

    Where `sha256` or `bytes` is not pinned, the hub's own digest and size are what the bytes are verified against.
    """

    folder: str
    name: str
    repo: str
    file: str
    revision: str = "main"
    sha256: str = ""
    bytes: int = 0
    licence: str = ""

    def path(self, root: Path) -> Path:
        return root / self.folder / self.name

    @property
    def title(self) -> str:
        return f"{self.folder}/{self.name}"


def load_manifest(path: Path) -> tuple[ModelFile, ...]:
    """The model files that a YAML list names. Raises ModelFilesError (code bad_manifest) naming the line at fault."""
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ModelFilesError("bad_manifest", f"{path} cannot be read: {error}") from error
    if not isinstance(rows, list):
        raise ModelFilesError("bad_manifest", f"{path} is not a list of model files")
    return tuple(_model_file(row, f"{path}, file {number}") for number, row in enumerate(rows, 1))


def _model_file(row: Any, where: str) -> ModelFile:
    known = {item.name: type(item.default) for item in fields(ModelFile)}
    if not isinstance(row, dict):
        raise ModelFilesError("bad_manifest", f"{where}: not a mapping")
    for key, value in row.items():
        kind = int if key == "bytes" else str
        if key not in known or not isinstance(value, kind):
            raise ModelFilesError("bad_manifest", f"{where}: {key}: {value!r} is no {kind.__name__} this list knows")
    missing = [key for key in ("folder", "name", "repo", "file") if not row.get(key)]
    if missing:
        raise ModelFilesError("bad_manifest", f"{where}: {', '.join(missing)} missing")
    file = ModelFile(**row)
    for part in (file.folder, file.name):
        pure = PurePosixPath(part)
        if pure.is_absolute() or ".." in pure.parts:
            raise ModelFilesError("bad_manifest", f"{where}: {part!r} leaves the model folder")
    if file.sha256 and not _SHA256.fullmatch(file.sha256):
        raise ModelFilesError("bad_manifest", f"{where}: sha256 is not 64 hex digits")
    return file
