"""Changing an artist's graph so that it can serve: what is saved goes through S3Save, a character's LoRA goes in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from controlplane.errors import InvalidTemplate
from controlplane.workflows.graph import Graph, Node, is_link, links
from controlplane.workflows.object_info import Facts, output_type
from controlplane.workflows.tracing import is_sampler, named
from controlplane.workflows.walking import before, linked, uses

SAVE = "S3Save"
CHARACTER = "CharacterLoRALoader"
IMAGE_INPUTS = ("images", "image", "frames")
RATE_FIELDS = ("frame_rate", "fps")
VIDEO_FORMATS = ("mp4", "webm")
DEFAULT_FPS = 8.0
FPS_RANGE = (0.5, 120.0)


@dataclass(frozen=True)
class Change:
    """One difference between the file and the template, in words."""

    action: Literal["replaced", "inserted", "removed", "rewired"]
    node: str
    detail: str


@dataclass(frozen=True)
class Rewritten:
    """A changed graph; ``outputs`` are its S3Save nodes by id with the kind of each (image or video)."""

    graph: Mapping[str, Node]
    outputs: Mapping[str, Literal["image", "video"]]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Saver:
    """A node that saves something: the link that its pictures come from, and how they are saved."""

    node: str
    images: list[Any]
    format: str
    fps: Any = None
    loses: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["image", "video"]:
        return "video" if self.format in VIDEO_FORMATS else "image"


def with_our_saving(graph: Graph, facts: Facts, kind: str | None) -> Rewritten:
    """Replace what saves or shows pictures by S3Save, and drop what no output needs; InvalidTemplate if nothing saves.

    Previews count only where nothing is saved. ``kind`` video makes videos of pictures that are saved.
    """
    savers = _savers(graph, facts)
    if not savers:
        raise InvalidTemplate(
            "Nothing in this graph is saved that could be sent back: end it in Save Image or a node that saves a video."
        )
    if kind == "video" and not any(one.kind == "video" for one in savers):
        savers = [replace(one, format="mp4", fps=DEFAULT_FPS) for one in savers]
    if kind == "image":
        savers = [one for one in savers if one.kind == "image"]
        if not savers:
            raise InvalidTemplate("This graph saves only a video, so its kind is video, not image.")
    new = dict(graph)
    changes, notes = [], []
    for one in savers:
        node = _saving(graph[one.node], one)
        if graph[one.node].class_type != SAVE:
            changes.append(Change("replaced", one.node, f"{named(graph, one.node)} -> {SAVE}, format {one.format}"))
        new[one.node] = node
        notes += [f"{what} of node {named(graph, one.node)} is not kept" for what in one.loses]
    needed = before(new, [one.node for one in savers])
    for node_id in sorted(set(new) - needed):
        changes.append(Change("removed", node_id, f"{named(graph, node_id)}: nothing that is saved depends on it"))
    kept = {node_id: node for node_id, node in new.items() if node_id in needed}
    return Rewritten(kept, {one.node: one.kind for one in savers}, tuple(changes), tuple(notes))


def with_paths_of_pods(graph: Graph, facts: Facts) -> tuple[dict[str, Node], list[Change]]:
    """Write the paths of model files as the pods list them: an export from Windows has backslashes in them."""
    changed, changes = dict(graph), []
    for node_id, node in graph.items():
        known = facts[node.class_type].fields if node.class_type in facts else {}
        for name, value in node.inputs.items():
            options = known[name].options if name in known else ()
            if isinstance(value, str) and "\\" in value and value not in options:
                path = value.replace("\\", "/")
                if path in options:
                    changed[node_id] = replace(changed[node_id], inputs={**changed[node_id].inputs, name: path})
                    changes.append(Change("replaced", node_id, f"{named(graph, node_id)}.{name} = {path}"))
    return changed, changes


def with_character_fields(graph: Graph) -> dict[str, Node]:
    """Give every CharacterLoRALoader the fields that a template writes; editors leave optional ones out."""
    fresh = {"character_id": "", "version": 0, "strength": -1.0, "sha256": ""}
    changed = {}
    for node_id, node in graph.items():
        inputs = dict(node.inputs)
        if node.class_type == CHARACTER:
            # What was typed in for a desktop (a file's name) has no meaning here.
            inputs |= {**fresh, **({"strength": inputs["strength"]} if _is_number(inputs.get("strength")) else {})}
        changed[node_id] = replace(node, inputs=inputs)
    return changed


def with_character(graph: Graph, facts: Facts) -> tuple[dict[str, Node], tuple[Change, ...]]:
    """Put a CharacterLoRALoader behind the checkpoint and the LoRA loaders that are there already.

    Every consumer of that MODEL and CLIP is rewired to it. Raises InvalidTemplate where there is no such pair.
    """
    inserting = _Inserting(graph, facts)
    inserting.run()
    return inserting.graph, tuple(inserting.changes)


def _savers(graph: Graph, facts: Facts) -> list[_Saver]:
    found = [saver for node_id in graph if (saver := _saver(graph, facts, node_id)) is not None]
    shown = [one for one in found if "preview" in graph[one.node].class_type.lower()]
    return [one for one in found if one not in shown] or shown


def _saver(graph: Graph, facts: Facts, node_id: str) -> _Saver | None:
    node = graph[node_id]
    links_in = linked(node.inputs)
    if node.class_type == SAVE:
        ours = str(node.inputs.get("format", "png")) if "images" in links_in else ""
        return _Saver(node_id, node.inputs["images"], ours, node.inputs.get("fps", DEFAULT_FPS)) if ours else None
    if not _is_output(graph, facts, node_id):
        return None
    loses = ("the sound",) if "audio" in links_in else ()
    if "video" in links_in:
        maker = graph[links_in["video"][0]]
        images = next((maker.inputs[name] for name in IMAGE_INPUTS if name in linked(maker.inputs)), None)
        lost = ("the sound",) if "audio" in linked(maker.inputs) else loses
        return _Saver(node_id, images, "mp4", _rate(maker.inputs), lost) if images else None
    images = next((node.inputs[name] for name in IMAGE_INPUTS if name in links_in), None)
    if images is None or output_type(graph, facts, images[0], images[1]) not in ("IMAGE", "", "*"):
        return None
    if any(name in node.inputs for name in RATE_FIELDS):
        told = f"{node.class_type} {node.inputs.get('format', '')}".lower()
        return _Saver(node_id, images, "webm" if "webm" in told else "mp4", _rate(node.inputs), loses)
    return _Saver(node_id, images, "png")


def _is_output(graph: Graph, facts: Facts, node_id: str) -> bool:
    known = facts.get(graph[node_id].class_type)
    if known is not None:
        return known.output_node
    # Without the class at hand: what saves is at the end of the graph.
    return not any(source == node_id for _, _, source, _ in links(graph)) or "VideoCombine" in graph[node_id].class_type


def _rate(inputs: Mapping[str, Any]) -> Any:
    value = next((inputs[name] for name in RATE_FIELDS if name in inputs), DEFAULT_FPS)
    if _is_number(value):
        return min(max(float(value), FPS_RANGE[0]), FPS_RANGE[1])
    return value if is_link(value) else DEFAULT_FPS


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _saving(old: Node, saver: _Saver) -> Node:
    if old.class_type == SAVE and "name" in old.inputs:
        kept = {"quality": 90, **old.inputs, "format": saver.format}
        return replace(old, inputs={**kept, "fps": saver.fps} if saver.kind == "video" else kept)
    inputs: dict[str, Any] = {"images": saver.images, "name": saver.kind, "format": saver.format, "quality": 90}
    if saver.kind == "video":
        inputs["fps"] = saver.fps if saver.fps is not None else DEFAULT_FPS
    return Node(SAVE, inputs, old.title)


class _Inserting:
    """Character loaders being put into one graph."""

    def __init__(self, graph: Graph, facts: Facts) -> None:
        self.graph = dict(graph)
        self.changes: list[Change] = []
        self._facts = facts
        self._above = {kind: self._chain_above_loras(kind) for kind in ("MODEL", "CLIP")}

    def run(self) -> None:
        samplers = [node_id for node_id in self.graph if is_sampler(self.graph, node_id)]
        roots = [one for one in samplers if not (before(self.graph, [one]) - {one}) & set(samplers)]
        models = self._ends("MODEL", before(self.graph, roots))
        if not models:
            raise InvalidTemplate("There is no checkpoint or model loader in front of a sampler to put a character on.")
        origins = {self._origin(model) for model in models}
        # The same checkpoint may go to later samplers on a way of its own; another one (a refiner) is left alone.
        everywhere = [one for one in self._ends("MODEL", set(self.graph)) if self._origin(one) in origins]
        clips = self._ends("CLIP", set(self.graph))
        if not clips:
            raise InvalidTemplate("There is no CLIP beside the model, so a character's LoRA has no place here.")
        pairs = self._pairs(list(dict.fromkeys([*models, *everywhere])), clips, origins)
        for model, clip in pairs:
            self._insert(model, clip)

    def _ends(self, kind: str, of: Iterable[str]) -> list[tuple[str, int]]:
        """Outputs of loaders of this kind that these nodes take for good: not to hand them to a LoRA loader."""
        nodes = set(of)
        found = [
            (source, slot)
            for node_id, name, source, slot in links(self.graph)
            if node_id in nodes and self._takes(node_id, name, kind) and self._loads(source, slot, kind)
        ]
        return list(dict.fromkeys(found))

    def _loads(self, source: str, slot: int, kind: str) -> bool:
        """Whether an output comes from a loader: of the model itself, or of a LoRA on it."""
        if output_type(self.graph, self._facts, source, slot) != kind:
            return False
        return self._is_lora(source) or self._source_of(source, kind) is None

    def _is_lora(self, node_id: str) -> bool:
        return "lora" in self.graph[node_id].class_type.lower() and self._source_of(node_id, "MODEL") is not None

    def _takes(self, node_id: str, name: str, kind: str) -> bool:
        """Whether an input is where a chain of LoRA loaders ends."""
        if self.graph[node_id].class_type == CHARACTER or node_id in self._above[kind]:
            return False
        taken = tuple(self.graph[node_id].inputs[name])
        return not (self._is_lora(node_id) and taken == self._source_of(node_id, kind))

    def _chain_above_loras(self, kind: str) -> set[str]:
        """The nodes through which a model or a clip comes to a LoRA loader."""
        above: set[str] = set()
        for node_id in self.graph:
            source = self._source_of(node_id, kind) if self._is_lora(node_id) else None
            while source is not None and source[0] not in above:
                above.add(source[0])
                source = self._source_of(source[0], kind)
        return above

    def _source_of(self, node_id: str, kind: str) -> tuple[str, int] | None:
        """The link through which a node takes a model or a clip, None where it makes its own."""
        for source, slot in linked(self.graph[node_id].inputs).values():
            if output_type(self.graph, self._facts, source, slot) == kind:
                return source, slot
        return linked(self.graph[node_id].inputs).get(kind.lower())

    def _origin(self, end: tuple[str, int]) -> str:
        """The loader at the beginning of a chain of LoRA loaders."""
        node_id = end[0]
        while (source := self._source_of(node_id, "MODEL")) is not None:
            node_id = source[0]
        return node_id

    def _pairs(
        self, models: list[tuple[str, int]], clips: list[tuple[str, int]], origins: set[str]
    ) -> list[tuple[tuple[str, int], tuple[str, int]]]:
        pairs = []
        left = [one for one in clips if self._clip_origin(one) in origins] or clips
        for model in models:
            fitting = [clip for clip in left if clip[0] == model[0]] or left or clips
            pairs.append((model, fitting[0]))
            left = [clip for clip in left if clip != fitting[0]]
        for clip in left:
            # A text encoder that takes another CLIP than the model's last LoRA gives needs a loader of its own.
            pairs.append((self._model_beside(clip) or models[0], clip))
        return pairs

    def _clip_origin(self, clip: tuple[str, int]) -> str:
        node_id = clip[0]
        while (source := self._source_of(node_id, "CLIP")) is not None:
            node_id = source[0]
        return node_id

    def _model_beside(self, clip: tuple[str, int]) -> tuple[str, int] | None:
        for slot in range(4):
            if output_type(self.graph, self._facts, clip[0], slot) == "MODEL":
                return clip[0], slot
        return None

    def _insert(self, model: tuple[str, int], clip: tuple[str, int]) -> None:
        upstream = before(self.graph, [model[0], clip[0]])
        new_id = _fresh_id(self.graph)
        fresh = {"character_id": "", "version": 0, "strength": -1.0, "sha256": ""}
        consumers = uses(self.graph)
        rewired = []
        for (source, slot), kind, ours in ((model, "MODEL", 0), (clip, "CLIP", 1)):
            for use in consumers[source]:
                # What the new loader itself depends on must not be rewired to it.
                if use.slot == slot and use.node not in upstream and self._takes(use.node, use.name, kind):
                    node = self.graph[use.node]
                    self.graph[use.node] = replace(node, inputs={**node.inputs, use.name: [new_id, ours]})
                    rewired.append(Change("rewired", use.node, f"{named(self.graph, use.node)}.{use.name} <- {new_id}"))
        self.graph[new_id] = Node(CHARACTER, {"model": list(model), "clip": list(clip), **fresh}, "Character")
        behind = named(self.graph, model[0])
        self.changes += [Change("inserted", new_id, f"{new_id} ({CHARACTER}) behind {behind}"), *rewired]


def _fresh_id(graph: Graph) -> str:
    return str(max((int(node_id) for node_id in graph if node_id.isascii() and node_id.isdigit()), default=0) + 1)
