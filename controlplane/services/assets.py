"""Assets: tickets for files that pods store, the check that they really did, and the list that people see."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection

from controlplane.db import assets as asset_rows
from controlplane.db import characters as character_rows
from controlplane.db import held as held_rows
from controlplane.db import pods as pod_rows
from controlplane.db.assets import Maker
from controlplane.db.database import Database
from controlplane.domain.assets import (
    EXTENSIONS,
    STATE_MEDIA_TYPE,
    THUMBNAIL_MEDIA_TYPE,
    Asset,
    AssetKind,
    output_key,
    thumbnail_key,
    training_key,
)
from controlplane.domain.content import checked_rating
from controlplane.domain.ids import new_id
from controlplane.domain.jobs import Job
from controlplane.domain.pages import Page, Position, checked_limit, decode, page_of
from controlplane.domain.pods import Pod
from controlplane.errors import (
    Conflict,
    NotFound,
    PayloadTooLarge,
    StaleAttempt,
    StaleClaim,
    Unauthorized,
    Unprocessable,
)
from controlplane.ports import BlobInfo, BlobStore, Clock
from controlplane.services.arrivals import Arrivals, Ask, nobody
from controlplane.services.outputs import reported
from controlplane.services.pictures import UnreadablePicture
from controlplane.services.thumbnails import is_its_own, look_at
from controlplane.settings import Settings

# A LoRA of SDXL at rank 32 in full precision with its optimiser has 1 GB; no person uploads a state.
MAX_STATE_BYTES = 4 * 2**30
SWEEP_AT_ONCE = 200
LOOKS_AT_ONCE = 4
"""Decoding is work for a core each; more at a time would only hold up requests."""

_Who = Callable[[Connection], tuple[str, str]]
"""Which pod asks: its project and id."""


class Assets:
    """The assets service."""

    def __init__(self, db: Database, blobs: BlobStore, clock: Clock, settings: Settings) -> None:
        self._db = db
        self._blobs = blobs
        self._clock = clock
        self._settings = settings
        self._arrivals = Arrivals(db, blobs, settings.stall_seconds)
        self._looking = asyncio.Semaphore(LOOKS_AT_ONCE)

    async def ticket_for_key(self, key: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """``ticket`` for the pod that owns this key, which is looked up in the same transaction. Unauthorized."""
        return await self._ticket(partial(_owner, hashlib.sha256(key.encode()).hexdigest()), body)

    async def ticket(self, pod: Pod, body: Mapping[str, Any]) -> dict[str, Any]:
        """``{asset_id, url, upload: {method, url, headers}}`` for one file of a job's current attempt.

        ``body`` holds prompt_id, name, media_type, bytes, sha256, kind (output|sample|checkpoint|state|lora), index,
        and width, height, duration, fps, frames, upload where known. The same file, or the same ``upload``, again gets
        the same ticket. StaleAttempt where the attempt is not this pod's and current.
        """
        return await self._ticket(lambda c: (pod.project_id, pod.id), body)

    async def _ticket(self, pod: _Who, body: Mapping[str, Any]) -> dict[str, Any]:
        limit = MAX_STATE_BYTES if body["kind"] == "state" else self._settings.max_upload_bytes
        if body["bytes"] > limit:
            raise PayloadTooLarge(f"the file has {body['bytes']:,} bytes, at most {limit:,} are taken")
        asset = await self._db.write_fenced(self._announced, pod, body)
        self._arrivals.announce(asset)
        url, headers = self._blobs.signed_put(
            asset.key, asset.media_type, asset.bytes, self._settings.upload_url_seconds
        )
        upload = {"method": "PUT", "url": url, "headers": headers}
        is_public, seconds = asset.is_public, self._settings.file_url_seconds
        shown = self._blobs.public_url(asset.key) if is_public else self._blobs.signed_get_url(asset.key, seconds)
        return {"asset_id": asset.id, "url": shown, "upload": upload}

    def stored(self, info: BlobInfo) -> None:
        """A file came in through this process: whoever waits for it need not ask the store."""
        self._arrivals.store(info)

    async def verify(self, job: Job, outputs: Mapping[str, Any], ask: Ask = nobody) -> Sequence[str]:
        """What is wrong with the files that an attempt reported, in words; nothing where every file is in the store.

        Waits for those that were only promised, for as long as they move; ``ask`` asks the pod about them. Pictures
        are decoded here and get their thumbnails and true sizes, before the transaction that takes them.
        """
        named = reported(job, outputs)
        if not named:
            return ["the pod finished without naming any stored file"]
        gathered = await self._arrivals.gather(job, named, ask)
        if gathered.problems:
            return gathered.problems
        wanted = {one.asset_id or one.upload for one in named}
        known = {name for asset in gathered.announced for name in (asset.id, asset.upload)}
        problems = [f"the pod named {name}, which is no file of this attempt" for name in wanted if name not in known]
        looks = [self._look(asset, gathered.infos.get(asset.key)) for asset in gathered.announced]
        seen: dict[str, Mapping[str, Any]] = {}
        for asset, (problem, values) in zip(gathered.announced, await asyncio.gather(*looks), strict=True):
            if problem and wanted & {asset.id, asset.upload}:
                problems.append(problem)
            elif problem and asset.upload is None:
                # A sample that was announced and never arrived: nobody's result, and no reason to fail. What was only
                # promised may arrive yet, and is swept with its row once its link has expired.
                seen[asset.id] = {"status": "deleted"}
            elif values:
                seen[asset.id] = values
        if seen:
            await self._db.write_fenced(_note_looks, job, seen)
        return problems

    async def list(
        self,
        project_id: str,
        *,
        character_id: str | None = None,
        job_id: str | None = None,
        kind: str | None = None,
        favourite: bool | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Asset]:
        """Stored assets, newest first; pictures and videos unless a kind is named."""
        given = {"character_id": character_id, "job_id": job_id, "kind": kind, "favourite": favourite}
        filters = {name: value for name, value in given.items() if value is not None}
        size, after = checked_limit(limit), decode(cursor)
        rows = await self._db.read(asset_rows.page, project_id, filters, after, size + 1)
        return page_of(rows, size, [Position(row.created_at, row.id) for row in rows])

    async def get(self, project_id: str, asset_id: str) -> Asset:
        """One asset; NotFound where there is none."""
        return await self._db.read(_get, project_id, asset_id)

    async def patch(self, project_id: str, asset_id: str, change: Mapping[str, Any]) -> Asset:
        """Set ``favourite``, ``rating``, ``name`` or ``metadata``; None and absent fields stay as they are."""
        values = {name: value for name, value in change.items() if value is not None}
        unknown = set(values) - {"favourite", "rating", "name", "metadata"}
        if unknown:
            errors = [{"pointer": f"/{name}", "detail": "cannot be changed"} for name in sorted(unknown)]
            raise Unprocessable("these fields of an asset cannot be changed", errors=errors)
        if "rating" in values:
            values["rating"] = checked_rating(values["rating"])

        def write(c: Connection) -> Asset:
            _get(c, project_id, asset_id)
            if values:
                asset_rows.change(c, project_id, asset_id, values)
            return _get(c, project_id, asset_id)

        return await self._db.write(write)

    async def delete(self, project_id: str, asset_id: str) -> None:
        """Delete an asset and its file for good. Conflict for what a version needs, NotFound where there is none."""
        asset = await self._db.write(_delete, project_id, asset_id)
        await purge(self._db, self._blobs, [asset])

    async def sweep(self) -> int:
        """Delete what losing attempts, cancelled jobs and interrupted deletions left behind; says how many files."""
        before = self._clock.now() - self._settings.asset_grace_seconds
        await self._db.write(asset_rows.abandon_pending, before)
        assets = await self._db.read(asset_rows.deleted, SWEEP_AT_ONCE)
        await purge(self._db, self._blobs, assets)
        return len(assets)

    def _announced(self, c: Connection, pod: _Who, body: Mapping[str, Any]) -> Asset:
        maker = _current(c, *pod(c), body["prompt_id"])
        kind = _kind_of(body["kind"], body["media_type"])
        announced = asset_rows.of_attempt(c, maker.attempt_id)
        again = _promised(announced, body)
        if again is not None:
            return again
        known = {asset.position: asset for asset in announced if asset.kind == kind}
        position = int(body["index"])
        # Two saving nodes of one graph both count from 0; their files are told apart by the next free number.
        while position in known:
            if known[position].sha256 == body["sha256"] and body.get("upload") is None:
                return known[position]
            position += 1
        asset = _pending(body, maker, kind, position, self._clock.now())
        asset_rows.insert_assets(c, [asset])
        if kind == "state":
            # Only the newest is gone on from; the one before it stays until this one is in the store.
            older = [known[before].id for before in sorted(known)[:-1]]
            asset_rows.mark_deleted(c, maker.project_id, older)
        return asset

    async def _look(self, asset: Asset, info: BlobInfo | None) -> tuple[str, Mapping[str, Any]]:
        """What is wrong with a stored file, in words, and what its row does not say of it yet."""
        info = info or await self._blobs.head(asset.key)
        if info is None:
            return f"{asset.key} was announced and never stored", {}
        if info.bytes != asset.bytes:
            return f"{asset.key} has {info.bytes} bytes instead of {asset.bytes}", {}
        if info.sha256 is not None and info.sha256 != asset.sha256:
            return f"{asset.key} has another sha256 than was announced", {}
        if not asset.media_type.startswith(("image/", "video/")):
            return "", {}
        async with self._looking:
            try:
                look = await asyncio.to_thread(look_at, await self._blobs.get(asset.key), asset.media_type)
            except UnreadablePicture as error:
                return f"{asset.key}: {error}", {}
        if look is None:
            return "", {}
        key = asset.key
        if look.thumbnail is not None:
            key = thumbnail_key(asset.key)
            await self._blobs.put(key, look.thumbnail, THUMBNAIL_MEDIA_TYPE)
        found = {"thumbnail_key": key, "width": look.width, "height": look.height}
        return "", {name: value for name, value in found.items() if getattr(asset, name) != value}


async def purge(db: Database, blobs: BlobStore, assets: Sequence[Asset]) -> None:
    """Delete the blobs of assets marked as deleted, then their rows; after a crash in between a sweep goes on."""
    for asset in assets:
        await blobs.delete(asset.key)
        # The derived key too: a crash may have come between storing a thumbnail and noting it.
        await blobs.delete(thumbnail_key(asset.key))
    await db.write(asset_rows.remove, [asset.id for asset in assets])


def _get(c: Connection, project_id: str, asset_id: str) -> Asset:
    asset = asset_rows.get(c, project_id, asset_id)
    if asset is None:
        raise NotFound(f"There is no asset {asset_id}.")
    return asset


def _delete(c: Connection, project_id: str, asset_id: str) -> Asset:
    asset = _get(c, project_id, asset_id)
    if asset.status == "pending":
        raise Conflict(f"{asset_id} is still being made; cancel its job instead.")
    if asset.kind in ("lora", "dataset"):
        raise Conflict(f"{asset_id} belongs to a version of {asset.character_id}; it goes when the character goes.")
    asset_rows.mark_deleted(c, project_id, [asset_id])
    if asset.character_id is not None:
        character_rows.forget_cover(c, project_id, asset.character_id, asset_id)
    return asset


def _owner(key_hash: str, c: Connection) -> tuple[str, str]:
    owner = pod_rows.owner_of_key(c, key_hash)
    if owner is None:
        raise Unauthorized("The pod key is not known here; register again.")
    return owner


def _current(c: Connection, project_id: str, pod_id: str, prompt_id: str) -> Maker:
    maker = asset_rows.maker(c, project_id, pod_id, prompt_id)
    if maker is None:
        raise StaleAttempt(f"{prompt_id} is no attempt of this pod")
    if not maker.is_current:
        raise StaleAttempt(f"{prompt_id} is not the current attempt of its job any more")
    return maker


def _note_looks(c: Connection, job: Job, seen: Mapping[str, Mapping[str, Any]]) -> None:
    if held_rows.standing(c, job) is None:
        # What was looked at may be another attempt's, whose files are still on their way.
        raise StaleClaim(f"Job {job.id} is no longer held by claim {job.claim_no}.")
    for asset_id, values in seen.items():
        asset_rows.change(c, job.project_id, asset_id, values)


def _promised(announced: Sequence[Asset], body: Mapping[str, Any]) -> Asset | None:
    """The file of an attempt that was announced under the same reference before. Conflict where it was another one."""
    upload = body.get("upload")
    known = next((asset for asset in announced if upload is not None and asset.upload == upload), None)
    if known is not None and (known.sha256, known.bytes) != (body["sha256"], body["bytes"]):
        raise Conflict(f"{upload} was announced as another file before.")
    return known


def _thumbnail_of(key: str, kind: AssetKind, body: Mapping[str, Any]) -> str | None:
    """Where the thumbnail of a picture will be, where its size tells; that is checked once the picture is there."""
    width, height = body.get("width"), body.get("height")
    if kind not in ("image", "sample") or not width or not height:
        return None
    return key if is_its_own(width, height) else thumbnail_key(key)


def _kind_of(kind: str, media_type: str) -> AssetKind:
    family = media_type.split("/")[0]
    if media_type in EXTENSIONS:
        if kind == "output" and family in ("image", "video"):
            return "image" if family == "image" else "video"
        if kind == "sample" and family == "image":
            return "sample"
        if kind == "state" and media_type == STATE_MEDIA_TYPE:
            return "state"
        if kind in ("lora", "checkpoint") and family == "application" and media_type != STATE_MEDIA_TYPE:
            return "lora" if kind == "lora" else "checkpoint"
    detail = f"{media_type} is not stored here as {kind}"
    raise Unprocessable(detail, errors=[{"pointer": "/media_type", "detail": detail}])


def _pending(body: Mapping[str, Any], maker: Maker, kind: AssetKind, position: int, now: float) -> Asset:
    extension, number = EXTENSIONS[body["media_type"]], maker.attempt_number
    project_id, character_id = maker.project_id, maker.character_id
    if kind in ("lora", "sample", "checkpoint", "state") and character_id is not None:
        key = training_key(project_id, character_id, kind, maker.job_id, number, position, extension)
    else:
        key = output_key(project_id, character_id, maker.job_id, number, position, extension, maker.created_at)
    return Asset(
        id=new_id("asset"),
        project_id=project_id,
        kind=kind,
        status="pending",
        key=key,
        media_type=body["media_type"],
        bytes=body["bytes"],
        sha256=body["sha256"],
        created_at=now,
        character_id=character_id,
        version=maker.version,
        job_id=maker.job_id,
        attempt_id=maker.attempt_id,
        position=position,
        name=str(body.get("name") or ""),
        seed=maker.seed,
        rating=maker.rating,
        metadata=maker.metadata,
        width=body.get("width"),
        height=body.get("height"),
        duration=body.get("duration"),
        fps=body.get("fps"),
        frames=body.get("frames"),
        thumbnail_key=_thumbnail_of(key, kind, body),
        upload=body.get("upload"),
    )
