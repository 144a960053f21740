"""Ways through a graph: who uses a node's output, what lies before and behind it, and which literal feeds a field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from controlplane.workflows.graph import Graph, is_link, links
from controlplane.workflows.object_info import LITERAL_TYPES, output_type

Kind = Literal["text", "number", "any"]

#: Fields in which nodes that hold one value keep it, most telling first.
VALUE_FIELDS = ("value", "text", "string", "prompt", "seed", "int", "float", "number", "Number", "String", "Value")


@dataclass(frozen=True)
class Use:
    """One link seen from its source: the node and input that take output ``slot``."""

    node: str
    name: str
    slot: int


def uses(graph: Graph) -> dict[str, list[Use]]:
    """Who takes each node's outputs."""
    found: dict[str, list[Use]] = {node_id: [] for node_id in graph}
    for node_id, name, source, slot in links(graph):
        found[source].append(Use(node_id, name, slot))
    return found


def before(graph: Graph, node_ids: Iterator[str] | list[str]) -> set[str]:
    """These nodes and everything that they depend on."""
    seen: set[str] = set()
    todo = list(node_ids)
    while todo:
        node_id = todo.pop()
        if node_id not in seen:
            seen.add(node_id)
            todo.extend(value[0] for value in graph[node_id].inputs.values() if is_link(value))
    return seen


def linked(inputs: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """The inputs that are links, as (source, slot)."""
    return {name: (value[0], value[1]) for name, value in inputs.items() if is_link(value)}


def is_literal(value: Any, kind: Kind = "any") -> bool:
    """Whether a value is one that a request could set: text, number or (for ``any``) truth value."""
    if isinstance(value, bool):
        return kind == "any"
    if isinstance(value, str):
        return kind != "number"
    return isinstance(value, int | float) and kind != "text"


def literal_behind(graph: Graph, node_id: str, name: str, kind: Kind) -> tuple[str, str] | None:
    """The (node, field) that holds an input's value: itself, or the one value of the node it is linked to."""
    value = graph[node_id].inputs.get(name)
    if not is_link(value):
        return (node_id, name) if is_literal(value, kind) else None
    while True:
        source_id, slot = value
        source = graph[source_id]
        literals = [field for field, one in source.inputs.items() if is_literal(one, kind)]
        further = [one for one in source.inputs.values() if is_link(one)]
        if literals or len(further) != 1:
            break
        value = further[0]  # a reroute
    told = output_type(graph, {}, source_id, slot)
    if (told and told not in LITERAL_TYPES) or (kind == "any" and further):
        return None  # of a node that computes something, nobody can say which value is meant
    for field in (name, *VALUE_FIELDS):
        if field in literals:
            return source_id, field
    return (source_id, literals[0]) if len(literals) == 1 else None
