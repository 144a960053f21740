"""What a template says of node classes, held against what a ComfyUI's /object_info says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from controlplane.workflows.graph import Node, is_link
from controlplane.workflows.template import Input, Target, Template

ObjectInfo = Mapping[str, Any]
LITERALS: Mapping[str, tuple[type, ...]] = {"INT": (int,), "FLOAT": (int, float), "STRING": (str,), "BOOLEAN": (bool,)}
FITTING: Mapping[str, tuple[str, ...]] = {
    "integer": ("INT", "FLOAT"),
    "number": ("FLOAT",),
    "string": ("STRING", "COMBO"),
    "boolean": ("BOOLEAN",),
    "image": ("COMBO",),
}


def pack_info() -> dict[str, Any]:
    """Our own classes as ComfyUI would describe them: straight from the pack."""
    from comfy_nodes import NODE_CLASS_MAPPINGS

    return {name: {"input": one.INPUT_TYPES(), "output": one.RETURN_TYPES} for name, one in NODE_CLASS_MAPPINGS.items()}


def disagreements(template: Template, info: ObjectInfo) -> list[str]:
    """Every point where graph or manifest say what this ComfyUI does not know; empty where it would take them."""
    found: list[str] = []
    in_force = {node_id: _in_force(template, node_id, node) for node_id, node in template.graph.items()}
    for node_id, node in in_force.items():
        if node.class_type not in info:
            found.append(f"{node_id}: there is no class {node.class_type}")
            continue
        found.extend(f"{node_id} {node.class_type}: {fault}" for fault in _of_node(template, node, info))
    for name, spec in template.inputs.items():
        for target in spec.targets:
            entry = info.get(template.graph[target.node].class_type)
            found.extend(f"input {name}: {fault}" for fault in _of_input(spec, target, _field(entry, target.field)))
    unused = set(template.needs.nodes) - {node.class_type for node in template.graph.values()}
    return [*found, *(f"needs {name}, which the graph does not use" for name in sorted(unused))]


def _in_force(template: Template, node_id: str, node: Node) -> Node:
    """The node with the defaults of its inputs; what a request must give is a placeholder, so it is None here."""
    targets = [(spec, one) for spec in template.inputs.values() for one in spec.targets if one.node == node_id]
    defaults = {target.field: spec.default if target.text is None else "" for spec, target in targets}
    return replace(node, inputs={**node.inputs, **defaults})


def _of_node(template: Template, node: Node, info: ObjectInfo) -> Iterator[str]:
    entry = info[node.class_type]
    for name in entry["input"].get("required") or {}:
        if name not in node.inputs:
            yield f"{name} is required"
    for name, value in node.inputs.items():
        field = _field(entry, name)
        if field is None:
            yield f"there is no input {name}"
        elif is_link(value):
            source = template.graph[value[0]].class_type
            kinds = info[source]["output"] if source in info else None
            if kinds is not None and (value[1] >= len(kinds) or kinds[value[1]] != field[0]):
                yield f"{name} takes {field[0]}, which slot {value[1]} of {source} is not"
        elif value is not None:
            yield from (f"{name} {fault}" for fault in _of_value(template, value, *field))


def _of_value(template: Template, value: Any, kind: str, facts: Mapping[str, Any]) -> Iterator[str]:
    if kind == "COMBO":
        files = {name for names in template.needs.models.values() for name in names}
        if facts["options"] and value not in facts["options"]:
            yield f"{value!r} is no choice"
        elif not facts["options"] and not facts.get("image_upload") and value not in files:
            yield f"the file {value!r} is not among the models that the template needs"
    elif kind not in LITERALS:
        yield f"takes {kind}, not the value {value!r}"
    elif not isinstance(value, LITERALS[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
        yield f"{value!r} is no {kind}"
    elif kind in ("INT", "FLOAT") and not facts.get("min", value) <= value <= facts.get("max", value):
        yield f"{value} is out of range"


def _of_input(spec: Input, target: Target, field: tuple[str, Mapping[str, Any]] | None) -> Iterator[str]:
    if field is None:
        yield f"{target.field} does not exist"
        return
    kind, facts = field
    if kind not in FITTING[spec.type] or (spec.type == "image") != bool(facts.get("image_upload")):
        yield f"a value of type {spec.type} does not fit {kind} at {target.field}"
        return
    if kind in ("INT", "FLOAT"):
        yield from _of_range(spec, facts)
    foreign = set(spec.options) - set(facts["options"]) if kind == "COMBO" and facts["options"] else set()
    if foreign:
        yield f"{', '.join(sorted(foreign))} cannot be chosen at {target.field}"
    if kind == "COMBO" and facts["options"] and not spec.options:
        yield f"takes any text, but {target.field} has {len(facts['options'])} choices"


def _of_range(spec: Input, facts: Mapping[str, Any]) -> Iterator[str]:
    if spec.min is None or spec.max is None:
        yield "has no range"
        return
    if spec.min < facts.get("min", spec.min) or spec.max > facts.get("max", spec.max):
        yield f"{spec.min:g} to {spec.max:g} is more than {facts.get('min')} to {facts.get('max')}"
    step = facts.get("step", 1)
    if spec.type == "integer" and step > 1 and ((spec.step or 1) % step or spec.min % step):
        yield f"does not keep to steps of {step}"


def _field(entry: Any, name: str) -> tuple[str, Mapping[str, Any]] | None:
    """One input of a class as (type, facts); both ways of writing a choice become COMBO with ``options``."""
    groups = entry["input"] if entry is not None else {}
    spec = next((groups[key][name] for key in ("required", "optional") if name in (groups.get(key) or {})), None)
    if spec is None:
        return None
    facts = dict(spec[1]) if len(spec) > 1 else {}
    if isinstance(spec[0], list):
        return "COMBO", {**facts, "options": spec[0]}
    return str(spec[0]), {"options": [], **facts}
