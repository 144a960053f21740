"""Finding what a request may set in a graph by following its links back from the samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from controlplane.workflows.graph import Graph, is_link
from controlplane.workflows.object_info import Facts, link_type, upload_fields
from controlplane.workflows.walking import Kind, before, is_literal, linked, literal_behind

TEXT_FIELDS = ("text", "text_g", "text_l", "clip_l", "clip_g", "t5xxl", "prompt", "positive_prompt", "bert", "mt5xl")
LATENT_INPUTS = ("latent_image", "latent", "samples")
SEED_FIELDS = ("seed", "noise_seed")
SAMPLING_FIELDS = (*SEED_FIELDS, "noise", "steps", "sigmas", "sampler_name")
FRAME_FIELDS = ("video_frames", "num_frames", "frames", "frame_count", "length")
PIXEL_INPUTS = ("pixels", "image", "images", "init_image", "start_image")


@dataclass(frozen=True)
class Found:
    """One thing that a request may set: its places (node, field) and how it was found, in words."""

    name: str
    places: tuple[tuple[str, str], ...]
    how: str
    by: Literal["traced", "titled"] = "traced"


@dataclass(frozen=True)
class Trace:
    """What tracing found, what it noticed, and ``unclear``: names that need a title, with the reason in words."""

    found: Mapping[str, Found] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unclear: Mapping[str, str] = field(default_factory=dict)


def trace(graph: Graph, facts: Facts, outputs: Mapping[str, str]) -> Trace:
    """Find the inputs of a graph whose ``outputs`` are S3Save nodes by id, with the kind of each (image, video).

    Never raises: what is not clear stays out of ``found`` and is told in ``notes`` or ``unclear``.
    """
    tracer = _Tracer(graph, facts, outputs)
    tracer.run()
    found, notes = _without_shared_places(tracer.found)
    return Trace(found, (*tracer.notes, *notes), tracer.unclear)


def named(graph: Graph, node_id: str) -> str:
    """A node for people: id, title and class."""
    node = graph[node_id]
    title = f" {node.title!r}" if node.title and node.title != node.class_type else ""
    return f"{node_id}{title} ({node.class_type})"


def text_fields(graph: Graph, facts: Facts, node_id: str) -> list[str]:
    """The inputs of a node that hold text for a text encoder, linked ones included."""
    inputs, known = graph[node_id].inputs, facts.get(graph[node_id].class_type)
    told = [name for name, one in known.fields.items() if one.type == "STRING" and one.multiline] if known else []
    names = [name for name in dict.fromkeys((*TEXT_FIELDS, *told)) if name in inputs]
    return [name for name in names if is_link(inputs[name]) or isinstance(inputs[name], str)]


def is_sampler(graph: Graph, node_id: str) -> bool:
    """Whether a node turns conditioning and a latent into another latent in steps, whatever its class."""
    inputs = graph[node_id].inputs
    links = linked(inputs)
    guided = "guider" in links or any(name.startswith("positive") for name in links)
    works_in_steps = any(name in inputs for name in SAMPLING_FIELDS)
    return guided and works_in_steps and any(name in links for name in LATENT_INPUTS)


class _Tracer:
    """One trace in the making."""

    def __init__(self, graph: Graph, facts: Facts, outputs: Mapping[str, str]) -> None:
        self._graph = graph
        self._facts = facts
        self._outputs = outputs
        self._samplers = [node_id for node_id in graph if is_sampler(graph, node_id)]
        self._roots = [one for one in self._samplers if not self._samplers_before(one)]
        self.found: dict[str, Found] = {}
        self.notes: list[str] = []
        self.unclear: dict[str, str] = {}

    def run(self) -> None:
        self._find_images()
        self._find_texts()
        self._find_seeds()
        self._find_sampling()
        for root in self._roots:
            self._find_size(root)
        self._find_video()
        self._find_saving()
        self._find_character()

    def _samplers_before(self, node_id: str) -> set[str]:
        return (before(self._graph, [node_id]) - {node_id}) & set(self._samplers)

    def _add(self, name: str, places: Iterable[tuple[str, str]], how: str) -> None:
        kept = tuple(dict.fromkeys(places))
        if kept and name not in self.found:
            self.found[name] = Found(name, kept, how)

    def _value(self, place: tuple[str, str]) -> Any:
        return self._graph[place[0]].inputs[place[1]]

    def _behind(self, node_id: str, names: Sequence[str], kind: Kind = "number") -> tuple[str, str] | None:
        for name in names:
            if name in self._graph[node_id].inputs:
                return literal_behind(self._graph, node_id, name, kind)
        return None

    # texts

    def _find_texts(self) -> None:
        positive = self._encoders("positive")
        negative = [one for one in self._encoders("negative") if one not in positive]
        self._add_text("prompt", positive, "the positive side")
        self._add_text("negative_prompt", negative, "the negative side")
        if "prompt" not in self.found and "prompt" not in self.unclear:
            self.unclear["prompt"] = (
                "no text reaches the positive side of a sampler"
                if self._samplers
                else "there is no sampler to follow back to a text"
            )

    def _encoders(self, side: str) -> list[str]:
        """The nodes whose text reaches one side of the first samplers."""
        found: list[str] = []
        for root in self._roots:
            for node_id, name in self._guidance(root, side):
                found += self._texts_behind(linked(self._graph[node_id].inputs)[name])
        return list(dict.fromkeys(found))

    def _guidance(self, sampler: str, side: str) -> list[tuple[str, str]]:
        """The (node, input) pairs through which conditioning of one side comes in."""
        links = linked(self._graph[sampler].inputs)
        pairs = [(sampler, name) for name in links if name.startswith(side)]
        if "guider" in links:
            guider = links["guider"][0]
            of_guider = linked(self._graph[guider].inputs)
            pairs += [(guider, name) for name in of_guider if name.startswith(side)]
            if side == "positive" and "conditioning" in of_guider:
                pairs.append((guider, "conditioning"))
        return pairs

    def _texts_behind(self, source: tuple[str, int]) -> list[str]:
        """The nodes with text that a link of conditioning comes from."""
        found, seen, todo = [], set(), [source]
        while todo:
            one = todo.pop(0)
            if one in seen:
                continue
            seen.add(one)
            if text_fields(self._graph, self._facts, one[0]):
                found.append(one[0])
            else:
                todo += self._conditioning_of(*one)
        return found

    def _conditioning_of(self, node_id: str, slot: int) -> list[tuple[str, int]]:
        links = linked(self._graph[node_id].inputs)
        if "positive" in links and "negative" in links:
            return [links["negative" if slot == 1 else "positive"]]
        told = [
            link
            for name, link in links.items()
            if "cond" in name or link_type(self._graph, self._facts, node_id, name) == "CONDITIONING"
        ]
        return told or (list(links.values()) if len(links) == 1 else [])

    def _add_text(self, name: str, encoders: Sequence[str], where: str) -> None:
        places, texts = [], set()
        for node_id in encoders:
            for one in text_fields(self._graph, self._facts, node_id):
                place = literal_behind(self._graph, node_id, one, "text")
                if place is None:
                    self.unclear[name] = f"the text of node {named(self._graph, node_id)} is put together elsewhere"
                    return
                places.append(place)
            if places:
                texts.add(str(self._value(places[-1])).strip())
        if len(texts) > 1:
            listed = ", ".join(named(self._graph, node_id) for node_id in encoders)
            self.unclear[name] = f"several different texts reach {where}: nodes {listed}"
            return
        self._add(name, places, f"the text that reaches {where} of {self._said(self._roots)}")

    def _said(self, nodes: Sequence[str]) -> str:
        return ", ".join(named(self._graph, node_id) for node_id in nodes)

    # sampling

    def _find_seeds(self) -> None:
        places = []
        for sampler in self._samplers:
            inputs = self._graph[sampler].inputs
            noise = linked(inputs).get("noise")
            if inputs.get("add_noise") == "disable":
                continue
            place = self._behind(noise[0] if noise else sampler, SEED_FIELDS)
            if place is not None:
                places.append(place)
        self._add("seed", places, "the seed of every sampler that adds noise")

    def _find_sampling(self) -> None:
        staged = any("start_at_step" in self._graph[one].inputs for one in self._samplers) and len(self._samplers) > 1
        if staged:
            self.notes.append("steps stay as they are: several samplers share one schedule; title a field to set it")
        else:
            self._add_agreed("steps", lambda root: self._scheduled(root, "steps"))
        self._add_agreed("cfg", self._cfg)
        self._add_agreed("denoise", lambda root: self._scheduled(root, "denoise"))
        place = self.found.get("denoise")
        if place and float(self._value(place.places[0])) >= 1.0:
            del self.found["denoise"]  # from pure noise there is nothing to keep of

    def _scheduled(self, root: str, name: str) -> tuple[str, str] | None:
        sigmas = linked(self._graph[root].inputs).get("sigmas")
        return self._behind(sigmas[0] if sigmas else root, (name,))

    def _cfg(self, root: str) -> tuple[str, str] | None:
        guider = linked(self._graph[root].inputs).get("guider")
        return self._behind(guider[0] if guider else root, ("cfg",))

    def _add_agreed(self, name: str, find: Callable[[str], tuple[str, str] | None]) -> None:
        places = [place for place in map(find, self._roots) if place is not None]
        if len({self._value(place) for place in places}) > 1:
            self.notes.append(f"{name} stays as it is: samplers {self._said(self._roots)} differ in it")
            return
        self._add(name, places, f"{name} of {self._said(self._roots)}")

    # size and pictures

    def _find_size(self, root: str) -> None:
        """Follow the latent to what made it: an empty one with a size, or a picture."""
        links = linked(self._graph[root].inputs)
        name = next((one for one in LATENT_INPUTS if one in links), None)
        current = links[name][0] if name else None
        while current is not None:
            inputs, links = self._graph[current].inputs, linked(self._graph[current].inputs)
            self._add_count(current)
            latent = next((links[one] for one in LATENT_INPUTS if one in links), None)
            pixels = next((links[one] for one in PIXEL_INPUTS if one in links), None)
            if "width" in inputs and "height" in inputs and latent is None and "vae_name" not in inputs:
                self._add_size(current)
            if self._take_picture(current):
                return
            following = latent or pixels or (next(iter(links.values())) if len(links) == 1 else None)
            current = following[0] if following else None

    def _add_size(self, node_id: str) -> None:
        width, height = self._behind(node_id, ("width",)), self._behind(node_id, ("height",))
        if width and height:
            self._add("width", [width], f"the size made by {named(self._graph, node_id)}")
            self._add("height", [height], f"the size made by {named(self._graph, node_id)}")

    def _add_count(self, node_id: str) -> None:
        field_name = "amount" if "RepeatLatent" in self._graph[node_id].class_type else "batch_size"
        place = self._behind(node_id, (field_name,))
        if place is not None:
            self._add("count", [place], f"the batch of {named(self._graph, node_id)}")

    def _take_picture(self, node_id: str) -> bool:
        """Call the picture that the first sampler starts at ``image``; whether this node loads one."""
        fields = upload_fields(self._graph, self._facts, node_id)
        for name, found in list(self.found.items()):
            if fields and found.places == ((node_id, fields[0]),) and "image" not in self.found:
                del self.found[name]
                self._add("image", found.places, f"the picture that {self._said(self._roots[:1])} starts at")
        return bool(fields)

    def _find_images(self) -> None:
        loaders = [one for one in self._graph if upload_fields(self._graph, self._facts, one)]
        for number, node_id in enumerate(loaders, start=1):
            name = "image" if len(loaders) == 1 else f"picture_{number}"
            places = [(node_id, upload_fields(self._graph, self._facts, node_id)[0])]
            if is_literal(self._value(places[0]), "text"):
                self._add(name, places, f"the picture loaded by {named(self._graph, node_id)}")

    # video, saving, character

    def _find_video(self) -> None:
        videos = [node_id for node_id, kind in self._outputs.items() if kind == "video"]
        if not videos:
            return
        places = []
        for node_id in before(self._graph, videos):
            # A length is one of frames only where a size stands beside it.
            names = FRAME_FIELDS if "width" in self._graph[node_id].inputs else FRAME_FIELDS[:-1]
            if place := self._behind(node_id, names):
                places.append(place)
        if not places and "count" in self.found:
            # AnimateDiff and its kin make the frames of a video as one batch.
            self.found["frames"] = replace(self.found.pop("count"), name="frames", how="the batch is the frames")
        self.found.pop("count", None)
        if len({self._value(place) for place in places}) > 1:
            self.notes.append("frames stay as they are: several nodes differ in them; title one @frames")
        else:
            self._add("frames", sorted(places), "how many frames are made")
        rates = [place for node_id in videos if (place := self._behind(node_id, ("fps",)))]
        self._add("fps", rates, "frames per second of the saved video")

    def _find_saving(self) -> None:
        kind = "video" if "video" in self._outputs.values() else "image"
        places = [(node_id, "format") for node_id, one in self._outputs.items() if one == kind]
        self._add("format", [one for one in places if is_literal(self._value(one), "text")], "the saved file's format")

    def _find_character(self) -> None:
        loaders = [one for one, node in self._graph.items() if node.class_type == "CharacterLoRALoader"]
        how = f"the character loader {self._said(loaders)}"
        for name, of_node in (
            ("character_id", "character_id"),
            ("version", "version"),
            ("lora_sha256", "sha256"),
            ("lora_strength", "strength"),
        ):
            self._add(name, [(one, of_node) for one in loaders if of_node in self._graph[one].inputs], how)


def _without_shared_places(found: Mapping[str, Found]) -> tuple[dict[str, Found], list[str]]:
    """Leave out inputs that would write to the same field, as width and height fed by one number do."""
    owners: dict[tuple[str, str], list[str]] = {}
    for one in found.values():
        for place in one.places:
            owners.setdefault(place, []).append(one.name)
    shared = {place: names for place, names in owners.items() if len(names) > 1}
    lost = {name for names in shared.values() for name in names}
    notes = [
        f"{' and '.join(names)} come from the same field {place[1]} of node {place[0]} and stay as they are; "
        "title that node to set it"
        for place, names in shared.items()
    ]
    return {name: one for name, one in found.items() if name not in lost}, notes
