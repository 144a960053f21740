"""What node classes say of themselves in ComfyUI's /object_info, as values; and what little is known without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.workflows.graph import Graph, is_link

LITERAL_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})

#: What ComfyUI's own loaders and our nodes answer, for the time when no pod is up to ask.
CORE_OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "CheckpointLoaderSimple": ("MODEL", "CLIP", "VAE"),
    "CheckpointLoader": ("MODEL", "CLIP", "VAE"),
    "unCLIPCheckpointLoader": ("MODEL", "CLIP", "VAE", "CLIP_VISION"),
    "ImageOnlyCheckpointLoader": ("MODEL", "CLIP_VISION", "VAE"),
    "UNETLoader": ("MODEL",),
    "UnetLoaderGGUF": ("MODEL",),
    "CLIPLoader": ("CLIP",),
    "DualCLIPLoader": ("CLIP",),
    "TripleCLIPLoader": ("CLIP",),
    "LoraLoader": ("MODEL", "CLIP"),
    "LoraLoaderModelOnly": ("MODEL",),
    "CharacterLoRALoader": ("MODEL", "CLIP", "STRING"),
    "SVD_img2vid_Conditioning": ("CONDITIONING", "CONDITIONING", "LATENT"),
}
CORE_UPLOADS = frozenset({"LoadImage", "LoadImageMask", "LoadImageOutput"})


@dataclass(frozen=True)
class Field:
    """One input of a class. ``type`` is INT, FLOAT, STRING, BOOLEAN, COMBO or the type of a link."""

    type: str
    default: Any = None
    min: float | None = None
    max: float | None = None
    step: float | None = None
    options: tuple[Any, ...] = ()
    multiline: bool = False
    upload: bool = False


@dataclass(frozen=True)
class NodeFacts:
    """One class: its inputs by name, the types and names of its outputs, and whether it is an output node."""

    fields: Mapping[str, Field] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    output_node: bool = False


Facts = Mapping[str, NodeFacts]


def read(raw: Mapping[str, Any]) -> dict[str, NodeFacts]:
    """Read ``GET /object_info`` or one class of it; an entry of an unknown shape is left out."""
    return {str(name): _facts(entry) for name, entry in raw.items() if isinstance(entry, Mapping)}


def output_type(graph: Graph, facts: Facts, source: str, slot: int) -> str:
    """The type of a node's output, empty where nobody knows."""
    class_type = graph[source].class_type
    if class_type in facts:
        told = facts[class_type].outputs
    else:
        told = CORE_OUTPUTS.get(class_type) or _outputs_by_name(class_type, graph[source].inputs)
    return told[slot] if 0 <= slot < len(told) else ""


def link_type(graph: Graph, facts: Facts, node_id: str, name: str) -> str:
    """What flows into a linked input, empty where it is a literal or nobody knows."""
    value = graph[node_id].inputs.get(name)
    return output_type(graph, facts, value[0], value[1]) if is_link(value) else ""


def upload_fields(graph: Graph, facts: Facts, node_id: str) -> list[str]:
    """The inputs of a node that name an uploaded picture."""
    node = graph[node_id]
    if node.class_type in facts:
        known = facts[node.class_type].fields
        return [name for name in node.inputs if name in known and known[name].upload]
    return ["image"] if node.class_type in CORE_UPLOADS and "image" in node.inputs else []


def _outputs_by_name(class_type: str, inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """What the loaders of other packs answer, going by the habit of all of them."""
    name = class_type.lower()
    if "lora" in name and is_link(inputs.get("model")):
        return ("MODEL", "CLIP") if is_link(inputs.get("clip")) else ("MODEL",)
    return ("MODEL", "CLIP", "VAE") if "checkpoint" in name and "ckpt_name" in inputs else ()


def _facts(entry: Mapping[str, Any]) -> NodeFacts:
    fields: dict[str, Field] = {}
    groups = entry.get("input")
    for group in ("required", "optional"):
        inputs = groups.get(group) if isinstance(groups, Mapping) else None
        for name, spec in (inputs if isinstance(inputs, Mapping) else {}).items():
            fields[str(name)] = _field(spec)
    return NodeFacts(
        fields=fields,
        outputs=tuple(kind if isinstance(kind, str) else "COMBO" for kind in _list(entry.get("output"))),
        output_names=tuple(str(name) for name in _list(entry.get("output_name"))),
        output_node=bool(entry.get("output_node")),
    )


def _field(spec: Any) -> Field:
    kind = spec[0] if isinstance(spec, list) and spec else ""
    about = spec[1] if isinstance(spec, list) and len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    options = kind if isinstance(kind, list) else _list(about.get("options"))
    return Field(
        type="COMBO" if isinstance(kind, list) else str(kind),
        default=about.get("default"),
        min=_number(about.get("min")),
        max=_number(about.get("max")),
        step=_number(about.get("step")),
        options=tuple(options),
        multiline=bool(about.get("multiline")),
        upload=bool(about.get("image_upload")),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
