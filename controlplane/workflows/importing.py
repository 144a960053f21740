"""Import: an artist's export in, a checked template out, with everything that was found, changed and noticed. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from controlplane.domain.content import check_content
from controlplane.errors import ContentRefused, InvalidTemplate, Unprocessable
from controlplane.workflows import graph as graphs
from controlplane.workflows import template as templates
from controlplane.workflows.graph import Graph
from controlplane.workflows.manifesting import MAX_PROMPT, input_of, needs_of
from controlplane.workflows.models import BaseModel
from controlplane.workflows.object_info import Facts
from controlplane.workflows.rewriting import (
    CHARACTER,
    Change,
    with_character,
    with_character_fields,
    with_our_saving,
    with_paths_of_pods,
)
from controlplane.workflows.screening import fixed_texts
from controlplane.workflows.template import ANY_BASE, Template
from controlplane.workflows.titles import titled
from controlplane.workflows.tracing import Found, named, text_fields, trace

ESTIMATE_SECONDS = {"image": 20.0, "video": 120.0}
EXAMPLE_PROMPT = "a portrait, smiling, by the sea"
HOW_TO_TITLE = (
    "In ComfyUI, double-click the title of the node that holds the text which requests should set, call it @prompt, "
    "and export again."
)
UNREAD_PROMPT: Mapping[str, Any] = {
    "type": "string",
    "targets": [],
    "min_length": 1,
    "max_length": MAX_PROMPT,
    "description": "What is seen. It is checked and kept with the result; no node of this graph reads it.",
}
SET_BY_US = frozenset({"character_id", "version", "sha256"})
"""Fields of a character loader: who is painted is what a request's ``character_id`` says, which alone is checked."""
_SECRET = re.compile(r"(?:^|_)(?:api_?key|token|secret|password)$", re.IGNORECASE)
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Wish:
    """What the import was asked for. ``kind`` and ``base`` None mean: as the graph says."""

    name: str
    title: str = ""
    kind: str | None = None
    base: str | None = None
    insert_character: bool = False


@dataclass(frozen=True)
class Imported:
    """A template and its story: ``manifest`` is what manifest.yaml holds, ``notes`` are sentences for the artist."""

    template: Template
    manifest: Mapping[str, Any]
    found: tuple[Found, ...]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]


def name_from(file_name: str) -> str:
    """A template name made of a file's name; empty where nothing of it can be kept."""
    stem = file_name.rsplit("/", 1)[-1].rsplit("\\", 1)[-1].rsplit(".", 1)[0].lower()
    return _NOT_IN_NAMES.sub("_", stem).strip("_").lstrip("0123456789_")[:64]


def import_graph(raw: Any, wish: Wish, facts: Facts, models: Mapping[str, BaseModel]) -> Imported:
    """Make a template of a graph in API format.

    ``facts`` are the node classes of the pods that are up (ranges, options, types); without them literals alone decide.
    Raises InvalidTemplate (with what to title), Unprocessable (kind, base) or ContentRefused.
    """
    graph = graphs.parse(raw)
    saving = with_our_saving(graph, facts, wish.kind)
    graph, repaired = with_paths_of_pods(saving.graph, facts)
    changes, notes = [*saving.changes, *repaired], [*saving.notes, *_secrets(graph)]
    if wish.insert_character and graphs.node_classes(graph) & {CHARACTER}:
        notes.append("the graph has a character loader already; none was put in")
    elif wish.insert_character:
        graph, inserted = with_character(graph, facts)
        changes += inserted
    graph = with_character_fields(graph)
    found, found_notes = _inputs(graph, facts, saving.outputs)
    kind = wish.kind or ("video" if "video" in saving.outputs.values() else "image")
    manifest = {
        "name": wish.name,
        "title": wish.title or wish.name.replace("_", " ").capitalize(),
        "kind": kind,
        "base": _base(graph, wish, models),
        "description": "",
        "inputs": {"prompt": UNREAD_PROMPT} | {name: input_of(one, graph, facts, kind) for name, one in found.items()},
        "outputs": [{"node": node, "kind": one} for node, one in saving.outputs.items()],
        "needs": needs_of(graph, found, kind),
        "estimate": {"seconds": ESTIMATE_SECONDS[kind]},
    }
    example = _example(graph, found, manifest)
    template = templates.build(graphs.to_api(graph), manifest, example)
    notes += [*found_notes, *_content_notes(template)]
    return Imported(template, manifest, tuple(found.values()), tuple(changes), tuple(dict.fromkeys(notes)))


def _inputs(graph: Graph, facts: Facts, outputs: Mapping[str, str]) -> tuple[dict[str, Found], list[str]]:
    """The inputs of the template by name: titles first, then what tracing found beside them."""
    by_title, traced = titled(graph, facts), trace(graph, facts, outputs)
    taken = {place for one in by_title.values() for place in one.places}
    for node_id, field in taken:
        if graph[node_id].class_type == CHARACTER and field in SET_BY_US:
            raise InvalidTemplate(
                f"Node {named(graph, node_id)}: {field} is set by the server; take it out of the title."
            )
    found: dict[str, Found] = {}
    for name, one in traced.found.items():
        left = tuple(place for place in one.places if place not in taken)
        if left and name not in by_title:
            found[name] = replace(one, places=left)
    found.update(by_title)
    notes = [note for note in traced.notes if note.split(" ", 1)[0] not in by_title]
    if "prompt" not in found and not any(text_fields(graph, facts, node_id) for node_id in graph):
        notes.append("no node of this graph takes text: the prompt is checked and kept with the result, but not read")
    elif "prompt" not in found:
        reason = traced.unclear.get(
            "prompt", "the text that reaches the sampler has another name, or more uses than one"
        )
        raise InvalidTemplate(f"It is not clear where the prompt goes: {reason}. {HOW_TO_TITLE}")
    for name, reason in traced.unclear.items():
        if name not in found and name != "prompt":
            notes.append(f"{name} stays as it is: {reason}; title the node @{name} to set it")
    _without_low_guidance(graph, found, notes)
    return found, notes


def _without_low_guidance(graph: Graph, found: dict[str, Found], notes: list[str]) -> None:
    """A guidance below 1 turns the negative prompt into the prompt: such a graph keeps its own, and no other."""
    one = found.get("cfg")
    if one is None:
        return
    node, field = one.places[0]
    value = graph[node].inputs[field]
    if isinstance(value, str | bool) or value >= 1:
        return
    if one.by == "titled":
        raise InvalidTemplate(f"Node {named(graph, node)}: a request may set cfg from 1 upwards only; it is {value}.")
    del found["cfg"]
    notes.append(f"cfg stays as it is: it is {value}, and a request may set it from 1 upwards only")


def _base(graph: Graph, wish: Wish, models: Mapping[str, BaseModel]) -> str:
    """The base model that the graph's characters must be trained on, ``any`` where there are none."""
    if wish.base is not None:
        if wish.base not in models and wish.base != ANY_BASE:
            detail = f"there is no base model {wish.base!r}; there are {', '.join(sorted(models))}"
            raise Unprocessable(detail, errors=[{"pointer": "/base", "detail": detail}])
        return wish.base
    files = [str(node.inputs["ckpt_name"]) for node in graph.values() if "ckpt_name" in node.inputs]
    for name in files:
        base = next((model.id for model in models.values() if model.checkpoint == name), None)
        if base is not None:
            return base
    if CHARACTER not in graphs.node_classes(graph):
        return ANY_BASE
    loaded = f" ({', '.join(files)})" if files else ""
    detail = (
        f"the checkpoint{loaded} is none that characters are trained on here; say which base model it belongs to: "
        f"base is one of {', '.join(sorted(models))}"
    )
    raise Unprocessable(detail, errors=[{"pointer": "/base", "detail": detail}])


def _example(graph: Graph, found: Mapping[str, Found], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Values that a request could have: those without a default, made up where the graph has nothing fit."""
    node, field = found["prompt"].places[0] if "prompt" in found else ("", "")
    prompt = str(graph[node].inputs[field]).strip()[:500] if node else ""
    try:
        check_content("general", [prompt], [], False)
    except ContentRefused:
        prompt = ""
    example: dict[str, Any] = {"prompt": prompt or EXAMPLE_PROMPT}
    if "seed" in found:
        example["seed"] = 7
    for name, spec in manifest["inputs"].items():
        if spec["type"] == "image":
            example[name] = "asset_of_a_picture"
    return {**example, "character_id": "your-character"} if "character_id" in found else example


def _secrets(graph: Graph) -> list[str]:
    return [
        f"{field} of node {named(graph, node_id)} looks like a secret: it is kept with the graph, and shown with it"
        for node_id, node in graph.items()
        for field, value in node.inputs.items()
        if isinstance(value, str) and value and _SECRET.search(field)
    ]


def _content_notes(template: Template) -> list[str]:
    """Hold the texts within the graph to the content rules: ContentRefused, or a note on what requests will need."""
    texts = fixed_texts(template)
    try:
        check_content("general", texts, [], False)
        return []
    except ContentRefused:
        pass  # it may still be acceptable with rating mature
    try:
        check_content("mature", texts, [], False)
    except ContentRefused as refused:
        detail = f"a text within the graph asks for what is not made here: {refused.detail}"
        raise ContentRefused(detail, errors=[{"pointer": "/graph", "detail": detail}]) from None
    return ["a text within the graph is suggestive: every request needs rating mature, and a fictional adult"]
