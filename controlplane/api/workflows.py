"""Workflow templates and base models, as the catalogue has them."""

from __future__ import annotations

from aiohttp import web

from controlplane.api.context import services
from controlplane.api.replies import json_reply, page_reply
from controlplane.api.views import model_body, workflow_body


async def list_workflows(request: web.Request) -> web.Response:
    """All workflow templates."""
    templates = services(request).catalog.templates
    return page_reply([workflow_body(templates[name]) for name in sorted(templates)])


async def get_workflow(request: web.Request) -> web.Response:
    """One workflow template with its graph."""
    template = services(request).catalog.template(request.match_info["name"])
    return json_reply(workflow_body(template, with_graph=True))


async def list_models(request: web.Request) -> web.Response:
    """All base models."""
    catalog = services(request).catalog
    return page_reply([model_body(model, catalog.recipes.get(name, {})) for name, model in catalog.models.items()])
