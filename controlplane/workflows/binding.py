"""Binding: a template and values in, one exact graph out. Pure: the same values give the same graph and digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.errors import Unprocessable
from controlplane.workflows import graph as graphs
from controlplane.workflows.template import PLACEHOLDER, Input, Scalar, Target, Template, fault_of


@dataclass(frozen=True)
class Bound:
    """A graph ready to be sent.

    ``graph`` is ComfyUI's API format, ``values`` every input in force (defaults included).
    """

    template: str
    template_digest: str
    graph: Mapping[str, Any]
    values: Mapping[str, Scalar]
    seed: int | None
    output_nodes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """sha256 (hex) of the graph: what determines the picture, together with the pod's models."""
        return graphs.digest(self.graph)


def bind(template: Template, values: Mapping[str, Any]) -> Bound:
    """Write values into a template's graph. ``None`` means not given.

    Raises Unprocessable with one ``{"pointer": "/<input>", "detail"}`` per unknown, missing or unacceptable value.
    """
    given = {name: value for name, value in values.items() if value is not None}
    in_force = _checked(template, given)
    nodes = {node_id: dict(node.inputs) for node_id, node in template.graph.items()}
    for name, value in in_force.items():
        for target in template.inputs[name].targets:
            nodes[target.node][target.field] = _written(target, value, in_force)
    graph = graphs.to_api(
        {
            node_id: graphs.Node(class_type=node.class_type, inputs=nodes[node_id], title=node.title)
            for node_id, node in template.graph.items()
        }
    )
    seed = in_force.get("seed")
    return Bound(
        template=template.name,
        template_digest=template.digest,
        graph=graph,
        values=in_force,
        seed=int(seed) if seed is not None else None,
        output_nodes=template.output_nodes,
    )


def _checked(template: Template, given: Mapping[str, Any]) -> dict[str, Scalar]:
    known = ", ".join(sorted(template.public_inputs)) or "none"
    errors = [
        {"pointer": f"/{name}", "detail": f"workflow {template.name} has no input {name!r}; it takes {known}"}
        for name in given
        if name not in template.inputs
    ]
    in_force: dict[str, Scalar] = {}
    for name, spec in template.inputs.items():
        value = given.get(name, spec.default)
        reason = "is required" if value is None else fault_of(spec, value)
        if reason is None:
            in_force[name] = _typed(spec, value)
        else:
            errors.append({"pointer": f"/{name}", "detail": f"{name} {reason}"})
    if errors:
        raise Unprocessable(
            "; ".join(error["detail"] for error in errors[:3]) + ("; ..." if len(errors) > 3 else "") + ".",
            errors=errors,
        )
    return in_force


def _typed(spec: Input, value: Any) -> Scalar:
    """The checked value in the one type its input has, so that 20 and 20.0 make the same graph."""
    if spec.type == "integer":
        return int(value)
    if spec.type == "number":
        return float(value)
    if spec.type == "boolean":
        return bool(value)
    return str(value)


def _written(target: Target, value: Scalar, in_force: Mapping[str, Scalar]) -> Scalar:
    if target.text is None:
        return value
    # One pass: braces inside a value are never read as a placeholder.
    return PLACEHOLDER.sub(lambda match: str(in_force.get(match[1], "")), target.text)
