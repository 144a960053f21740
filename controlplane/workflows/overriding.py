"""Values typed on a command line, written into an artist's own graph before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.errors import BadRequest
from controlplane.workflows import graph as graphs
from controlplane.workflows.graph import Graph
from controlplane.workflows.object_info import Facts, upload_fields
from controlplane.workflows.titles import titled
from controlplane.workflows.tracing import Found, trace
from controlplane.workflows.walking import is_literal


@dataclass(frozen=True)
class Picture:
    """A field that names a picture: it may lie on this machine, and is then uploaded first."""

    node: str
    field: str
    name: str


def settable(graph: Graph, facts: Facts) -> dict[str, Found]:
    """The inputs of a graph by name, titles first; InvalidTemplate for a title that fits no field."""
    return {**trace(graph, facts, {}).found, **titled(graph, facts)}


def with_values(graph: Graph, found: Mapping[str, Found], values: Mapping[str, str]) -> dict[str, Any]:
    """The graph in API format with values in place; ``values`` are texts by input name, or by ``node.field``.

    Each takes the type of what it replaces. Raises BadRequest with the names that there are.
    """
    api = graphs.to_api(graph)
    for name, text in values.items():
        for node_id, field in _places(graph, found, name):
            api[node_id]["inputs"][field] = _typed(name, text, api[node_id]["inputs"][field])
    return api


def pictures(api: Mapping[str, Any], facts: Facts) -> list[Picture]:
    """Every field of a graph in API format that names an uploaded picture."""
    graph = graphs.parse(api)
    return [
        Picture(node_id, field, str(node.inputs[field]))
        for node_id, node in graph.items()
        for field in upload_fields(graph, facts, node_id)
        if is_literal(node.inputs[field], "text")
    ]


def _places(graph: Graph, found: Mapping[str, Found], name: str) -> Sequence[tuple[str, str]]:
    if name in found:
        return found[name].places
    node_id, _, field = name.rpartition(".")
    if node_id in graph and field in graph[node_id].inputs:
        return [(node_id, field)]
    raise BadRequest(f"There is no input {name!r}; there are {', '.join(sorted(found))}, and any NODE.FIELD.")


def _typed(name: str, text: str, present: Any) -> Any:
    try:
        if isinstance(present, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(present, int):
            # Exports write 4.0 as 4, so a whole number may be replaced by any.
            return float(text) if "." in text or "e" in text.lower() else int(text)
        if isinstance(present, float):
            return float(text)
    except (KeyError, ValueError):
        kind = "true or false" if isinstance(present, bool) else "a number"
        raise BadRequest(f"{name} is {kind}, not {text!r}.") from None
    if isinstance(present, str):
        return text
    raise BadRequest(f"{name} is connected to another node, or is a list: set the node that holds the value.")
