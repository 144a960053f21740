"""POST /generate-image and /generate-video."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from controlplane.api.context import services
from controlplane.api.jobs import accept
from controlplane.api.reading import json_body
from controlplane.api.schemas.generation import Generate, GenerateImage, GenerateVideo
from controlplane.services.generation import ImageRequest, VideoRequest


async def generate_image(request: web.Request) -> web.Response:
    """Accept a request for images."""
    wanted = ImageRequest(**_fields(await json_body(request, GenerateImage)))
    return await accept(request, wanted, services(request).generation.submit_image)


async def generate_video(request: web.Request) -> web.Response:
    """Accept a request for a video."""
    wanted = VideoRequest(**_fields(await json_body(request, GenerateVideo)))
    return await accept(request, wanted, services(request).generation.submit_video)


def _fields(body: Generate) -> dict[str, Any]:
    """The declared fields by name; everything else is for the workflow, which refuses what it does not know."""
    declared = {name: getattr(body, name) for name in type(body).model_fields}
    return {**declared, "workflow_inputs": dict(body.model_extra or {})}
