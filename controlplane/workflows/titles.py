"""Inputs that an artist named in a node's title: ``@name``, or ``@name.field`` where the node has several fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from controlplane.errors import InvalidTemplate
from controlplane.workflows.graph import Graph
from controlplane.workflows.object_info import Facts, upload_fields
from controlplane.workflows.tracing import FRAME_FIELDS, SEED_FIELDS, Found, named, text_fields
from controlplane.workflows.walking import is_literal, literal_behind

_TITLE = re.compile(r"(?:^|(?<=\s))@([A-Za-z][A-Za-z0-9_-]*)(?:\.(\w+))?(?=$|[\s,;:])")
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")

#: What the field of an input is called on nodes that do not call it by its own name.
FIELDS_OF: Mapping[str, Sequence[str]] = {
    "seed": SEED_FIELDS,
    "frames": FRAME_FIELDS,
    "fps": ("fps", "frame_rate"),
    "count": ("batch_size", "amount"),
    "lora_strength": ("strength",),
}
RESERVED = frozenset(
    {
        *("character_id", "version", "lora_sha256", "model", "workflow", "workflow_inputs", "rating", "end_user"),
        *("metadata", "image_asset_id", "seconds", "values", "priority", "deadline_seconds"),
    }
)


def titled(graph: Graph, facts: Facts) -> dict[str, Found]:
    """Every input that a title names; several nodes may share one. InvalidTemplate says how to title it instead."""
    found: dict[str, Found] = {}
    for node_id, node in graph.items():
        for name, field in _TITLE.findall(node.title):
            name = _checked(name.lower().replace("-", "_"), graph, node_id)
            places = _places(graph, facts, node_id, name, field)
            earlier = found[name].places if name in found else ()
            how = f"the title of node {named(graph, node_id)}"
            found[name] = Found(name, tuple(dict.fromkeys((*earlier, *places))), how, by="titled")
    _check_apart(found)
    return found


def without_names(title: str) -> str:
    """A title as words for people, without the names in it."""
    return " ".join(_TITLE.sub("", title).split()).strip(" -,:;")


def _checked(name: str, graph: Graph, node_id: str) -> str:
    if not NAME.fullmatch(name):
        raise InvalidTemplate(
            f"Node {named(graph, node_id)}: an input's name has at most 32 letters, digits and underscores."
        )
    if name in RESERVED:
        raise InvalidTemplate(
            f"Node {named(graph, node_id)}: {name} is set by the server or means something else in a request; "
            "choose another name behind the @."
        )
    return name


def _places(graph: Graph, facts: Facts, node_id: str, name: str, field: str) -> list[tuple[str, str]]:
    fields = [field] if field else _main_fields(graph, facts, node_id, name)
    places = []
    for one in fields:
        if one not in graph[node_id].inputs:
            raise InvalidTemplate(
                f"Node {named(graph, node_id)} has no field {one!r}; {_choices(graph, node_id, name)}"
            )
        place = literal_behind(graph, node_id, one, "any")
        if place is None:
            raise InvalidTemplate(
                f"Node {named(graph, node_id)}: {one} is connected to another node, or is a list. "
                f"Title the node that holds the value @{name} instead."
            )
        places.append(place)
    return places


def _main_fields(graph: Graph, facts: Facts, node_id: str, name: str) -> list[str]:
    """The field that a bare ``@name`` means."""
    inputs = graph[node_id].inputs
    for one in (name, *FIELDS_OF.get(name, ())):
        if one in inputs:
            return [one]
    uploads = upload_fields(graph, facts, node_id)
    if uploads:
        return uploads[:1]
    texts = text_fields(graph, facts, node_id)
    if texts:
        return texts
    literals = [one for one, value in inputs.items() if is_literal(value)]
    if len(literals) == 1:
        return literals
    if "value" in literals:
        return ["value"]
    raise InvalidTemplate(f"Node {named(graph, node_id)}: say which field @{name} is; {_choices(graph, node_id, name)}")


def _choices(graph: Graph, node_id: str, name: str) -> str:
    literals = [one for one, value in graph[node_id].inputs.items() if is_literal(value)]
    if not literals:
        return "it has no value to set."
    return f"title it one of {', '.join(f'@{name}.{one}' for one in literals[:12])}."


def _check_apart(found: Mapping[str, Found]) -> None:
    owners: dict[tuple[str, str], str] = {}
    for one in found.values():
        for place in one.places:
            other = owners.setdefault(place, one.name)
            if other != one.name:
                raise InvalidTemplate(f"@{other} and @{one.name} both name field {place[1]} of node {place[0]}.")
