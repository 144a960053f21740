"""Imported templates on disk: ``<folder>/<name>/`` with the original file; older versions under ``.versions/``."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path

import yaml

from controlplane.errors import InvalidTemplate
from controlplane.workflows import graph as graphs
from controlplane.workflows import template as template_files
from controlplane.workflows.importing import Imported
from controlplane.workflows.sources import Source
from controlplane.workflows.template import Template

log = logging.getLogger("troupe.workflows")

VERSIONS = ".versions"
INCOMING = ".incoming-"


def load_all(folder: Path) -> dict[str, Template]:
    """Every imported template that can be read; one that cannot (edited by hand) is logged and left out."""
    if not folder.is_dir():
        return {}
    _put_back(folder)
    found = {}
    for manifest in sorted(folder.glob("*/manifest.yaml")):
        if manifest.parent.name.startswith("."):
            continue
        try:
            found[manifest.parent.name] = template_files.load(manifest.parent)
        except InvalidTemplate as error:
            log.error("imported workflow %s is left out: %s", manifest.parent.name, error.detail)
    return found


def store(folder: Path, imported: Imported, source: Source) -> Template:
    """Write a template as the current version of its name; the one that was there becomes an older version.

    Answers the template as it reads back from disk: what a restart would find.
    """
    folder.mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(prefix=INCOMING, dir=folder))
    try:
        template = imported.template
        _write_json(incoming / "graph.json", graphs.to_api(template.graph))
        _write_json(incoming / "example.json", dict(template.example))
        text = yaml.safe_dump(dict(imported.manifest), sort_keys=False, allow_unicode=True, width=110)
        (incoming / "manifest.yaml").write_text(text, encoding="utf-8")
        (incoming / f"original{source.suffix}").write_bytes(source.original)
        incoming.chmod(0o755)
        current = folder / template.name
        if current.exists():
            _archive(folder, template.name)
        incoming.rename(current)
        return template_files.load(current)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def remove(folder: Path, name: str) -> None:
    """Delete a template with its older versions and its original."""
    # The versions first: what is left of a half-done removal must not look like a half-done import.
    shutil.rmtree(folder / VERSIONS / name, ignore_errors=True)
    if (folder / name).exists():
        shutil.rmtree(folder / name)


def versions(folder: Path, name: str) -> list[str]:
    """The digests of the older versions that are kept, newest last."""
    kept = folder / VERSIONS / name
    return [path.name for path in sorted(kept.iterdir(), key=_age)] if kept.is_dir() else []


def _archive(folder: Path, name: str) -> None:
    kept = folder / VERSIONS / name
    kept.mkdir(parents=True, exist_ok=True)
    try:
        digest = template_files.load(folder / name).digest
    except InvalidTemplate:
        digest = "unreadable"
    shutil.rmtree(kept / digest, ignore_errors=True)
    (folder / name).rename(kept / digest)
    (kept / digest).touch()


def _put_back(folder: Path) -> None:
    """After a crash between the two renames of an import, the version before it is the current one again."""
    for kept in (folder / VERSIONS).glob("*"):
        older = sorted(kept.iterdir(), key=_age)
        if older and not (folder / kept.name).exists():
            older[-1].rename(folder / kept.name)
    for left in folder.glob(f"{INCOMING}*"):
        shutil.rmtree(left, ignore_errors=True)


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
