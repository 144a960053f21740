"""Makes the reduced copy of RunPod's OpenAPI document that the double checks with: our paths, no prose.

python tests/launchers/make_runpod_extract.py FULL_DOCUMENT.json DATE > tests/launchers/data/runpod_v2_extract.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

USED = {
    "/v2/pods": ("get", "post"),
    "/v2/pods/{id}": ("get", "delete"),
    "/v2/catalog/gpus": ("get",),
}
PROSE = frozenset({"description", "summary", "examples", "example", "tags", "operationId", "title"})
NOTE = (
    "Facts of an interface: the paths and schemas of RunPod's REST API v2 that this project calls, without prose and "
    "examples. Source: runpod_openapi_v2.json of github.com/runpod/docs, as of {date}; made by make_runpod_extract.py."
)


def without_prose(value: Any, *, names: bool = False) -> Any:
    """The same without prose; ``names``: the keys of ``value`` are names of properties or parameters, and all stay."""
    if isinstance(value, list):
        return [without_prose(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: without_prose(one, names=key in ("properties", "schemas", "headers", "responses", "parameters", "paths"))
        for key, one in value.items()
        if names or (key not in PROSE and not key.startswith("x-"))
    }


def references(value: Any) -> set[str]:
    """Every ``$ref`` inside."""
    if isinstance(value, list):
        return set().union(*(references(one) for one in value), set())
    if not isinstance(value, dict):
        return set()
    own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
    return own.union(*(references(one) for one in value.values()))


def extract(full: dict[str, Any], date: str) -> dict[str, Any]:
    """The document reduced to what ``USED`` needs."""
    paths: dict[str, Any] = {}
    for path, methods in USED.items():
        kept = ("parameters", *methods)
        paths[path] = {key: value for key, value in full["paths"][path].items() if key in kept}
    components: dict[str, dict[str, Any]] = {"securitySchemes": full["components"]["securitySchemes"]}
    missing = references(paths)
    while missing:
        _, _, kind, name = missing.pop().split("/")
        if name not in components.setdefault(kind, {}):
            components[kind][name] = full["components"][kind][name]
            missing |= references(components[kind][name])
    ordered = {kind: dict(sorted(items.items())) for kind, items in sorted(components.items())}
    info = {"title": "RunPod REST API v2, reduced", "version": full["info"]["version"]}
    document = {
        "openapi": full["openapi"],
        "servers": full["servers"],
        "security": full.get("security", []),
        "paths": paths,
        "components": ordered,
    }
    document = _described(without_prose(document))
    return {"openapi": document.pop("openapi"), "info": {**info, "description": NOTE.format(date=date)}, **document}


def _described(document: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI wants a description on every response: an empty one."""
    inline = (
        response
        for item in document["paths"].values()
        for operation in item.values()
        if isinstance(operation, dict)
        for response in operation["responses"].values()
    )
    for response in (*inline, *document["components"]["responses"].values()):
        if "$ref" not in response:
            response["description"] = ""
    return document


if __name__ == "__main__":
    source, day = sys.argv[1:]
    made = extract(json.loads(Path(source).read_text("utf-8")), day)
    sys.stdout.write(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
