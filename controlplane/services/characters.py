"""Characters: making one from reference images, listing, changing, training again and choosing its version."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from controlplane.db import assets as asset_rows
from controlplane.db import characters as character_rows
from controlplane.db import datasets as dataset_rows
from controlplane.db import jobs as job_rows
from controlplane.db.database import Database
from controlplane.domain import events
from controlplane.domain.assets import Asset
from controlplane.domain.characters import (
    Character,
    Consent,
    Subject,
    checked_class_word,
    checked_description,
    checked_name,
    free_slug,
)
from controlplane.domain.content import denotes_minor
from controlplane.domain.datasets import Dataset, DatasetReport
from controlplane.domain.jobs import Job
from controlplane.domain.pages import Page, Position, checked_limit, decode, page_of
from controlplane.domain.triggers import checked_trigger, made_trigger
from controlplane.errors import (
    CharacterNotReady,
    CommitUnknown,
    Conflict,
    ContentRefused,
    DatabaseAway,
    NotFound,
    Unprocessable,
)
from controlplane.ports import BlobStore, Clock
from controlplane.services import datasets, intake
from controlplane.services.assets import purge
from controlplane.services.datasets import Material, Upload
from controlplane.services.events import Hints, append
from controlplane.services.idempotency import Claim
from controlplane.services.jobs import Jobs, checked_deadline
from controlplane.services.pod_check import check_pods
from controlplane.services.summaries import CharacterSummary, character_of, summaries_of, summary_of
from controlplane.services.training import Training, Wanted
from controlplane.settings import Settings
from controlplane.workflows.catalog import Catalog

__all__ = ["CharacterPatch", "CharacterSummary", "Characters", "Created", "NewCharacter", "TrainAgain", "Upload"]

INTAKES_AT_ONCE = 2


@dataclass(frozen=True)
class NewCharacter:
    """The fields of ``POST /characters`` beside the images; None means the default. ``captions`` are by file name."""

    name: str
    class_word: str | None = None
    trigger_word: str | None = None
    description: str = ""
    base_model: str | None = None
    recipe: str | None = None
    priority: int | None = None
    deadline_seconds: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    subject: str = "fictional"
    consent: Consent | None = None


@dataclass(frozen=True)
class TrainAgain:
    """The fields of ``POST /characters/{id}/versions``: without images the last dataset is trained again."""

    recipe: str | None = None
    base_model: str | None = None
    captions: Mapping[str, str] = field(default_factory=dict)
    priority: int | None = None
    deadline_seconds: float | None = None


@dataclass(frozen=True)
class CharacterPatch:
    """The fields of ``PATCH /characters/{id}``; None leaves a field as it is, ``metadata`` is replaced whole."""

    name: str | None = None
    description: str | None = None
    metadata: Mapping[str, Any] | None = None
    cover_asset_id: str | None = None


@dataclass(frozen=True)
class Created:
    """What an accepted training leads to: the character, its job, and the verdicts on the images."""

    character: CharacterSummary
    job: Job
    report: DatasetReport


class Characters:
    """The characters service."""

    def __init__(
        self,
        db: Database,
        blobs: BlobStore,
        clock: Clock,
        settings: Settings,
        catalog: Catalog,
        jobs: Jobs,
        training: Training,
        hints: Hints,
    ) -> None:
        self._db = db
        self._blobs = blobs
        self._clock = clock
        self._settings = settings
        self._catalog = catalog
        self._jobs = jobs
        self._training = training
        self._hints = hints
        # A picture of 50 megapixels takes hundreds of MB while it is opened.
        self._intakes = asyncio.Semaphore(INTAKES_AT_ONCE)

    async def create(
        self, project_id: str, new: NewCharacter, uploads: Sequence[Upload], once: Claim | None = None
    ) -> Created:
        """Judge the images, keep the good ones, and queue the training of version 1.

        ``once`` is the request's claim where it has an Idempotency-Key. Raises Unprocessable, DatasetRejected, NoPods,
        IdempotencyMismatch; then nothing is left behind. AnsweredBefore for a repeated request.
        """
        draft = self._draft(project_id, new)
        await self._db.read(_named, draft, new.trigger_word)
        first = await self._db.read(self._first, once)
        if first is not None:
            return first
        with tempfile.TemporaryDirectory(prefix="troupe-intake-") as folder:
            judged, captions = await self._judged(uploads, new.captions, Path(folder), draft.base_model)
            while True:
                character = await self._db.read(_named, draft, new.trigger_word)
                material = await datasets.store(self._db, self._blobs, character, judged, captions, draft.created_at)
                try:
                    return await self._queued(self._insert, character, material, _wanted(new), once)
                except _NameTaken:
                    # Another request was quicker with this name: the next free one is chosen.
                    continue

    async def train_again(
        self,
        project_id: str,
        character_id: str,
        body: TrainAgain,
        once: Claim | None = None,
        uploads: Sequence[Upload] = (),
    ) -> Created:
        """Queue the training of a further version: on new images where there are some, else on the last dataset.

        Raises CharacterNotFound, Unprocessable, DatasetRejected, NoPods, IdempotencyMismatch, AnsweredBefore.
        """
        first = await self._db.read(self._first, once)
        if first is not None:
            return first
        character = await self._db.read(character_of, project_id, character_id)
        character = replace(character, base_model=body.base_model or character.base_model)
        self._catalog.recipe(self._catalog.model(character.base_model).id, body.recipe or "")
        checked_deadline(body.deadline_seconds, 0.0, self._settings)
        material: Material | None = None
        if uploads:
            with tempfile.TemporaryDirectory(prefix="troupe-intake-") as folder:
                judged, captions = await self._judged(uploads, body.captions, Path(folder), character.base_model)
                now = self._clock.now()
                material = await datasets.store(self._db, self._blobs, character, judged, captions, now)
        return await self._queued(self._insert_again, character, material, body, once)

    async def list(
        self, project_id: str, *, limit: int | None = None, cursor: str | None = None
    ) -> Page[CharacterSummary]:
        """Characters, newest first."""
        size, after = checked_limit(limit), decode(cursor)

        def read(c: Connection) -> Sequence[CharacterSummary]:
            return summaries_of(c, project_id, character_rows.page(c, project_id, after, size + 1))

        rows = await self._db.read(read)
        return page_of(rows, size, [Position(row.character.created_at, row.character.id) for row in rows])

    async def get(self, project_id: str, character_id: str) -> CharacterSummary:
        """One character; CharacterNotFound."""
        return await self._db.read(summary_of, project_id, character_id)

    async def patch(self, project_id: str, character_id: str, patch: CharacterPatch) -> CharacterSummary:
        """Change what people see of a character; id and trigger stay. CharacterNotFound, Unprocessable."""
        return await self._db.write(_patch, project_id, character_id, patch, self._clock.now())

    async def delete(self, project_id: str, character_id: str) -> None:
        """Delete a character with its versions, datasets, pictures and files for good.

        CharacterNotFound; Conflict while one of its jobs is not over.
        """
        doomed = await self._db.write(_delete, project_id, character_id)
        await purge(self._db, self._blobs, doomed)

    async def activate(self, project_id: str, character_id: str, number: int) -> CharacterSummary:
        """Make a version the one that is used. CharacterNotFound, NotFound, CharacterNotReady."""
        summary = await self._db.write(_activate, project_id, character_id, number, self._clock.now())
        self._hints.wake(Hints.JOBS, Hints.EVENTS)
        return summary

    def _draft(self, project_id: str, new: NewCharacter) -> Character:
        """The character without id and trigger. Raises Unprocessable for the first field that is not acceptable."""
        now = self._clock.now()
        subject, consent = _checked_subject(new, now)
        base_model = new.base_model or self._catalog.default_model(self._settings.default_base_model).id
        self._catalog.recipe(self._catalog.model(base_model).id, new.recipe or "")
        checked_deadline(new.deadline_seconds, 0.0, self._settings)
        return Character(
            project_id=project_id,
            id="",
            name=checked_name(new.name),
            class_word=checked_class_word(new.class_word),
            trigger_word="",
            base_model=base_model,
            created_at=now,
            updated_at=now,
            description=checked_description(new.description),
            subject=subject,
            consent=consent,
            metadata=dict(new.metadata),
        )

    async def _judged(
        self, uploads: Sequence[Upload], captions: Mapping[str, str], folder: Path, base_model: str
    ) -> tuple[intake.Judged, Mapping[str, str]]:
        pictures, beside = await asyncio.to_thread(datasets.sidecars, uploads)
        intake.check_count(len(pictures), self._settings)
        datasets.check_captions(captions, [picture.name for picture in pictures])
        files = [intake.SourceFile(picture.name, picture.path) for picture in pictures]
        async with self._intakes:
            judged = await intake.judge(files, self._settings, folder, self._catalog.model(base_model))
        return judged, {**beside, **captions}

    async def _queued(self, insert: Any, character: Character, material: Material | None, *rest: Any) -> Created:
        """Run one of the two inserts; where nothing came of it, no stored image stays without its row."""
        try:
            job_id = await self._db.write(insert, character, material, *rest)
        except _Repeated as repeated:
            await datasets.discard(self._db, self._blobs, material)
            job_id = repeated.job_id
        except CommitUnknown:
            found = await self._looked_after(character, material)
            if found is None:
                raise
            job_id = found
        except Exception:
            await datasets.discard(self._db, self._blobs, material)
            raise
        self._hints.wake(Hints.JOBS, Hints.EVENTS)
        return await self._db.read(_created, character.project_id, job_id)

    async def _looked_after(self, character: Character, material: Material | None) -> str | None:
        """The job where the rows turn out to be stored, None where not; the images stay where nobody can say it."""
        if material is None:
            return None
        try:
            job_id = await self._db.write(_job_of, character, material)
        except DatabaseAway:
            return None
        if job_id is None:
            await datasets.discard(self._db, self._blobs, material)
        return job_id

    def _insert(
        self, c: Connection, character: Character, material: Material, wanted: Wanted, once: Claim | None
    ) -> str:
        """Everything of a new character in one transaction; returns the job's id. Raises _Repeated, _NameTaken."""
        _check_first(c, once)
        character_rows.lock_names(c, character.project_id)
        is_taken = character_rows.is_taken(c, character.project_id, character.id)
        if is_taken or character.trigger_word in character_rows.triggers(c, character.project_id):
            raise _NameTaken
        character_rows.insert_character(c, character)
        told = {"character_id": character.id, "name": character.name}
        append(c, character.project_id, events.CHARACTER_CREATED, told, None, character.id, character.created_at)
        material.insert(c)
        return self._queue(c, character, material.dataset, wanted, once)

    def _insert_again(
        self, c: Connection, character: Character, material: Material | None, body: TrainAgain, once: Claim | None
    ) -> str:
        _check_first(c, once)
        character_rows.keep(c, character.project_id, character.id)
        character_of(c, character.project_id, character.id)
        base = self._catalog.model(character.base_model)
        used = material or datasets.again(c, character, body.captions, base, self._settings, self._clock.now())
        used.insert(c)
        return self._queue(c, character, used.dataset, _wanted(body), once)

    def _queue(self, c: Connection, character: Character, dataset: Dataset, wanted: Wanted, once: Claim | None) -> str:
        check_pods(c, character.project_id)
        now = self._clock.now()
        number = character_rows.last_number(c, character.project_id, character.id) + 1
        plan = self._training.plan(character, dataset, number, wanted, now)
        character_rows.insert_version(c, plan.version)
        job = self._jobs.insert(c, plan.job)
        if once is not None:
            once.keep(c, {"job_id": job.id}, now)
        return job.id

    @staticmethod
    def _first(c: Connection, once: Claim | None) -> Created | None:
        answer = once.first_answer(c) if once is not None else None
        return _created(c, once.project_id, answer["job_id"]) if once is not None and answer is not None else None


class _NameTaken(Exception):
    """Somebody else committed the same id or trigger between our choosing and our writing."""


class _Repeated(Exception):
    """The same request with the same key was committed while we judged its images."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(job_id)


def _wanted(body: NewCharacter | TrainAgain) -> Wanted:
    return Wanted(body.recipe, body.priority, body.deadline_seconds)


def _check_first(c: Connection, once: Claim | None) -> None:
    answer = once.first_answer(c) if once is not None else None
    if answer is not None:
        raise _Repeated(answer["job_id"])


def _job_of(c: Connection, character: Character, material: Material) -> str | None:
    """The training on new material, None where it was never stored; waits for the transaction that may store it."""
    character_rows.lock_names(c, character.project_id)
    character_rows.lock(c, character.project_id, character.id)
    versions = character_rows.versions(c, character.project_id, [character.id])
    return next((one.job_id for one in versions if one.dataset_id == material.dataset.id), None)


def _created(c: Connection, project_id: str, job_id: str) -> Created:
    job = job_rows.get(c, project_id, job_id)
    version = character_rows.version_of_job(c, project_id, job_id)
    if job is None or version is None:
        raise NotFound("what the first request with this Idempotency-Key made has been deleted since")
    report = datasets.report_of(c, project_id, version.dataset_id)
    return Created(summary_of(c, project_id, version.character_id), job, report)


def _checked_subject(new: NewCharacter, now: float) -> tuple[Subject, Consent | None]:
    if new.subject == "fictional":
        return "fictional", replace(new.consent, attested_at=now) if new.consent else None
    if new.subject != "real":
        detail = "subject is fictional or real"
        raise Unprocessable(detail, errors=[{"pointer": "/subject", "detail": detail}])
    consent = new.consent
    if consent is None or not consent.attested_by.strip() or not consent.text_version.strip():
        detail = "a real person needs consent: {attested_by, text_version} of who vouches for it, and to which wording"
        raise Unprocessable(detail, errors=[{"pointer": "/consent", "detail": detail}])
    if any(denotes_minor(text) for text in (new.class_word or "", new.description)):
        detail = "characters of real minors are not made here, whoever consents"
        raise ContentRefused(detail, errors=[{"pointer": "/subject", "detail": detail}])
    return "real", replace(consent, attested_at=now)


def _named(c: Connection, draft: Character, trigger: str | None) -> Character:
    """The draft with a free id and a free trigger word. Unprocessable for a trigger that cannot be one."""
    slug = free_slug(draft.name, lambda wanted: character_rows.is_taken(c, draft.project_id, wanted))
    taken = character_rows.triggers(c, draft.project_id)
    word = checked_trigger(trigger, taken) if trigger else made_trigger(slug, taken)
    return replace(draft, id=slug, trigger_word=word)


def _patch(c: Connection, project_id: str, character_id: str, patch: CharacterPatch, now: float) -> CharacterSummary:
    character_of(c, project_id, character_id)
    values: dict[str, Any] = {}
    if patch.name is not None:
        values["name"] = checked_name(patch.name)
    if patch.description is not None:
        values["description"] = checked_description(patch.description)
    if patch.metadata is not None:
        values["metadata"] = dict(patch.metadata)
    if patch.cover_asset_id is not None:
        cover = asset_rows.get_locked(c, project_id, patch.cover_asset_id)
        if cover is None or cover.character_id != character_id or cover.kind not in ("image", "sample", "dataset"):
            detail = f"{patch.cover_asset_id} is no picture of this character"
            raise Unprocessable(detail, errors=[{"pointer": "/cover_asset_id", "detail": detail}])
        values["cover_asset_id"] = patch.cover_asset_id
    if values:
        character_rows.change(c, project_id, character_id, values, now)
    return summary_of(c, project_id, character_id)


def _delete(c: Connection, project_id: str, character_id: str) -> list[Asset]:
    character_rows.lock(c, project_id, character_id)
    character_of(c, project_id, character_id)
    unfinished = character_rows.unfinished_jobs(c, project_id, character_id)
    if unfinished:
        listed = ", ".join(unfinished)
        raise Conflict(f"{character_id} still has work in progress; cancel it first: {listed}", jobs=unfinished)
    doomed = asset_rows.mark_character_deleted(c, project_id, character_id)
    dataset_rows.remove_of(c, project_id, character_id)
    character_rows.remove(c, project_id, character_id)
    return doomed


def _activate(c: Connection, project_id: str, character_id: str, number: int, now: float) -> CharacterSummary:
    character_rows.lock(c, project_id, character_id)
    character = character_of(c, project_id, character_id)
    version = character_rows.get_version(c, project_id, character_id, number)
    if version is None:
        raise NotFound(f"{character_id} has no version {number}")
    if not version.is_usable:
        raise CharacterNotReady(f"version {number} of {character_id} cannot be used: it is {version.status}")
    if character.active_version != number:
        values = {"active_version": number, "base_model": version.base_model}
        character_rows.change(c, project_id, character_id, values, now)
        told = {"character_id": character_id, "version": number, "lora_sha256": version.lora_sha256}
        append(c, project_id, events.CHARACTER_READY, told, None, character_id, now)
    return summary_of(c, project_id, character_id)
