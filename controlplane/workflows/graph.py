"""Graphs in ComfyUI's API format as values: parsing, links, order and the digest that names one exactly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeGuard

from controlplane.errors import InvalidTemplate


@dataclass(frozen=True)
class Node:
    """One node: its class, its inputs (literals, or links ``[node id, output slot]``) and the title people see."""

    class_type: str
    inputs: Mapping[str, Any]
    title: str = ""


Graph = Mapping[str, Node]


def parse(raw: Any) -> dict[str, Node]:
    """Read a graph in API format ``{id: {class_type, inputs, _meta?}}``; InvalidTemplate says what is wrong with it."""
    if not isinstance(raw, Mapping) or not raw:
        raise InvalidTemplate("A graph is a non-empty object of nodes by id (ComfyUI: Export (API)).")
    if "nodes" in raw and isinstance(raw["nodes"], list):
        raise InvalidTemplate("This is a workflow of ComfyUI's editor; export it with Export (API) instead.")
    graph = {str(node_id): _node(str(node_id), node) for node_id, node in raw.items()}
    _check_links(graph)
    return graph


def to_api(graph: Graph) -> dict[str, Any]:
    """The graph as ComfyUI's API wants it, titles included."""
    return {
        node_id: {
            "class_type": node.class_type,
            "inputs": dict(node.inputs),
            **({"_meta": {"title": node.title}} if node.title else {}),
        }
        for node_id, node in graph.items()
    }


def canonical(value: Any) -> bytes:
    """One spelling of a JSON value: sorted keys, no spaces, ASCII. NaN and infinity are refused (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of a graph in API format, or of any JSON value."""
    return hashlib.sha256(canonical(value)).hexdigest()


def is_link(value: Any) -> TypeGuard[list[Any]]:
    """Whether an input value is a link to another node's output."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


def links(graph: Graph) -> Iterator[tuple[str, str, str, int]]:
    """Every link as (node id, input name, source node id, source slot)."""
    for node_id, node in graph.items():
        for name, value in node.inputs.items():
            if is_link(value):
                yield node_id, name, value[0], value[1]


def in_order(graph: Graph) -> list[str]:
    """The nodes' ids, each behind everything that it depends on."""
    sources: dict[str, set[str]] = {node_id: set() for node_id in graph}
    for node_id, _, source, _ in links(graph):
        sources[node_id].add(source)
    return list(TopologicalSorter(sources).static_order())


def node_classes(graph: Graph) -> frozenset[str]:
    """The classes of a graph's nodes."""
    return frozenset(node.class_type for node in graph.values())


def _node(node_id: str, raw: Any) -> Node:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("class_type"), str) or not raw["class_type"]:
        raise InvalidTemplate(f"Node {node_id!r} has no class_type.")
    # A node without an inputs object kills ComfyUI's worker when nothing reaches it.
    if not isinstance(raw.get("inputs"), Mapping):
        raise InvalidTemplate(f"Node {node_id!r} has no inputs object.")
    meta = raw.get("_meta")
    title = meta.get("title", "") if isinstance(meta, Mapping) else ""
    return Node(class_type=raw["class_type"], inputs=dict(raw["inputs"]), title=str(title))


def _check_links(graph: Graph) -> None:
    for node_id, node in graph.items():
        for name, value in node.inputs.items():
            # ComfyUI would follow ["7", false] or ["7", 0.0] as a link; to everything here it would be none.
            if isinstance(value, list) and len(value) == 2 and type(value[1]) in (bool, float):
                raise InvalidTemplate(f"Input {name!r} of node {node_id!r} is linked to no whole number of an output.")
    sources: dict[str, set[str]] = {node_id: set() for node_id in graph}
    for node_id, name, source, slot in links(graph):
        if source not in graph or slot < 0:
            raise InvalidTemplate(f"Input {name!r} of node {node_id!r} is linked to {source!r}, which is not there.")
        sources[node_id].add(source)
    try:
        TopologicalSorter(sources).prepare()
    except CycleError as error:
        raise InvalidTemplate(f"The graph runs in a circle: {' -> '.join(error.args[1])}.") from None
