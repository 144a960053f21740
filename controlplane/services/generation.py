"""Generation: turns a request for pictures or a video into a job, and a finished attempt into assets."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from controlplane.db import assets as asset_rows
from controlplane.db import characters as character_rows
from controlplane.db import jobs as job_rows
from controlplane.db.database import Database
from controlplane.domain.assets import EXTENSIONS, Asset
from controlplane.domain.characters import Character, Version
from controlplane.domain.content import Rating, checked_rating
from controlplane.domain.ids import new_id
from controlplane.domain.jobs import Attempt, Job, JobResult, NewJob
from controlplane.domain.prompts import compose
from controlplane.errors import NotFound, Unprocessable
from controlplane.ports import Clock
from controlplane.services.events import Hints
from controlplane.services.idempotency import Claim
from controlplane.services.jobs import Jobs, checked_deadline
from controlplane.services.outputs import asset_ids, reported, warnings_of
from controlplane.services.pod_check import check_pods
from controlplane.services.request_checks import (
    check_base,
    check_inputs,
    check_request_content,
    check_texts,
    frames_of,
    rating_with,
)
from controlplane.services.requests import ImageRequest, Request, VideoRequest
from controlplane.services.summaries import character_of
from controlplane.services.training import version_for_use
from controlplane.settings import Settings
from controlplane.workflows.binding import Bound, bind
from controlplane.workflows.catalog import Catalog
from controlplane.workflows.graph import digest
from controlplane.workflows.models import BaseModel
from controlplane.workflows.template import Template

__all__ = ["Generation", "ImageRequest", "VideoRequest", "complete"]

SEEDS = 2**53
"""Seeds are 0 <= seed < this: every JSON reader keeps them exactly."""
VERSION_DEFAULT_STRENGTH = -1.0
PLAIN_INPUTS = ("width", "height", "steps", "cfg", "format", "count", "fps", "motion")
"""Fields of a request that go into the template's inputs of the same name as they are."""


@dataclass(frozen=True)
class _Cast:
    """Who and what a request is made with: model and template, and the character's version where there is one.

    ``pictures`` are stored pictures by the template's input that takes them; ``shown`` are the characters that can be
    seen: the one asked for, and those on the pictures.
    """

    model: BaseModel
    template: Template
    character: Character | None
    version: Version | None
    pictures: Mapping[str, Asset] = field(default_factory=dict)
    shown: tuple[Character, ...] = ()


class Generation:
    """The generation service."""

    def __init__(
        self, db: Database, clock: Clock, settings: Settings, catalog: Catalog, jobs: Jobs, hints: Hints
    ) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._catalog = catalog
        self._jobs = jobs
        self._hints = hints

    async def submit_image(self, project_id: str, request: ImageRequest, once: Claim | None = None) -> Job:
        """Queue a request for pictures; ``once`` is its claim where it has an Idempotency-Key.

        Raises CharacterNotFound, NotFound (version, workflow), CharacterNotReady, BaseMismatch, Unprocessable,
        ContentRefused, NoPods, IdempotencyMismatch; then nothing is stored. AnsweredBefore for a repeated request.
        """
        return await self._submit(project_id, request, once)

    async def submit_video(self, project_id: str, request: VideoRequest, once: Claim | None = None) -> Job:
        """Queue a request for a video; with ``image_asset_id`` it starts at that picture. Raises as for pictures."""
        return await self._submit(project_id, request, once)

    async def _submit(self, project_id: str, request: Request, once: Claim | None) -> Job:
        check_texts(request, self._settings)
        asked_rating = checked_rating(request.rating)
        job_id, runs = new_id("job"), itertools.count()

        def accept_request(c: Connection) -> Job:
            first = once.first_answer(c) if once is not None else None
            if first is not None:
                return _job(c, project_id, first["job_id"])
            # A connection that broke during the COMMIT of the run before leaves open whether the job is there.
            stored = job_rows.get(c, project_id, job_id) if next(runs) > 0 else None
            if stored is not None:
                return stored
            cast = self._cast(c, project_id, request)
            rating = rating_with(asked_rating, cast.pictures.values())
            values = self._values(request, cast)
            check_request_content(request, rating, cast.shown, cast.template, values)
            bound = bind(cast.template, values)
            check_pods(c, project_id)
            job = self._jobs.insert(c, self._new_job(job_id, project_id, request, rating, cast, bound))
            if once is not None:
                once.keep(c, {"job_id": job.id}, self._clock.now(), job)
            return job

        job = await self._db.write_fenced(accept_request)
        self._hints.wake(Hints.JOBS, Hints.EVENTS)
        return job

    def _cast(self, c: Connection, project_id: str, request: Request) -> _Cast:
        """Find everything that the request names, and check that it fits together."""
        character = version = None
        if request.character_id is not None:
            character_rows.keep(c, project_id, request.character_id)
            character = character_of(c, project_id, request.character_id)
            version = version_for_use(c, character, request.version)
        model = self._model(request, version)
        template = self._template(request, model)
        check_base(request, template, model, version)
        pictures = _pictures(c, project_id, request, template)
        check_inputs(request, template, character, pictures)
        on_them = dict.fromkeys(one.character_id for one in pictures.values() if one.character_id is not None)
        pictured = [character_rows.get(c, project_id, one) for one in on_them]
        shown = tuple(one for one in (character, *pictured) if one is not None)
        return _Cast(model, template, character, version, pictures, shown)

    def _model(self, request: Request, version: Version | None) -> BaseModel:
        if request.model is not None:
            if request.model not in self._catalog.models:
                detail = f"there is no model {request.model!r}; there are {', '.join(sorted(self._catalog.models))}"
                raise Unprocessable(detail, errors=[{"pointer": "/model", "detail": detail}])
            return self._catalog.models[request.model]
        if version is not None:
            return self._catalog.model(version.base_model)
        return self._catalog.default_model(self._settings.default_base_model)

    def _template(self, request: Request, model: BaseModel) -> Template:
        kind = "image" if isinstance(request, ImageRequest) else "video"
        if request.workflow is None:
            from_image = kind == "video" and request.image_asset_id is not None
            return self._catalog.template_for(model.id, "video_from_image" if from_image else kind)
        template = self._catalog.template(request.workflow)
        if template.kind != kind:
            detail = f"workflow {template.name} makes {template.kind}, not {kind}"
            raise Unprocessable(detail, errors=[{"pointer": "/workflow", "detail": detail}])
        return template

    def _values(self, request: Request, cast: _Cast) -> dict[str, Any]:
        """The values of the template's inputs; what the template does not take and nobody asked for is left out."""
        template, version = cast.template, cast.version
        values: dict[str, Any] = dict(request.workflow_inputs)
        values.update({name: getattr(request, name) for name in PLAIN_INPUTS if hasattr(request, name)})
        values["prompt"] = compose(request.prompt, cast.character)
        if isinstance(request, VideoRequest):
            values["frames"] = frames_of(request, template)
        values["seed"] = request.seed
        values["lora_strength"] = request.lora_strength
        values["negative_prompt"] = request.negative_prompt
        if values["lora_strength"] == VERSION_DEFAULT_STRENGTH and version is not None:
            values["lora_strength"] = version.default_strength
        ours = {
            "lora_strength": version.default_strength if version is not None and _leaves_strength(template) else None,
            "negative_prompt": _unless_its_own(template, "negative_prompt", cast.model.negative_prompt or None),
            "seed": secrets.randbelow(SEEDS),
            "checkpoint": cast.model.checkpoint if _is_internal(template, "checkpoint") else None,
            "character_id": cast.character.id if cast.character is not None else None,
            "version": version.number if version is not None else None,
            "lora_sha256": version.lora_sha256 if version is not None else None,
        }
        for name, value in ours.items():
            if values.get(name) is None and template.takes(name):
                values[name] = value
        values.update({name: _file_name(picture) for name, picture in cast.pictures.items()})
        for name in ("width", "height"):
            if values[name] is None and template.takes(name) and template.inputs[name].required:
                values[name] = getattr(cast.model, name)
        return values

    def _new_job(
        self, job_id: str, project_id: str, request: Request, rating: Rating, cast: _Cast, bound: Bound
    ) -> NewJob:
        is_image = isinstance(request, ImageRequest)
        settings, template, version = self._settings, cast.template, cast.version
        # A template that puts no LoRA on its model must not be held to a pod that has one.
        sha256 = version.lora_sha256 if version is not None and template.takes("lora_sha256") else None
        usual = settings.image_deadline_seconds if is_image else settings.video_deadline_seconds
        given = {name: value for name, value in vars(request).items() if value not in (None, {})}
        return NewJob(
            id=job_id,
            project_id=project_id,
            kind="image" if is_image else "video",
            template=template.name,
            template_digest=template.digest,
            graph=bound.graph,
            needs=self._catalog.needs(template, cast.model.id, sha256),
            outputs=[{"node": output.node, "kind": output.kind} for output in template.outputs],
            deadline_seconds=checked_deadline(request.deadline_seconds, usual, settings),
            priority=request.priority or 0,
            request={**given, "values": bound.values},
            character_id=cast.character.id if cast.character is not None else None,
            version=version.number if version is not None else None,
            base_model=cast.model.id,
            seed=bound.seed,
            files=list(dict.fromkeys((_file_name(one), one.key) for one in cast.pictures.values())),
            estimate_seconds=template.estimate_seconds * int(bound.values.get("count", 1)),
            metadata=request.metadata,
            end_user=request.end_user,
            rating=rating,
        )


def complete(c: Connection, job: Job, attempt: Attempt, outputs: Mapping[str, Any], now: float) -> JobResult:
    """Take the files of the winning attempt as the job's assets, in the order in which the nodes reported them."""
    made_by = _provenance(job, attempt, now)
    named = reported(job, outputs)
    by_upload = asset_rows.ids_by_upload(c, attempt.id) if any(one.upload for one in named) else {}
    ids = asset_ids(named, by_upload)
    for position, asset_id in enumerate(ids):
        stored = {"status": "stored", "position": position, "recipe": made_by, "created_at": now, "upload": None}
        asset_rows.change(c, job.project_id, asset_id, stored)
    return JobResult({"asset_ids": ids}, warnings_of(outputs))


def _provenance(job: Job, attempt: Attempt, now: float) -> dict[str, Any]:
    """What made a picture: enough to make it again, and where and when it was made."""
    return {
        "workflow": job.template,
        "workflow_digest": job.template_digest,
        "graph_digest": digest(job.graph),
        "values": dict(job.request.get("values", {})),
        "seed": job.seed,
        "base_model": job.base_model,
        "character_id": job.character_id,
        "version": job.version,
        "lora_sha256": job.needs.get("lora_sha256"),
        "pod": attempt.pod_id,
        "attempt": attempt.number,
        "submitted_at": attempt.submitted_at,
        "finished_at": now,
    }


def _pictures(c: Connection, project_id: str, request: Request, template: Template) -> dict[str, Asset]:
    """The stored pictures that a request names, by the template's input that takes them."""
    named = {
        name: (f"/{name}", str(value))
        for name, value in request.workflow_inputs.items()
        if template.takes(name) and template.inputs[name].type == "image" and not template.inputs[name].internal
    }
    if request.image_asset_id is not None:
        named["image"] = ("/image_asset_id", request.image_asset_id)
    return {name: _picture(c, project_id, pointer, asset_id) for name, (pointer, asset_id) in named.items()}


def _picture(c: Connection, project_id: str, pointer: str, asset_id: str) -> Asset:
    asset = asset_rows.get(c, project_id, asset_id)
    if asset is None or asset.status != "stored" or asset.kind not in ("image", "sample"):
        detail = f"there is no picture {asset_id!r}"
        raise NotFound(detail, errors=[{"pointer": pointer, "detail": detail}])
    return asset


def _unless_its_own(template: Template, name: str, value: Any) -> Any:
    """A base model's value, None where the template brings one of its own."""
    return None if template.takes(name) and template.inputs[name].default else value


def _leaves_strength(template: Template) -> bool:
    """Whether a template leaves the LoRA's strength to the version; an artist may have set one of their own."""
    return template.takes("lora_strength") and template.inputs["lora_strength"].default == VERSION_DEFAULT_STRENGTH


def _is_internal(template: Template, name: str) -> bool:
    return template.takes(name) and template.inputs[name].internal


def _file_name(asset: Asset) -> str:
    return f"{asset.id}.{EXTENSIONS.get(asset.media_type, 'png')}"


def _job(c: Connection, project_id: str, job_id: str) -> Job:
    job = job_rows.get(c, project_id, job_id)
    if job is None:
        raise NotFound("the job of the first request with this Idempotency-Key has been deleted since")
    return job
