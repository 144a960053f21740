"""Outputs: what the nodes of a finished graph reported, read as values; foreign data, nothing in it is trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.domain.jobs import Job
from controlplane.errors import Conflict


@dataclass(frozen=True)
class Reported:
    """One file that an output node says it stored, or that it promised; ``facts`` is the node's own entry.

    Either ``asset_id`` names it, or ``upload``: the reference under which the pod asks for its ticket later on.
    """

    node: str
    kind: str
    asset_id: str
    upload: str
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What people may call it."""
        return str(self.facts.get("name") or self.asset_id or self.upload)


def reported(job: Job, outputs: Mapping[str, Any]) -> list[Reported]:
    """The files of the template's output nodes, in order; entries that name no file are left out."""
    found: list[Reported] = []
    for output in job.outputs:
        node, kind = str(output["node"]), str(output["kind"])
        key, id_key = ("lora", "asset_id") if kind == "lora" else ("assets", "id")
        for facts in _entries(outputs, node, key):
            asset_id, upload = _text(facts, id_key), _text(facts, "upload")
            if asset_id or upload:
                found.append(Reported(node, kind, asset_id, "" if asset_id else upload, facts))
    return found


def asset_ids(named: Sequence[Reported], id_of_upload: Mapping[str, str]) -> list[str]:
    """The assets of what was reported, in order and each once. Conflict where a promised file has none."""
    ids = [one.asset_id or id_of_upload.get(one.upload, "") for one in named]
    if not all(ids):
        raise Conflict("A file that the pod promised is not there any more.")
    return list(dict.fromkeys(ids))


def warnings_of(outputs: Mapping[str, Any]) -> list[str]:
    """What the nodes found worth a warning: a LoRA that fits the loaded model only in part, a trainer's doubts."""
    warnings: list[str] = []
    for node in outputs:
        for facts in _entries(outputs, node, "character"):
            matched, total = facts.get("matched"), facts.get("total")
            if isinstance(matched, int) and isinstance(total, int) and 0 < matched < total:
                warnings.append(
                    f"only {matched} of {total} modules of the LoRA of {facts.get('character_id')} exist in the model"
                )
        for facts in _entries(outputs, node, "lora"):
            doubts = facts.get("warnings")
            if isinstance(doubts, list | tuple):
                warnings.extend(str(doubt) for doubt in doubts if doubt)
    return warnings


def number(facts: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a node's report, None where there is none."""
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        return None
    return value


def _text(facts: Mapping[str, Any], name: str) -> str:
    value = facts.get(name)
    return value if isinstance(value, str) else ""


def _entries(outputs: Mapping[str, Any], node: str, key: str) -> Iterator[Mapping[str, Any]]:
    ui = outputs.get(node)
    entries = ui.get(key) if isinstance(ui, Mapping) else None
    if isinstance(entries, list | tuple):
        yield from (entry for entry in entries if isinstance(entry, Mapping))
