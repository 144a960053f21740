"""Workflow templates and base models: listed, read, imported from ComfyUI, removed."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from controlplane.api.auth import authenticate
from controlplane.api.context import services
from controlplane.api.forms import read_form
from controlplane.api.reading import json_body, validated
from controlplane.api.repeating import answered_once, claim_of
from controlplane.api.replies import json_reply, page_reply
from controlplane.api.schemas.catalog import ImportWorkflow
from controlplane.api.views import model_body, workflow_body
from controlplane.errors import PayloadTooLarge, Unprocessable
from controlplane.services.workflows import Outcome
from controlplane.workflows import sources
from controlplane.workflows.graph import canonical
from controlplane.workflows.importing import Wish, name_from
from controlplane.workflows.sources import Source
from controlplane.workflows.template import Template

STATUS = {"created": 201, "changed": 201, "unchanged": 200, "checked": 200}


async def list_workflows(request: web.Request) -> web.Response:
    """All workflow templates."""
    templates = services(request).catalog.templates.state()
    return page_reply(
        [workflow_body(templates[name], imported=_is_imported(request, name)) for name in sorted(templates)]
    )


async def get_workflow(request: web.Request) -> web.Response:
    """One workflow template with its graph."""
    return json_reply(_detail(request, services(request).catalog.template(request.match_info["name"])))


async def import_workflow(request: web.Request) -> web.Response:
    """Import an API export, or a picture that carries one: find its inputs, and make it usable at once."""
    project = authenticate(request).project_id
    body, source = await _form(request) if request.content_type == "multipart/form-data" else await _json(request)
    wish = _wish(body)
    once = claim_of(request, body.model_dump(exclude={"graph"}), hashlib.sha256(source.original).hexdigest())
    add = functools.partial(services(request).workflows.add, project, source, wish, body.dry_run)

    async def work() -> web.Response:
        outcome = await (add() if once is None else services(request).repeats.around(once, add))
        links = {"workflow": f"/workflows/{outcome.imported.template.name}"}
        headers = {"Location": links["workflow"]} if STATUS[outcome.status] == 201 else None
        return json_reply({**_outcome_body(request, outcome), "links": links}, STATUS[outcome.status], headers)

    return await answered_once(request, once, work, look=False)


async def delete_workflow(request: web.Request) -> web.Response:
    """Remove an imported workflow; jobs that were made with it stay."""
    authenticate(request)
    await services(request).workflows.remove(request.match_info["name"])
    return web.Response(status=204)


async def list_models(request: web.Request) -> web.Response:
    """All base models."""
    catalog = services(request).catalog
    return page_reply([model_body(model, catalog.recipes.get(name, {})) for name, model in catalog.models.items()])


async def _json(request: web.Request) -> tuple[ImportWorkflow, Source]:
    body = await json_body(request, ImportWorkflow)
    return body, Source(sources.api_graph(body.graph), canonical(body.graph), ".json")


async def _form(request: web.Request) -> tuple[ImportWorkflow, Source]:
    async with read_form(request, services(request).settings, "file") as form:
        if len(form.files) != 1:
            detail = f"one file is needed; there are {len(form.files)}"
            raise Unprocessable(detail, errors=[{"pointer": "/file", "detail": detail}])
        if form.files[0].path.stat().st_size > sources.MAX_FILE_BYTES:
            raise PayloadTooLarge(f"The file has more than {sources.MAX_FILE_BYTES} bytes.")
        data = await asyncio.to_thread(form.files[0].path.read_bytes)
        fields: Mapping[str, Any] = {"name": name_from(form.files[0].name) or None, **form.fields}
    source = await asyncio.to_thread(sources.read, data)
    return validated(ImportWorkflow, {**fields, "graph": source.graph}), source


def _wish(body: ImportWorkflow) -> Wish:
    if body.name is None:
        detail = "give the workflow a name: small letters, digits and underscores"
        raise Unprocessable(detail, errors=[{"pointer": "/name", "detail": detail}])
    return Wish(body.name, body.title or "", body.kind, body.base, body.insert_character)


def _outcome_body(request: web.Request, outcome: Outcome) -> dict[str, Any]:
    imported = outcome.imported
    return {
        "status": outcome.status,
        "workflow": _detail(request, imported.template, imported=True),
        "previous_digest": outcome.previous,
        "findings": [
            {"name": one.name, "by": one.by, "how": one.how, "places": [f"{node}.{name}" for node, name in one.places]}
            for one in imported.found
        ],
        "diff": [{"action": one.action, "node": one.node, "detail": one.detail} for one in imported.changes],
        "pods": [{"pod": one.pod, "state": one.state, "missing": list(one.missing)} for one in outcome.pods],
        "warnings": list(outcome.warnings),
    }


def _detail(request: web.Request, template: Template, imported: bool | None = None) -> dict[str, Any]:
    is_imported = _is_imported(request, template.name) if imported is None else imported
    versions = services(request).workflows.older_versions(template.name) if is_imported else []
    return {**workflow_body(template, imported=is_imported, with_graph=True), "versions": versions}


def _is_imported(request: web.Request, name: str) -> bool:
    return not services(request).catalog.templates.is_shipped(name)
