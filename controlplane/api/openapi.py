"""The OpenAPI 3.1 document, made from the route table and the schemas."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from controlplane.api.routes import Media, Route
from controlplane.api.schemas.base import Problem
from controlplane.api.schemas.events import Event
from controlplane.errors import DatabaseAway, Forbidden, TroupeError

Json = dict[str, Any]
Mode = str
REF = "#/components/schemas/{model}"
PROBLEM_MEDIA = "application/problem+json"

ANYWHERE = (Forbidden, TroupeError, DatabaseAway)
"""What any address may answer: a page or host that is not allowed, a defect of ours, and a database that is away."""

HEADERS = {
    "Idempotency-Key": (
        "A key of your own, in quotes or bare, kept for 24 hours per address; the same key and payload replay the "
        "first answer byte for byte, another payload is refused.",
        "string",
    ),
    "Prefer": ("`wait=N` holds the answer up to N seconds, until the job is final.", "string"),
    "Last-Event-ID": ("Go on behind this event.", "string"),
    "Range": ("One range of bytes.", "string"),
    "If-None-Match": ("ETags that you have.", "string"),
    "If-Range": ("The ETag that your range belongs to.", "string"),
}
REPLAYED = {
    "description": "`true` where this is the answer to an earlier request with the same key.",
    "schema": {"type": "string", "enum": ["true"]},
}
TAGS = {
    "characters": "Twenty images and a name in, a character out.",
    "generation": "Images and video of a character.",
    "jobs": "Accepted requests and what becomes of them.",
    "assets": "Stored results.",
    "files": "The bytes of the local store.",
    "workflows": "Workflow templates and base models.",
    "pods": "Where the work is done.",
    "nodes": "What ComfyUI nodes on a pod ask for while they work.",
    "webhooks": "Who is told of what happens, and whether it arrived.",
    "project": "Whose all this is; its work can be held back.",
    "server": "The server itself.",
}
DESCRIPTION = (
    "Characters, images and video through one API. Long work answers 202 with a job: poll `GET /jobs/{id}`, follow "
    "`GET /jobs/{id}/events`, or send `Prefer: wait=N`. Errors are RFC 9457 problem documents with a `code`."
)


def document(routes: Sequence[Route], version: str) -> Json:
    """The whole document of a route table."""
    schemas = _Schemas(routes)
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Troupe",
            "version": version,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "security": [],
        "paths": paths,
        "components": {
            "schemas": schemas.definitions,
            "securitySchemes": {
                "join_token": {"type": "http", "scheme": "bearer", "description": "The join token of this server."},
                "pod_key": {"type": "http", "scheme": "bearer", "description": "The key a pod got on registering."},
            },
        },
    }


class _Schemas:
    """Every model of the table, requests as they are validated and replies as they are written."""

    def __init__(self, routes: Iterable[Route]) -> None:
        inputs: list[type[BaseModel]] = []
        outputs: list[type[BaseModel]] = [Problem, Event]
        for route in routes:
            if route.request is not None:
                inputs.append(route.request)
            outputs += [reply for reply in route.responses.values() if isinstance(reply, type)]
        pairs = dict.fromkeys([*((m, "validation") for m in inputs), *((m, "serialization") for m in outputs)])
        self._refs, whole = models_json_schema(list(pairs), ref_template=REF)  # type: ignore[arg-type]
        self.definitions: Json = whole["$defs"]

    def of(self, model: type[BaseModel], mode: Mode) -> Json:
        """A reference to a model's schema."""
        return dict(self._refs[model, mode])  # type: ignore[index]

    def form(self, model: type[BaseModel], files: str) -> Json:
        """A model as the fields of a form, beside its repeated file field."""
        own: Json = dict(self.definitions[model.__name__])
        picture = {"type": "string", "contentMediaType": "application/octet-stream"}
        described = {"type": "array", "items": picture, "description": "Pictures (repeated), or one zip of them."}
        return {**own, "properties": {**own["properties"], files: described}, "title": f"{model.__name__}Form"}

    def one_file(self, model: type[BaseModel], member: str, field: str) -> Json:
        """A model as the fields of a form, with a file in the place of one member."""
        own: Json = dict(self.definitions[model.__name__])
        others = {name: spec for name, spec in own["properties"].items() if name != member}
        file = {"type": "string", "contentMediaType": "application/octet-stream", "description": "One file."}
        title = f"{model.__name__}Form"
        return {**own, "properties": {**others, field: file}, "required": [field], "title": title}


def _operation(route: Route, schemas: _Schemas) -> Json:
    operation: Json = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "description": (route.handler.__doc__ or "").strip(),
        "tags": [route.tag],
        "responses": _responses(route, schemas),
    }
    parameters = _parameters(route)
    if parameters:
        operation["parameters"] = parameters
    body = _body(route, schemas)
    if body:
        operation["requestBody"] = body
    if route.credential:
        operation["security"] = [{route.credential: []}]
    return operation


def _parameters(route: Route) -> list[Json]:
    found: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    schema = route.query.model_json_schema()
    for name, spec in schema.get("properties", {}).items():
        plain = {key: value for key, value in spec.items() if key not in ("title", "description")}
        found.append(
            {"name": name, "in": "query", "required": name in schema.get("required", []), "schema": plain,
             "description": spec.get("description", "")}
        )  # fmt: skip
    for name in route.headers:
        description, kind = HEADERS[name]
        found.append({"name": name, "in": "header", "schema": {"type": kind}, "description": description})
    return found


def _body(route: Route, schemas: _Schemas) -> Json | None:
    if route.raw_body is not None:
        return {"required": True, "content": {route.raw_body: {}}}
    if route.request is None:
        return None
    if route.file is not None:
        described = schemas.of(route.request, "validation")
        one = schemas.one_file(route.request, *route.file)
        content = {"application/json": {"schema": described}, "multipart/form-data": {"schema": one}}
        return {"required": True, "content": content}
    if route.files is not None:
        form = schemas.form(route.request, route.files)
        return {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    schema = schemas.of(route.request, "validation")
    return {"required": not route.optional_body, "content": {"application/json": {"schema": schema}}}


def _responses(route: Route, schemas: _Schemas) -> Json:
    responses: Json = {str(status): _response(reply, schemas) for status, reply in route.responses.items()}
    if "Idempotency-Key" in route.headers:
        for promised in responses.values():
            promised["headers"] = {"Idempotency-Replayed": REPLAYED}
    by_status: dict[int, list[type[TroupeError]]] = {}
    problems: tuple[type[TroupeError], ...] = (*route.problems, *ANYWHERE)
    for problem in problems:
        by_status.setdefault(problem.status, []).append(problem)
    for status, kinds in sorted(by_status.items()):
        told = " ".join(dict.fromkeys(f"`{kind.code}`: {kind.title()}" for kind in kinds))
        if str(status) not in responses:
            responses[str(status)] = {
                "description": told,
                "content": {PROBLEM_MEDIA: {"schema": schemas.of(Problem, "serialization")}},
            }
    return responses


def _response(reply: type[BaseModel] | Media | None, schemas: _Schemas) -> Json:
    if reply is None:
        return {"description": "Done; no content."}
    if isinstance(reply, Media):
        return {"description": reply.description, "content": {reply.media_type: {}}}
    title = (reply.__doc__ or reply.__name__).strip().splitlines()[0]
    return {"description": title, "content": {"application/json": {"schema": schemas.of(reply, "serialization")}}}
