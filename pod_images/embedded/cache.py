"""Remembering node outputs between prompts: what a node's result depends on, and what is kept."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from dataclasses import dataclass
from typing import Any

from .calling import call_over_lists
from .graph import HiddenValues, Outputs, Prompt, gather_inputs, hidden_inputs, is_link
from .registry import NodeClass, NodeRegistry


@dataclass(frozen=True)
class CachedNode:
    """A finished node: its outputs and its `ui` (empty when it has none)."""

    outputs: Outputs
    ui: dict[str, list[Any]]


class NodeCache:
    """Results of the last prompt's nodes, by what they depend on; node ids and titles do not matter."""

    def __init__(self) -> None:
        self._results: dict[str, CachedNode] = {}
        self._objects: dict[tuple[str, str], Any] = {}
        self._keys: dict[str, str] = {}

    def begin(self, prompt: Prompt, registry: NodeRegistry, hidden: HiddenValues) -> None:
        """Takes the next prompt: results and node objects that it does not mention are dropped."""
        self._keys = signatures(prompt, registry, hidden)
        wanted = set(self._keys.values())
        self._results = {key: result for key, result in self._results.items() if key in wanted}
        present = {(node_id, node["class_type"]) for node_id, node in prompt.items()}
        self._objects = {key: node for key, node in self._objects.items() if key in present}

    def get(self, node_id: str) -> CachedNode | None:
        return self._results.get(self._keys[node_id])

    def put(self, node_id: str, result: CachedNode) -> None:
        self._results[self._keys[node_id]] = result

    def node_object(self, node_id: str, class_type: str, node_class: NodeClass) -> Any:
        """The node's instance, kept between prompts while the graph keeps the node."""
        key = (node_id, class_type)
        if key not in self._objects:
            self._objects[key] = node_class()
        return self._objects[key]

    def known_ids(self) -> list[str]:
        return [node_id for node_id, key in self._keys.items() if key in self._results]

    def clear(self) -> None:
        self._results.clear()
        self._objects.clear()


def signatures(prompt: Prompt, registry: NodeRegistry, hidden: HiddenValues) -> dict[str, str]:
    """node id -> a digest of class, change mark, literal inputs and the same of everything upstream."""
    found: dict[str, str] = {}
    for root in prompt:
        stack = [root]
        while stack:
            node_id = stack[-1]
            missing = [
                value[0]
                for value in prompt[node_id].get("inputs", {}).values()
                if is_link(value) and value[0] in prompt and value[0] not in found and value[0] not in stack
            ]
            if missing:
                stack.append(missing[0])
                continue
            stack.pop()
            found.setdefault(node_id, _signature(node_id, prompt, registry, hidden, found))
    return found


def _signature(
    node_id: str, prompt: Prompt, registry: NodeRegistry, hidden: HiddenValues, found: dict[str, str]
) -> str:
    node = prompt[node_id]
    node_class = registry.classes[node["class_type"]]
    parts: list[Any] = [node["class_type"], _change_mark(node_id, node, node_class, hidden)]
    if "UNIQUE_ID" in hidden_inputs(node_class).values() or getattr(node_class, "NOT_IDEMPOTENT", False):
        parts.append(node_id)
    for name, value in sorted(node.get("inputs", {}).items()):
        parts.append([name, "link", value[1], found.get(value[0])] if is_link(value) else [name, "literal", value])
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


def _change_mark(node_id: str, node: dict[str, Any], node_class: NodeClass, hidden: HiddenValues) -> str | None:
    """What IS_CHANGED answers, as text; a fresh text each time where the node must always run."""
    ask = getattr(node_class, "IS_CHANGED", None)
    if ask is None:
        return None
    try:
        inputs = gather_inputs(node_id, node, node_class, lambda *_: [None], hidden)
        answers = call_over_lists(ask, inputs, bool(getattr(node_class, "INPUT_IS_LIST", False)))
    except Exception:  # a node that cannot tell whether it changed must run
        return uuid.uuid4().hex
    if any(isinstance(answer, float) and math.isnan(answer) for answer in answers):
        return uuid.uuid4().hex
    return repr(answers)
