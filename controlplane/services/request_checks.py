"""Checks of a request against what it names: base, inputs, content and length, each with words for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from controlplane.domain.assets import Asset
from controlplane.domain.characters import Character, Version
from controlplane.domain.content import Rating, check_content
from controlplane.errors import BaseMismatch, Unprocessable
from controlplane.services.requests import ImageRequest, Request
from controlplane.settings import Settings
from controlplane.workflows.models import BaseModel
from controlplane.workflows.screening import wanted_texts
from controlplane.workflows.template import Template


def check_base(request: Request, template: Template, model: BaseModel, version: Version | None) -> None:
    """Raise BaseMismatch, naming both, where template, model and version are not of one base."""
    if version is not None and (model.id != version.base_model or not template.fits(version.base_model)):
        asked = f"workflow {template.name} is made for base {template.base}"
        if request.workflow is None or template.fits(version.base_model):
            asked = f"model {model.id} was asked for"
        detail = f"{asked}, but version {version.number} of {version.character_id} was trained on {version.base_model}"
        pointer = "/workflow" if "workflow" in asked else "/model"
        raise BaseMismatch(detail, errors=[{"pointer": pointer, "detail": detail}])
    if not template.fits(model.id):
        detail = f"workflow {template.name} is made for base {template.base}, but model {model.id} was asked for"
        raise BaseMismatch(detail, errors=[{"pointer": "/workflow", "detail": detail}])


def check_inputs(
    request: Request, template: Template, character: Character | None, pictures: Mapping[str, Asset]
) -> None:
    """Raise Unprocessable where a request and a template do not fit: better words than binding has for it."""
    errors = []
    if character is None and template.takes("character_id") and template.inputs["character_id"].required:
        errors.append({"pointer": "/character_id", "detail": f"workflow {template.name} needs a character_id"})
    if character is not None and not template.takes("character_id"):
        errors.append({"pointer": "/character_id", "detail": f"workflow {template.name} takes no character"})
    if character is None and request.version is not None:
        errors.append({"pointer": "/version", "detail": "a version needs a character_id"})
    if "image" not in pictures and template.takes("image") and template.inputs["image"].required:
        errors.append({"pointer": "/image_asset_id", "detail": f"workflow {template.name} starts at a picture"})
    if "image" in pictures and not template.takes("image"):
        errors.append({"pointer": "/image_asset_id", "detail": f"workflow {template.name} takes no picture"})
    known = {one.name for one in dataclasses.fields(request)}
    for name in request.workflow_inputs:
        if name in known or (template.takes(name) and template.inputs[name].internal):
            errors.append({"pointer": f"/{name}", "detail": f"{name} is set by the server, not by a request"})
    if errors:
        raise Unprocessable("; ".join(error["detail"] for error in errors), errors=errors)


def rating_with(rating: Rating, pictures: Iterable[Asset]) -> Rating:
    """The rating of what a request makes: what is made of a mature picture is mature too."""
    return "mature" if any(picture.rating == "mature" for picture in pictures) else rating


def check_request_content(
    request: Request, rating: Rating, shown: Iterable[Character], template: Template, values: Mapping[str, Any]
) -> None:
    """Raise ContentRefused where this is not made of those characters here; see ``domain.content``.

    ``values`` are the template's inputs in force: what counts is where a text goes, not what its input is called.
    """
    wanted = [request.prompt, *wanted_texts(template, values)]
    characters = list(shown)
    about = [text for one in characters for text in (one.class_word, one.name, one.description)]
    check_content(rating, wanted, about, any(one.subject == "real" for one in characters))


def frames_of(request: Request, template: Template) -> int | None:
    """How many frames a video has: as given, or ``seconds`` times its fps; None for the template's own number."""
    if isinstance(request, ImageRequest):
        return None
    if request.seconds is None:
        return request.frames
    if request.frames is not None:
        detail = "give frames or seconds, not both"
        raise Unprocessable(detail, errors=[{"pointer": "/seconds", "detail": detail}])
    default = template.inputs["fps"].default if template.takes("fps") else None
    fps = request.fps or float(default or 0)
    if not fps:
        detail = f"workflow {template.name} has no fps of its own: give frames, or fps too"
        raise Unprocessable(detail, errors=[{"pointer": "/seconds", "detail": detail}])
    return max(1, round(request.seconds * fps))


def check_texts(request: Request, settings: Settings) -> None:
    """Raise Unprocessable for an empty or over-long prompt, or a count that is not taken."""
    most = settings.max_prompt_chars
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt or ""}
    errors = [
        {"pointer": f"/{name}", "detail": f"has {len(text)} characters, at most {most} are allowed"}
        for name, text in texts.items()
        if len(text) > most
    ]
    if not request.prompt.strip():
        errors.append({"pointer": "/prompt", "detail": "is empty"})
    count = request.count if isinstance(request, ImageRequest) else None
    if count is not None and not 1 <= count <= settings.max_count:
        errors.append({"pointer": "/count", "detail": f"is between 1 and {settings.max_count}"})
    if errors:
        said = "; ".join(f"{error['pointer'][1:]} {error['detail']}" for error in errors)
        raise Unprocessable(said, errors=errors)
