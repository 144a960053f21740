"""From found fields to a manifest: each input's type, default, range and options, and what the graph needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.errors import InvalidTemplate
from controlplane.workflows.graph import Graph, node_classes
from controlplane.workflows.object_info import Facts, Field, upload_fields
from controlplane.workflows.titles import without_names
from controlplane.workflows.tracing import Found, named
from controlplane.workflows.walking import is_literal

MAX_SAFE_INTEGER = 2**53 - 1
MAX_PROMPT = 2200
MAX_TEXT = 4000
MAX_OPTIONS = 300

MODEL_FIELDS: Mapping[str, Mapping[str, str]] = {
    "CheckpointLoaderSimple": {"ckpt_name": "checkpoints"},
    "CheckpointLoader": {"ckpt_name": "checkpoints"},
    "unCLIPCheckpointLoader": {"ckpt_name": "checkpoints"},
    "ImageOnlyCheckpointLoader": {"ckpt_name": "checkpoints"},
    "UNETLoader": {"unet_name": "diffusion_models"},
    "CLIPLoader": {"clip_name": "text_encoders"},
    "DualCLIPLoader": {"clip_name1": "text_encoders", "clip_name2": "text_encoders"},
    "TripleCLIPLoader": {f"clip_name{number}": "text_encoders" for number in (1, 2, 3)},
    "VAELoader": {"vae_name": "vae"},
    "LoraLoader": {"lora_name": "loras"},
    "LoraLoaderModelOnly": {"lora_name": "loras"},
    "ControlNetLoader": {"control_net_name": "controlnet"},
    "DiffControlNetLoader": {"control_net_name": "controlnet"},
    "CLIPVisionLoader": {"clip_name": "clip_vision"},
    "StyleModelLoader": {"style_model_name": "style_models"},
    "UpscaleModelLoader": {"model_name": "upscale_models"},
    "HypernetworkLoader": {"hypernetwork_name": "hypernetworks"},
    "GLIGENLoader": {"gligen_name": "gligen"},
}
"""Which folder the file of a loader lies in; other loaders are checked by their list of files alone."""


@dataclass(frozen=True)
class _Standard:
    """What every input of this name is: its type and words, and bounds narrower than a node's own."""

    type: str
    description: str
    min: float | None = None
    max: float | None = None
    max_length: int | None = None
    internal: bool = False


STANDARD: Mapping[str, _Standard] = {
    "prompt": _Standard("string", "What to paint; a character's trigger word comes first.", max_length=MAX_PROMPT),
    "negative_prompt": _Standard("string", "What to stay away from.", max_length=MAX_PROMPT),
    "width": _Standard("integer", "Pixels.", 16, 2048),
    "height": _Standard("integer", "Pixels.", 16, 2048),
    "count": _Standard("integer", "How many pictures.", 1, 16),
    "steps": _Standard("integer", "Sampling steps.", 1, 150),
    # Below 1 a sampler goes towards the negative prompt, which would then be the prompt.
    "cfg": _Standard("number", "How strictly the prompt is followed.", 1.0, 30.0),
    "denoise": _Standard("number", "How far the picture may change.", 0.01, 1.0),
    "seed": _Standard("integer", "The same seed and request give the same result.", 0, MAX_SAFE_INTEGER),
    "frames": _Standard("integer", "How many frames.", 1, 512),
    "fps": _Standard("number", "Frames per second.", 0.5, 120.0),
    "motion": _Standard("string", "What moves, in words.", max_length=2000),
    "image": _Standard("image", "The picture that it starts at."),
    "lora_strength": _Standard("number", "0 is the model alone; -1 is the version's own default.", -1.0, 4.0),
    "character_id": _Standard("string", "", max_length=80, internal=True),
    "version": _Standard("integer", "", 0, 1_000_000, internal=True),
    "lora_sha256": _Standard("string", "", max_length=64, internal=True),
}
FORMATS = {"image": ["png", "webp", "jpeg"], "video": ["mp4", "webm"]}


def input_of(found: Found, graph: Graph, facts: Facts, kind: str) -> dict[str, Any]:
    """One entry of ``inputs``; InvalidTemplate where the field cannot be what its name says."""
    node_id, field_name = found.places[0]
    value = graph[node_id].inputs[field_name]
    spec: dict[str, Any] = {"targets": [{"node": node, "field": name} for node, name in found.places]}
    if found.name == "format":
        options = FORMATS[kind]
        spec |= {"type": "string", "default": value if value in options else options[0], "options": options}
        return {**spec, "description": "File format."}
    known = facts.get(graph[node_id].class_type)
    field = known.fields.get(field_name) if known else None
    if field_name in upload_fields(graph, facts, node_id):
        words = STANDARD["image"].description if found.name == "image" else "A picture, as the id of an asset."
        return {**spec, "type": "image", "min_length": 1, "max_length": 255, "description": words, "internal": False}
    standard = STANDARD.get(found.name)
    kind_of_value = _type(value, field, standard)
    if standard is not None and not _fits(kind_of_value, standard.type):
        raise InvalidTemplate(
            f"{found.name} is {standard.type}, but field {field_name} of node {named(graph, node_id)} is "
            f"{kind_of_value}; choose another name behind the @."
        )
    described = without_names(graph[node_id].title) if found.by == "titled" else ""
    spec["description"] = (
        standard.description if standard else f"{described or graph[node_id].class_type}: {field_name}"
    )
    if standard is not None and standard.internal:
        spec["internal"] = True
    spec["type"] = standard.type if standard else kind_of_value
    if spec["type"] in ("integer", "number"):
        return {**spec, **_numeric(found.name, value, field, standard, whole=spec["type"] == "integer")}
    if spec["type"] == "boolean":
        return {**spec, "default": value}
    return {**spec, **_textual(found.name, value, field, standard)}


def needs_of(graph: Graph, found: Mapping[str, Found], kind: str) -> dict[str, Any]:
    """Node classes, model files by folder, and the label of pods that do this kind of work.

    A file that a request may choose itself is left out: the pods that have the chosen one are found by trying.
    """
    chosen = {place for one in found.values() for place in one.places}
    models: dict[str, list[str]] = {}
    for node_id, node in graph.items():
        for field_name, folder in MODEL_FIELDS.get(node.class_type, {}).items():
            name = node.inputs.get(field_name)
            # A name without a suffix is one of the loader's own (VAELoader's pixel_space), not a file.
            if isinstance(name, str) and "." in name and (node_id, field_name) not in chosen:
                models.setdefault(folder, []).append(name)
    return {
        "nodes": sorted(node_classes(graph)),
        "models": {folder: sorted(set(names)) for folder, names in sorted(models.items())},
        "labels": [kind],
    }


def _type(value: Any, field: Field | None, standard: _Standard | None) -> str:
    told = {"INT": "integer", "FLOAT": "number", "STRING": "string", "BOOLEAN": "boolean"}
    if field is not None and field.type in told:
        return told[field.type]
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    # Exports write 4.0 as 4: without the class at hand, a standard name says what is meant.
    if standard is not None and standard.type in ("integer", "number"):
        return standard.type
    return "integer" if isinstance(value, int) else "number"


def _fits(kind: str, standard: str) -> bool:
    return kind == standard or {kind, standard} <= {"integer", "number"}


def _numeric(name: str, value: Any, field: Field | None, standard: _Standard | None, *, whole: bool) -> dict[str, Any]:
    default = int(value) if whole else float(value)
    low = _bound(max, field.min if field else None, standard.min if standard else None)
    high = _bound(min, field.max if field else None, standard.max if standard else None)
    if whole:
        high = min(high, MAX_SAFE_INTEGER) if high is not None else MAX_SAFE_INTEGER
        low = max(low, -MAX_SAFE_INTEGER) if low is not None else -MAX_SAFE_INTEGER
    if name == "seed" or (name.endswith("seed") and abs(default) > MAX_SAFE_INTEGER):
        default %= MAX_SAFE_INTEGER + 1
    if name in ("width", "height") and high is not None:
        high = max(high, 2 * default)  # the artist's own size, and twice that, are always allowed
    elif high is not None and name != "cfg":
        high = max(high, default)
    if low is not None and name not in ("cfg", "denoise"):
        low = min(low, default)
    spec: dict[str, Any] = {"min": low, "max": high}
    if name != "seed":
        spec["default"] = default
    step = int(field.step) if whole and field and field.step and field.step > 1 else None
    if step and (default - int(low or 0)) % step == 0:
        spec["step"] = step
    return {key: one for key, one in spec.items() if one is not None}


def _bound(choose: Any, *bounds: float | None) -> float | None:
    known = [one for one in bounds if one is not None]
    return choose(known) if known else None


def _textual(name: str, value: Any, field: Field | None, standard: _Standard | None) -> dict[str, Any]:
    if name == "prompt":
        return {"min_length": 1, "max_length": MAX_PROMPT}
    if name == "character_id":
        return {"min_length": 1, "max_length": 80}
    if name == "lora_sha256":
        return {"default": "", "max_length": 64}
    options = options_of(field, value)
    if options:
        return {"default": str(value), "options": options}
    length = standard.max_length if standard and standard.max_length else MAX_TEXT
    return {"default": str(value), "max_length": max(length, len(str(value)))}


def options_of(field: Field | None, value: Any) -> Sequence[str]:
    """The texts that a combo takes, the present one included; empty where it is none, or too long to list."""
    if field is None or field.type != "COMBO" or not all(isinstance(one, str) for one in field.options):
        return []
    options = [*dict.fromkeys([*field.options, *([value] if is_literal(value, "text") else [])])]
    return options if len(options) <= MAX_OPTIONS else []
