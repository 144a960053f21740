"""A workflow template: a graph, and a manifest that says which of its fields a request may set and what it needs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from controlplane.domain.texts import is_storable
from controlplane.errors import InvalidTemplate
from controlplane.workflows import graph as graphs

ANY_BASE = "any"
PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
Scalar = bool | int | float | str


class _Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Target(_Frozen):
    """One place in the graph that a value is written to.

    ``text`` (optional) is what is written instead of the bare value: a string with ``{input name}`` placeholders.
    """

    node: str
    field: str
    text: str | None = None


class Input(_Frozen):
    """One value that a request may set.

    ``type``: ``image`` is the name of an uploaded file. An input without a default is required. ``step`` counts from
    ``min`` (integers only). ``internal`` inputs are set by the control plane and never by a request. ``targets: []``
    takes a value that is checked and kept with the job but reaches no node.
    """

    type: Literal["string", "integer", "number", "boolean", "image"]
    targets: tuple[Target, ...]
    default: Scalar | None = None
    min: float | None = None
    max: float | None = None
    step: int | None = pydantic.Field(default=None, ge=1)
    min_length: int = pydantic.Field(default=0, ge=0)
    max_length: int | None = pydantic.Field(default=None, ge=0)
    options: tuple[str, ...] = ()
    internal: bool = False
    description: str = ""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _one_target(cls, raw: Any) -> Any:
        """Accept ``node`` and ``field`` beside the type, the short way to write one target."""
        if not isinstance(raw, Mapping) or "targets" in raw:
            return raw
        short = {key: raw[key] for key in ("node", "field", "text") if key in raw}
        return {**{key: value for key, value in raw.items() if key not in short}, "targets": [short]}

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is None


class Output(_Frozen):
    """A node whose ``ui`` outputs are results, and what they are."""

    node: str
    kind: Literal["image", "video", "lora"]


class Needs(_Frozen):
    """What a pod must have: node classes, model files by folder, labels."""

    nodes: tuple[str, ...] = ()
    models: Mapping[str, tuple[str, ...]] = pydantic.Field(default_factory=dict)
    labels: tuple[str, ...] = ()


class Estimate(_Frozen):
    """What one run costs, roughly: wall clock seconds on the pod that the template was made for."""

    seconds: float = pydantic.Field(gt=0)


class Manifest(_Frozen):
    """manifest.yaml."""

    name: str = pydantic.Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    title: str
    kind: Literal["image", "video", "train"]
    base: str
    description: str = ""
    inputs: Mapping[str, Input]
    outputs: tuple[Output, ...] = pydantic.Field(min_length=1)
    needs: Needs
    estimate: Estimate


@dataclass(frozen=True)
class Template:
    """A checked template. ``digest`` (sha256 hex of graph and manifest) is its version."""

    name: str
    title: str
    kind: str
    base: str
    description: str
    inputs: Mapping[str, Input]
    outputs: tuple[Output, ...]
    needs: Needs
    labels: tuple[str, ...]
    estimate_seconds: float
    graph: graphs.Graph
    digest: str
    example: Mapping[str, Any]

    def takes(self, name: str) -> bool:
        """Whether the template declares this input."""
        return name in self.inputs

    def fits(self, base: str) -> bool:
        """Whether the template is made for this base model."""
        return self.base in (ANY_BASE, base)

    @property
    def output_nodes(self) -> tuple[str, ...]:
        """The ids of the nodes whose outputs are results."""
        return tuple(output.node for output in self.outputs)

    @property
    def public_inputs(self) -> dict[str, Input]:
        """The inputs that a request may set."""
        return {name: spec for name, spec in self.inputs.items() if not spec.internal}


def load(folder: Path) -> Template:
    """Read and check a template folder (graph.json, manifest.yaml, example.json); InvalidTemplate names the folder."""
    try:
        raw_graph = json.loads((folder / "graph.json").read_text("utf-8"))
        raw_manifest = yaml.safe_load((folder / "manifest.yaml").read_text("utf-8"))
        example = json.loads((folder / "example.json").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidTemplate(f"Template folder {folder.name}: {error}") from None
    template = build(raw_graph, raw_manifest, example)
    if template.name != folder.name:
        raise InvalidTemplate(f"Template folder {folder.name} holds a manifest named {template.name}.")
    return template


def build(raw_graph: Any, raw_manifest: Any, example: Mapping[str, Any] | None = None) -> Template:
    """Make a checked template of a graph in API format and a manifest; InvalidTemplate lists every fault."""
    try:
        manifest = Manifest.model_validate(raw_manifest)
    except pydantic.ValidationError as error:
        raise InvalidTemplate("The manifest cannot be read.", errors=_pointers(error)) from None
    graph = graphs.parse(raw_graph)
    faults = _faults(manifest, graph)
    if faults:
        raise InvalidTemplate(
            f"Template {manifest.name}: {faults[0]['detail']}" + (" (and more)" if len(faults) > 1 else ""),
            errors=faults,
        )
    return Template(
        name=manifest.name,
        title=manifest.title,
        kind=manifest.kind,
        base=manifest.base,
        description=manifest.description,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        needs=manifest.needs,
        labels=manifest.needs.labels,
        estimate_seconds=manifest.estimate.seconds,
        graph=graph,
        digest=graphs.digest({"graph": graphs.to_api(graph), "manifest": manifest.model_dump(mode="json")}),
        example=dict(example or {}),
    )


def fault_of(spec: Input, value: Any) -> str | None:
    """Why a value is not acceptable for an input, in words; None where it is."""
    if spec.type == "boolean":
        return None if isinstance(value, bool) else "must be true or false"
    if spec.type in ("integer", "number"):
        return _fault_of_number(spec, value)
    return _fault_of_text(spec, value)


def _fault_of_number(spec: Input, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        return f"must be {'a whole' if spec.type == 'integer' else 'a'} number"
    if spec.type == "integer" and value != int(value):
        return "must be a whole number"
    if spec.min is not None and value < spec.min:
        return f"must be at least {spec.min:.15g}"
    if spec.max is not None and value > spec.max:
        return f"must be at most {spec.max:.17g}"
    first = int(spec.min or 0)
    if spec.type == "integer" and spec.step and (value - first) % spec.step:
        return f"must be {f'{first} plus ' if first % spec.step else ''}a multiple of {spec.step}"
    return None


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def _fault_of_text(spec: Input, value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be text"
    if not is_storable(value):
        return "holds a character that cannot be stored (NUL or half a surrogate pair)"
    if len(value) < spec.min_length:
        return "must not be empty" if spec.min_length == 1 else f"must have at least {spec.min_length} characters"
    if spec.max_length is not None and len(value) > spec.max_length:
        return f"has {len(value)} characters; at most {spec.max_length} are allowed"
    if spec.options and value not in spec.options:
        return f"must be one of {', '.join(spec.options)}"
    return None


def _faults(manifest: Manifest, graph: graphs.Graph) -> list[dict[str, str]]:
    """Where the manifest and the graph do not fit together, as RFC 9457 pointers into the manifest."""
    faults = []
    for name, spec in manifest.inputs.items():
        faults.extend(_faults_of_input(manifest, graph, name, spec))
    for index, output in enumerate(manifest.outputs):
        if output.node not in graph:
            faults.append({"pointer": f"/outputs/{index}/node", "detail": f"there is no node {output.node!r}"})
    missing = graphs.node_classes(graph) - set(manifest.needs.nodes)
    if missing:
        faults.append({"pointer": "/needs/nodes", "detail": f"the graph also uses {', '.join(sorted(missing))}"})
    return faults


def _faults_of_input(manifest: Manifest, graph: graphs.Graph, name: str, spec: Input) -> list[dict[str, str]]:
    faults = []
    for index, target in enumerate(spec.targets):
        pointer = f"/inputs/{name}/targets/{index}"
        node = graph.get(target.node)
        if node is None or target.field not in node.inputs:
            faults.append({"pointer": pointer, "detail": f"{name}: no field {target.field!r} at node {target.node!r}"})
        elif graphs.is_link(node.inputs[target.field]):
            faults.append({"pointer": pointer, "detail": f"{name}: {target.node}.{target.field} is a link"})
        for other in PLACEHOLDER.findall(target.text or ""):
            if other not in manifest.inputs:
                faults.append({"pointer": pointer, "detail": f"{name}: the text names {other!r}, which is no input"})
    if spec.default is not None and (reason := fault_of(spec, spec.default)):
        faults.append({"pointer": f"/inputs/{name}/default", "detail": f"the default of {name} {reason}"})
    return faults


def _pointers(error: pydantic.ValidationError) -> list[dict[str, str]]:
    return [
        {"pointer": "/" + "/".join(str(part) for part in fault["loc"]), "detail": fault["msg"]}
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    ]
