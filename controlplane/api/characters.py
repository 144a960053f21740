"""Characters and their versions: create from images, list, read, change, delete, train again, activate."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from controlplane.api.auth import authenticate
from controlplane.api.context import services
from controlplane.api.forms import read_form
from controlplane.api.image_urls import Fetching, fetched
from controlplane.api.reading import json_body, optional_json_body, query, validated
from controlplane.api.repeating import answered_once, claim_of
from controlplane.api.replies import json_reply, page_reply
from controlplane.api.schemas.characters import CharactersQuery, Consent, CreateCharacter, PatchCharacter, TrainVersion
from controlplane.api.views import dataset_body, job_links, views
from controlplane.domain import characters as domain
from controlplane.errors import NotFound
from controlplane.services.characters import CharacterPatch, Created, NewCharacter, TrainAgain, Upload
from controlplane.services.datasets import digests
from controlplane.settings import Settings


async def list_characters(request: web.Request) -> web.Response:
    """One page of characters with cover, counts and last job."""
    wanted = query(request, CharactersQuery)
    page = await services(request).characters.list(
        authenticate(request).project_id, limit=wanted.limit, cursor=wanted.cursor
    )
    return page_reply([views(request).character(view) for view in page.items], page.next_cursor)


async def create_character(request: web.Request) -> web.Response:
    """Judge the images and start the first training."""
    async with read_form(request, services(request).settings) as form:
        body = validated(CreateCharacter, form.fields)
        # What lies behind image_urls may change; a request that names the same ones asks for the same.
        once = claim_of(request, body.model_dump(), await asyncio.to_thread(digests, form.files))

        async def work() -> web.Response:
            files = [*form.files, *await fetched(body.image_urls, _fetching(services(request).settings, form.folder))]
            project = authenticate(request).project_id
            created = await services(request).characters.create(project, _new_character(body), files, once)
            return await _training_reply(request, project, created)

        return await answered_once(request, once, work)


async def get_character(request: web.Request) -> web.Response:
    """One character with its versions."""
    view = await services(request).characters.get(authenticate(request).project_id, _id(request))
    return json_reply(views(request).character(view))


async def patch_character(request: web.Request) -> web.Response:
    """Change name, description, metadata or cover."""
    body = await json_body(request, PatchCharacter)
    project = authenticate(request).project_id
    view = await services(request).characters.patch(project, _id(request), CharacterPatch(**body.model_dump()))
    return json_reply(views(request).character(view))


async def delete_character(request: web.Request) -> web.Response:
    """Delete a character with all its files."""
    await services(request).characters.delete(authenticate(request).project_id, _id(request))
    return web.Response(status=204)


async def train_version(request: web.Request) -> web.Response:
    """Train a further version: on the images of a form, or on the last ones again."""
    if request.content_type == "multipart/form-data":
        async with read_form(request, services(request).settings) as form:
            return await _trained_again(request, _train_again(validated(TrainVersion, form.fields)), form.files)
    return await _trained_again(request, _train_again(await optional_json_body(request, TrainVersion)), [])


async def _trained_again(request: web.Request, again: TrainAgain, files: Sequence[Upload]) -> web.Response:
    once = claim_of(request, again, await asyncio.to_thread(digests, files))

    async def work() -> web.Response:
        project = authenticate(request).project_id
        created = await services(request).characters.train_again(project, _id(request), again, once, files)
        return await _training_reply(request, project, created)

    return await answered_once(request, once, work)


async def activate_version(request: web.Request) -> web.Response:
    """Make a version the one that is used when a request names none."""
    number = request.match_info["number"]
    if not (number.isascii() and number.isdigit() and len(number) <= 9):
        raise NotFound(f"There is no version {number!r}.")
    view = await services(request).characters.activate(authenticate(request).project_id, _id(request), int(number))
    return json_reply(views(request).character(view))


def _id(request: web.Request) -> str:
    return request.match_info["character_id"]


def _new_character(body: CreateCharacter) -> NewCharacter:
    fields: dict[str, Any] = body.model_dump(exclude={"consent", "image_urls"})
    return NewCharacter(**fields, consent=_consent(body.consent))


def _train_again(body: TrainVersion) -> TrainAgain:
    return TrainAgain(**body.model_dump())


def _fetching(settings: Settings, folder: Path) -> Fetching:
    return Fetching(folder, settings.max_image_bytes, settings.max_upload_bytes)


def _consent(given: Consent | None) -> domain.Consent | None:
    return None if given is None else domain.Consent(given.attested_by, given.text_version)


async def _training_reply(request: web.Request, project: str, created: Created) -> web.Response:
    shown = views(request)
    job = await services(request).jobs.get(project, created.job.id)
    links = job_links(job.job)
    body = {
        "character": shown.character(created.character),
        "job": shown.job(job),
        "dataset": dataset_body(created.report),
        "links": links,
    }
    return json_reply(body, status=202, headers={"Location": links["character"]})
