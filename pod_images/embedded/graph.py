"""Reading an API-format graph: links, input declarations, the inputs that one node call gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .registry import NodeClass

Prompt = dict[str, dict[str, Any]]
NodeInputs = dict[str, list[Any]]
# Outputs of a finished node: one list of values for each output slot.
Outputs = list[list[Any]]
_LOOK_AHEAD = 2


@dataclass(frozen=True)
class DynamicPrompt:
    """What a DYNPROMPT input sees: the prompt that is being run."""

    original_prompt: Prompt

    def get_node(self, node_id: str) -> dict[str, Any]:
        return self.original_prompt[node_id]


@dataclass(frozen=True)
class HiddenValues:
    """What hidden inputs may ask for."""

    prompt: Prompt
    extra_data: dict[str, Any] = field(default_factory=dict)

    def value(self, kind: str, node_id: str) -> Any:
        known: dict[str, Callable[[], Any]] = {
            "PROMPT": lambda: self.prompt,
            "DYNPROMPT": lambda: DynamicPrompt(self.prompt),
            "EXTRA_PNGINFO": lambda: self.extra_data.get("extra_pnginfo"),
            "UNIQUE_ID": lambda: node_id,
        }
        return known[kind]() if kind in known else None


def is_link(value: Any) -> bool:
    """A link is a list of a node id and a slot number."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int | float)
        and not isinstance(value[1], bool)
    )


def declared_inputs(node_class: NodeClass) -> dict[str, tuple[str, Any, dict[str, Any]]]:
    """name -> (group, type, options) for the required and optional inputs, required first."""
    found: dict[str, tuple[str, Any, dict[str, Any]]] = {}
    groups = node_class.INPUT_TYPES()
    for group in ("required", "optional"):
        for name, declaration in groups.get(group, {}).items():
            options = declaration[1] if len(declaration) > 1 else {}
            found[name] = (group, declaration[0], options)
    return found


def hidden_inputs(node_class: NodeClass) -> Mapping[str, str]:
    hidden: Mapping[str, str] = node_class.INPUT_TYPES().get("hidden", {})
    return hidden


def links_of(node: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(node id, slot) of every link among a node's inputs, in their order."""
    return [(value[0], int(value[1])) for value in node.get("inputs", {}).values() if is_link(value)]


def gather_inputs(
    node_id: str,
    node: Mapping[str, Any],
    node_class: NodeClass,
    upstream: Callable[[str, int], list[Any]],
    hidden: HiddenValues,
) -> NodeInputs:
    """The lists of values for one node's call; literals of undeclared names are dropped, as ComfyUI does.

    Args:
        upstream: (node id, slot) -> the values of that output.
    """
    declared = declared_inputs(node_class)
    gathered: NodeInputs = {}
    for name, value in node.get("inputs", {}).items():
        if is_link(value):
            gathered[name] = upstream(value[0], int(value[1]))
        elif name in declared:
            gathered[name] = [value]
    for name, kind in hidden_inputs(node_class).items():
        gathered[name] = [hidden.value(kind, node_id)]
    return gathered


def execution_order(
    prompt: Prompt, outputs: list[str], is_cached: Callable[[str], bool], is_output: Callable[[str], bool]
) -> list[str]:
    """Node ids in the order ComfyUI runs them; what is cached is left out, except requested outputs.

    Among the nodes whose inputs are there, an output node goes first, then the one that leads to an output in the
    fewest steps (at most two are looked ahead), then the one found first. A loop in the links cannot get here:
    validation refuses it.
    """
    waits_for = _needed(prompt, outputs, is_cached)
    feeds: dict[str, list[str]] = {node_id: [] for node_id in waits_for}
    for node_id, sources in waits_for.items():
        for source in sources:
            feeds[source].append(node_id)
    order: list[str] = []
    while waits_for:
        ready = [node_id for node_id, sources in waits_for.items() if not sources]
        chosen = min(ready, key=lambda node_id: _steps_to_output(node_id, feeds, is_output))
        order.append(chosen)
        del waits_for[chosen]
        for follower in feeds[chosen]:
            waits_for[follower].discard(chosen)
    return order


def _needed(prompt: Prompt, outputs: list[str], is_cached: Callable[[str], bool]) -> dict[str, set[str]]:
    """node id -> the uncached nodes it waits for, in the order in which a walk from the outputs meets them."""
    waits_for: dict[str, set[str]] = {}
    for output in outputs:
        # An explicit stack: graphs may be deeper than Python's recursion limit.
        stack = [output]
        while stack:
            node_id = stack.pop()
            if node_id in waits_for:
                continue
            sources = [] if is_cached(node_id) else [source for source, _ in links_of(prompt[node_id])]
            waits_for[node_id] = {source for source in sources if not is_cached(source)}
            stack.extend(source for source in sources if source in waits_for[node_id])
    return waits_for


def _steps_to_output(node_id: str, feeds: Mapping[str, list[str]], is_output: Callable[[str], bool]) -> int:
    reached = [node_id]
    for steps in range(_LOOK_AHEAD + 1):
        if any(is_output(other) for other in reached):
            return steps
        reached = [follower for other in reached for follower in feeds[other]]
    return _LOOK_AHEAD + 1
