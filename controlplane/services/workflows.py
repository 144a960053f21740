"""Importing workflows: an export becomes a template of the catalogue, checked against the pods, usable at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from controlplane.db import pods as pod_rows
from controlplane.db.database import Database
from controlplane.domain.pods import READY, Pod
from controlplane.errors import Conflict, PodUnreachable, Unprocessable
from controlplane.ports import NodeFactsSource, PodAddress
from controlplane.settings import Settings
from controlplane.workflows import library, object_info
from controlplane.workflows.catalog import Catalog
from controlplane.workflows.fleet import PodVerdict, judge, nobody_can
from controlplane.workflows.importing import Imported, Wish, import_graph
from controlplane.workflows.object_info import Facts
from controlplane.workflows.sources import Source
from controlplane.workflows.template import Template

PODS_ASKED = 4
MAX_IMPORTED = 500
OWN_CLASSES = ("S3Save", "CharacterLoRALoader")


@dataclass(frozen=True)
class Outcome:
    """What an import came to. ``previous`` is the digest of the version that was current before, if any."""

    status: Literal["created", "changed", "unchanged", "checked"]
    imported: Imported
    pods: tuple[PodVerdict, ...]
    warnings: tuple[str, ...]
    previous: str | None = None


class Workflows:
    """The workflows service. Imported templates lie in ``<data>/workflows``; the shipped ones are never touched."""

    def __init__(self, db: Database, settings: Settings, catalog: Catalog, facts: NodeFactsSource) -> None:
        self._db = db
        self._catalog = catalog
        self._facts = facts
        self._folder = imported_folder(settings)
        self._changing = asyncio.Lock()

    async def add(self, project_id: str, source: Source, wish: Wish, dry_run: bool = False) -> Outcome:
        """Import a graph: find its inputs, make it save through us, check it against the pods, and keep it.

        The same content again changes nothing; other content under the same name becomes the current version, and jobs
        of the version before keep its digest and graph. With ``dry_run`` nothing is kept. Raises InvalidTemplate,
        Unprocessable, ContentRefused, and Conflict for the name of a shipped template; then nothing has changed.
        """
        self._check_name(wish.name)
        pods = await self._db.read(pod_rows.known, project_id)
        facts, silent = await self._facts_of(pods, source.graph)
        merged = {name: one for known in facts.values() for name, one in known.items()}
        imported = await asyncio.to_thread(import_graph, source.graph, wish, merged, self._catalog.models)
        verdicts = tuple(judge(imported.template, pods, facts))
        problem = nobody_can(verdicts)
        warnings = (*([problem] if problem else []), *silent, *imported.notes)
        status, previous = await self._keep(imported, source, dry_run)
        return Outcome(status, imported, verdicts, warnings, previous)

    async def remove(self, name: str) -> None:
        """Delete an imported template with its older versions. NotFound, or Conflict for a shipped one."""
        async with self._changing:
            self._catalog.template(name)
            self._check_name(name)
            self._catalog.templates.drop(name)
            await asyncio.to_thread(library.remove, self._folder, name)

    def older_versions(self, name: str) -> list[str]:
        """The digests of the versions before the current one, newest last."""
        return library.versions(self._folder, name)

    async def _keep(
        self, imported: Imported, source: Source, dry_run: bool
    ) -> tuple[Literal["created", "changed", "unchanged", "checked"], str | None]:
        async with self._changing:
            template = imported.template
            self._check_name(template.name)
            known = self._catalog.templates.state()
            before = known.get(template.name)
            if before is not None and before.digest == template.digest:
                return ("checked" if dry_run else "unchanged"), before.digest
            previous = before.digest if before is not None else None
            if dry_run:
                return "checked", previous
            self._check_room(known)
            stored: Template = await asyncio.to_thread(library.store, self._folder, imported, source)
            self._catalog.templates.put(stored)
            return ("created" if before is None else "changed"), previous

    def _check_name(self, name: str) -> None:
        if self._catalog.templates.is_shipped(name):
            detail = f"workflow {name} belongs to Troupe itself and stays as it is; choose another name"
            raise Conflict(detail, errors=[{"pointer": "/name", "detail": detail}])

    def _check_room(self, known: Mapping[str, Template]) -> None:
        if sum(not self._catalog.templates.is_shipped(name) for name in known) >= MAX_IMPORTED:
            raise Unprocessable(f"There are {MAX_IMPORTED} imported workflows already; remove some first.")

    async def _facts_of(self, pods: list[Pod], graph: Mapping[str, Any]) -> tuple[dict[str, Facts], list[str]]:
        """What the pods that are up say of the graph's node classes, and a sentence for each that did not answer."""
        classes = sorted({str(node["class_type"]) for node in graph.values()} | set(OWN_CLASSES))
        asked = [pod for pod in pods if pod.state == READY][:PODS_ASKED]
        answers = await asyncio.gather(*(self._ask(pod, classes) for pod in asked))
        facts: dict[str, Facts] = {
            pod.id: object_info.read(answer) for pod, answer in zip(asked, answers, strict=True) if answer
        }
        silent = [
            f"{pod.name or pod.id} did not say what its nodes take"
            for pod, answer in zip(asked, answers, strict=True)
            if answer is None
        ]
        return facts, silent

    async def _ask(self, pod: Pod, classes: list[str]) -> Mapping[str, Any] | None:
        try:
            return await self._facts.object_info(PodAddress(pod.id, pod.address, pod.token, pod.kind), classes)
        except PodUnreachable:
            return None


def imported_folder(settings: Settings) -> Path:
    """Where imported templates lie."""
    return settings.data / "workflows"
