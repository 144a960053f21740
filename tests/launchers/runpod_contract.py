"""RunPod's API v2 as its own document tells it: which requests fit, which answers fit, in words where they do not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

DOCUMENT: dict[str, Any] = json.loads(Path(__file__).with_name("data").joinpath("runpod_v2_extract.json").read_text())
JSON = "application/json"
PROBLEM = "application/problem+json"


def resolved(thing: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a ``$ref`` into the components points at, else the thing itself."""
    if "$ref" not in thing:
        return thing
    _, _, kind, name = thing["$ref"].split("/")
    return resolved(DOCUMENT["components"][kind][name])


@cache
def _validator(schema: str) -> Draft202012Validator:
    checker = Draft202012Validator.FORMAT_CHECKER
    return Draft202012Validator({**json.loads(schema), "components": DOCUMENT["components"]}, format_checker=checker)


def faults_of(schema: Mapping[str, Any], value: Any) -> list[str]:
    """What of ``value`` does not fit a schema of the document, as ``place: reason``."""
    found = _validator(json.dumps(schema)).iter_errors(value)
    return [f"{fault.json_path}: {fault.message}" for fault in found]


def operation_of(method: str, path: str) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]] | None:
    """The operation behind a method and path, with all its parameters; None where the extract has none."""
    for template, item in DOCUMENT["paths"].items():
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path) and method.lower() in item:
            operation = item[method.lower()]
            parameters = [*item.get("parameters", ()), *operation.get("parameters", ())]
            return operation, [resolved(parameter) for parameter in parameters]
    return None


def faults_of_query(method: str, path: str, query: Mapping[str, str]) -> list[str]:
    """What of a query string does not fit."""
    known = operation_of(method, path)
    if known is None:
        return [f"{method} {path} is not in the document"]
    declared = {parameter["name"]: parameter["schema"] for parameter in known[1] if parameter["in"] == "query"}
    faults = [f"query {name}: not declared" for name in query if name not in declared]
    for name, text in query.items():
        if name in declared:
            schema = resolved(declared[name])
            faults += [f"query {name}: {fault}" for fault in faults_of(schema, _read(text, schema))]
    return faults


def faults_of_body(method: str, path: str, body: Any) -> list[str]:
    """What of a JSON body does not fit; a body where none is declared is a fault as well."""
    known = operation_of(method, path)
    declared = resolved(known[0]["requestBody"]) if known is not None and "requestBody" in known[0] else None
    if declared is None:
        return [] if body is None else [f"{method} {path} takes no body"]
    return faults_of(declared["content"][JSON]["schema"], body)


def faults_of_answer(method: str, path: str, status: int, media_type: str, body: Any) -> list[str]:
    """What of an answer does not fit what the document promises for its status."""
    known = operation_of(method, path)
    if known is None:
        return [f"{method} {path} is not in the document"]
    responses = known[0]["responses"]
    promised = resolved(responses.get(str(status)) or responses["default"])
    if "content" not in promised:
        return [] if body is None else [f"{status} has no body"]
    if media_type not in promised["content"]:
        return [f"{status} is not {media_type}"]
    return faults_of(promised["content"][media_type]["schema"], body)


def _read(text: str, schema: Mapping[str, Any]) -> Any:
    kind = schema.get("type")
    if kind == "array":
        return text.split(",")
    if kind == "integer" and re.fullmatch(r"-?\d+", text):
        return int(text)
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    return text
