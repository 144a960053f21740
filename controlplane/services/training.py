"""Training: the job that makes a version, what a pod is told for it, and the version that comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from controlplane.db import assets as asset_rows
from controlplane.db import attempts as attempt_rows
from controlplane.db import characters as character_rows
from controlplane.db import datasets as dataset_rows
from controlplane.db import jobs as job_rows
from controlplane.db.database import Database
from controlplane.domain import events
from controlplane.domain.assets import Asset, state_standing
from controlplane.domain.characters import Character, Version, status_of
from controlplane.domain.datasets import Dataset, DatasetImage
from controlplane.domain.ids import new_id
from controlplane.domain.jobs import Attempt, Job, JobResult, NewJob
from controlplane.domain.pods import Pod
from controlplane.domain.prompts import sample_prompts, training_caption
from controlplane.errors import CharacterNotReady, NotFound
from controlplane.ports import BlobStore
from controlplane.services.events import append
from controlplane.services.jobs import checked_deadline
from controlplane.services.outputs import number, reported, warnings_of
from controlplane.services.summaries import character_of
from controlplane.settings import Settings
from controlplane.workflows.binding import bind
from controlplane.workflows.catalog import Catalog

TRAINING_SEED = 42
RETRY_AFTER_SECONDS = 30


@dataclass(frozen=True)
class Wanted:
    """What a request says of its training; None means the default."""

    recipe: str | None = None
    priority: int | None = None
    deadline_seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """A training that is about to be stored: the version row and the job that makes it."""

    version: Version
    job: NewJob


class Training:
    """The training service: reads for pods, and the hooks of a train job's end."""

    def __init__(self, db: Database, blobs: BlobStore, catalog: Catalog, settings: Settings) -> None:
        self._db = db
        self._blobs = blobs
        self._catalog = catalog
        self._settings = settings

    def plan(self, character: Character, dataset: Dataset, number: int, wanted: Wanted, now: float) -> Plan:
        """Bind a training on the character's base model.

        Raises Unprocessable for an unknown base model or recipe, and for a deadline beyond what is given here.
        """
        base_model = character.base_model
        chosen = self._catalog.recipe(base_model, wanted.recipe or "")
        template = self._catalog.template_for(base_model, "train")
        values = {
            "character_id": character.id,
            "version": number,
            "base": base_model,
            "recipe": chosen.name,
            "dataset_digest": dataset.digest,
        }
        bound = bind(template, values)
        job_id = new_id("job")
        version = Version(
            project_id=character.project_id,
            character_id=character.id,
            number=number,
            status="training",
            base_model=base_model,
            recipe=chosen.name,
            recipe_digest=chosen.digest,
            dataset_id=dataset.id,
            job_id=job_id,
            created_at=now,
            default_strength=self._catalog.model(base_model).lora_strength,
        )
        job = NewJob(
            id=job_id,
            project_id=character.project_id,
            kind="train",
            template=template.name,
            template_digest=template.digest,
            graph=bound.graph,
            needs=self._catalog.needs(template, base_model),
            outputs=[{"node": output.node, "kind": output.kind} for output in template.outputs],
            deadline_seconds=checked_deadline(
                wanted.deadline_seconds, self._settings.train_deadline_seconds, self._settings
            ),
            priority=wanted.priority or 0,
            # The parameters are pinned here: a recipe edited while the job waits must not change what it trains.
            request={**values, "recipe_digest": chosen.digest, "params": chosen.params, "dataset_id": dataset.id},
            character_id=character.id,
            version=number,
            base_model=base_model,
            seed=TRAINING_SEED,
            estimate_seconds=chosen.estimate_seconds,
        )
        return Plan(version, job)

    async def dataset_for_pod(self, pod: Pod, character_id: str, number: int) -> dict[str, Any]:
        """Everything that training one version needs, as JSON; captions begin with trigger and class word.

        CharacterNotFound, NotFound (no such version).
        """
        found = await self._db.read(_read_dataset, pod.project_id, character_id, number)
        resume = await self._resume(found.states)
        character, version = found.character, found.version
        model = self._catalog.model(version.base_model)
        return {
            "character_id": character.id,
            "version": version.number,
            "name": character.name,
            "trigger": character.trigger_word,
            "class_word": character.class_word,
            "base": version.base_model,
            "checkpoint": model.checkpoint,
            "trainer": model.trainer,
            "recipe": {"name": version.recipe, "digest": version.recipe_digest, "params": dict(found.params)},
            "dataset_digest": found.dataset.digest,
            "seed": TRAINING_SEED,
            "sample_prompts": list(sample_prompts(character)),
            "images": [self._image(character, image, asset) for image, asset in found.images],
            "resume": resume,
        }

    async def lora_for_pod(self, pod: Pod, character_id: str, number: int) -> dict[str, Any]:
        """Where the LoRA of a version lies and how it is used, as JSON; version 0 is the active one.

        CharacterNotFound, NotFound (no such version), CharacterNotReady.
        """
        character, version, asset = await self._db.read(_read_lora, pod.project_id, character_id, number)
        return {
            "character_id": character.id,
            "version": version.number,
            "sha256": asset.sha256,
            "bytes": asset.bytes,
            "url": self._blobs.signed_get_url(asset.key, self._settings.file_url_seconds),
            "trigger": character.trigger_word,
            "default_strength": version.default_strength,
            "base": version.base_model,
        }

    async def _resume(self, states: Sequence[Asset]) -> dict[str, Any] | None:
        """The newest state that really is in the store: its pod may have died while it uploaded it."""
        for asset in states:
            standing = state_standing(asset.name)
            info = await self._blobs.head(asset.key)
            if standing is None or info is None or info.bytes != asset.bytes:
                continue
            url = self._blobs.signed_get_url(asset.key, self._settings.file_url_seconds)
            return {
                "step": standing.step,
                "epoch": standing.epoch,
                "url": url,
                "sha256": asset.sha256,
                "bytes": asset.bytes,
            }
        return None

    def _image(self, character: Character, image: DatasetImage, asset: Asset) -> dict[str, Any]:
        return {
            "name": f"{image.position + 1:03d}.png",
            "url": self._blobs.signed_get_url(asset.key, self._settings.file_url_seconds),
            "sha256": asset.sha256,
            "bytes": asset.bytes,
            "media_type": asset.media_type,
            "caption": training_caption(image.caption, character),
        }


def complete(c: Connection, job: Job, attempt: Attempt, outputs: Mapping[str, Any], now: float) -> JobResult:
    """Register the version that a finished training made; it becomes active where it is the first or the newest."""
    version = _version_of(c, job)
    found = reported(job, outputs)
    assets = {asset.id: asset for asset in asset_rows.of_attempt(c, attempt.id)}
    lora = assets[found[0].asset_id]
    facts = found[0].facts
    warnings = warnings_of(outputs)
    proof = {name: number(facts, name) for name in ("matched", "total", "steps", "final_loss", "rank")}
    made_by = {"job": job.id, "pod": attempt.pod_id, "base": version.base_model, "recipe": version.recipe}
    for asset in assets.values():
        if asset.kind != "state":
            asset_rows.change(c, job.project_id, asset.id, {"status": "stored", "recipe": made_by})
    _drop_states(c, job)
    changes = {
        "status": "ready",
        "lora_asset_id": lora.id,
        "lora_sha256": lora.sha256,
        "proof": {**proof, "warnings": warnings},
        "error": None,
        "finished_at": now,
    }
    character_rows.change_version(c, job.project_id, version.character_id, version.number, changes)
    activated = _activate_if_newest(c, version, now)
    told = {"character_id": version.character_id, "version": version.number, "lora_sha256": lora.sha256}
    append(c, job.project_id, events.VERSION_READY, told, job.id, version.character_id, now)
    if activated:
        append(c, job.project_id, events.CHARACTER_READY, told, job.id, version.character_id, now)
    return JobResult({**told, "active": activated, "lora_asset_id": lora.id, **proof}, warnings)


def _drop_states(c: Connection, job: Job) -> None:
    """A state is for going on with its training only; the sweep deletes the files."""
    states = [asset.id for attempt in attempt_rows.of_job(c, job.project_id, job.id) for asset in _states(c, attempt)]
    asset_rows.mark_deleted(c, job.project_id, states)


def on_failed(c: Connection, job: Job, error: Mapping[str, Any] | None, now: float) -> None:
    """Mark the version of a failed training; dataset and character stay, so that it can be trained again."""
    _drop_states(c, job)
    _end(c, job, "failed", error, now)


def on_cancelled(c: Connection, job: Job, error: Mapping[str, Any] | None, now: float) -> None:
    """Mark the version of a cancelled training; dataset and character stay."""
    _drop_states(c, job)
    _end(c, job, "cancelled", error, now)


def version_for_use(c: Connection, character: Character, wanted: int | None) -> Version:
    """The version to make pictures with: the wanted one, else the active one. NotFound, CharacterNotReady."""
    chosen = wanted or character.active_version
    if chosen is None:
        raise _not_ready(character, character_rows.versions(c, character.project_id, [character.id]))
    version = character_rows.get_version(c, character.project_id, character.id, chosen)
    if version is None:
        raise NotFound(
            f"{character.id} has no version {chosen}", errors=[{"pointer": "/version", "detail": "no such version"}]
        )
    if not version.is_usable:
        raise _not_ready(character, [version])
    return version


def _not_ready(character: Character, versions: list[Version]) -> CharacterNotReady:
    training = [version for version in versions if version.status == "training"]
    if training:
        return CharacterNotReady(
            f"{character.id} is still training (version {training[-1].number}); try again later",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
            job_id=training[-1].job_id,
        )
    last = versions[-1] if versions else None
    state = f"version {last.number} has {last.status}" if last is not None else "it has no version"
    return CharacterNotReady(f"{character.id} has no usable LoRA: {state}; train it again", status_of_version=state)


def _activate_if_newest(c: Connection, version: Version, now: float) -> bool:
    character_rows.lock(c, version.project_id, version.character_id)
    character = character_of(c, version.project_id, version.character_id)
    if character.active_version is not None and character.active_version > version.number:
        return False
    values = {"active_version": version.number, "base_model": version.base_model}
    character_rows.change(c, version.project_id, version.character_id, values, now)
    return True


def _end(c: Connection, job: Job, status: str, error: Mapping[str, Any] | None, now: float) -> None:
    version = character_rows.version_of_job(c, job.project_id, job.id)
    if version is None:
        return
    changes = {"status": status, "error": dict(error) if error else None, "finished_at": now}
    character_rows.change_version(c, job.project_id, version.character_id, version.number, changes)
    character = character_of(c, job.project_id, version.character_id)
    versions = character_rows.versions(c, job.project_id, [character.id])
    if status_of(character, versions) == "failed":
        told = {"character_id": character.id, "version": version.number, "status": status, "error": changes["error"]}
        append(c, job.project_id, events.CHARACTER_FAILED, told, job.id, character.id, now)


def _version_of(c: Connection, job: Job) -> Version:
    version = character_rows.version_of_job(c, job.project_id, job.id)
    if version is None:
        raise NotFound(f"job {job.id} belongs to no version any more")
    return version


@dataclass(frozen=True)
class _TrainedOn:
    """What a version is trained on."""

    character: Character
    version: Version
    dataset: Dataset
    params: Mapping[str, Any]
    images: tuple[tuple[DatasetImage, Asset], ...]
    states: tuple[Asset, ...]


def _read_dataset(c: Connection, project_id: str, character_id: str, number: int) -> _TrainedOn:
    character = character_of(c, project_id, character_id)
    version = character_rows.get_version(c, project_id, character_id, number)
    dataset = dataset_rows.get(c, project_id, version.dataset_id) if version is not None else None
    job = job_rows.get(c, project_id, version.job_id) if version is not None else None
    if version is None or dataset is None or job is None:
        raise NotFound(f"{character_id} has no version {number}")
    images = dataset_rows.images(c, project_id, dataset.id)
    ids = [image.asset_id for image in images if image.asset_id is not None]
    assets = {asset.id: asset for asset in asset_rows.of_ids(c, project_id, ids)}
    kept = tuple((image, assets[image.asset_id]) for image in images if image.asset_id in assets)
    attempts = reversed(attempt_rows.of_job(c, project_id, job.id))
    states = tuple(asset for attempt in attempts for asset in reversed(_states(c, attempt)))
    return _TrainedOn(character, version, dataset, job.request["params"], kept, states)


def _states(c: Connection, attempt: Attempt) -> list[Asset]:
    """The saved states that an attempt announced, oldest first."""
    return [asset for asset in asset_rows.of_attempt(c, attempt.id) if asset.kind == "state"]


def _read_lora(c: Connection, project_id: str, character_id: str, number: int) -> tuple[Character, Version, Asset]:
    character = character_of(c, project_id, character_id)
    version = version_for_use(c, character, number or None)
    asset = asset_rows.get(c, project_id, version.lora_asset_id or "")
    if asset is None:
        raise NotFound(f"the LoRA of {character_id} version {version.number} is gone")
    return character, version, asset
