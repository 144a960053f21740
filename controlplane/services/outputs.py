"""Outputs: what the nodes of a finished graph reported, read as values; foreign data, nothing in it is trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.domain.jobs import Job


@dataclass(frozen=True)
class Reported:
    """One file that an output node says it stored; ``facts`` is the node's own entry."""

    node: str
    kind: str
    asset_id: str
    facts: Mapping[str, Any]


def reported(job: Job, outputs: Mapping[str, Any]) -> list[Reported]:
    """The files of the template's output nodes, in order; entries without an asset id are left out."""
    found: list[Reported] = []
    for output in job.outputs:
        node, kind = str(output["node"]), str(output["kind"])
        key, id_key = ("lora", "asset_id") if kind == "lora" else ("assets", "id")
        for facts in _entries(outputs, node, key):
            asset_id = facts.get(id_key)
            if isinstance(asset_id, str):
                found.append(Reported(node, kind, asset_id, facts))
    return found


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


def _entries(outputs: Mapping[str, Any], node: str, key: str) -> Iterator[Mapping[str, Any]]:
    ui = outputs.get(node)
    entries = ui.get(key) if isinstance(ui, Mapping) else None
    if isinstance(entries, list | tuple):
        yield from (entry for entry in entries if isinstance(entry, Mapping))
