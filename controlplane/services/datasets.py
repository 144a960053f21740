"""Datasets: from judged uploads to stored images, captions and rows, and a dataset used once more."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from sqlalchemy import Connection

from controlplane.db import assets as asset_rows
from controlplane.db import characters as character_rows
from controlplane.db import datasets as dataset_rows
from controlplane.db.database import Database
from controlplane.domain.assets import Asset, dataset_key
from controlplane.domain.characters import Character
from controlplane.domain.datasets import Dataset, DatasetImage, DatasetReport, ImageVerdict, dataset_digest
from controlplane.domain.ids import new_id
from controlplane.domain.prompts import caption_of
from controlplane.errors import Conflict, DatabaseAway, Unprocessable
from controlplane.ports import BlobStore
from controlplane.services.intake import Judged, advice, check_usable, size_fault
from controlplane.settings import Settings
from controlplane.workflows.models import BaseModel

MAX_CAPTION_CHARS = 1000


@dataclass(frozen=True)
class Upload:
    """One file of a request, streamed to disk by the caller, who also deletes it afterwards."""

    name: str
    path: Path
    media_type: str = ""


@dataclass(frozen=True)
class Material:
    """A dataset with its rows; ``assets`` are the images just stored; ``is_new`` where no row is written yet."""

    dataset: Dataset
    images: tuple[DatasetImage, ...]
    assets: tuple[Asset, ...] = ()
    is_new: bool = True

    def insert(self, c: Connection) -> None:
        """Write what is new."""
        if self.is_new:
            dataset_rows.insert_dataset(c, self.dataset, self.images)
            asset_rows.confirm(c, [asset.id for asset in self.assets])


def sidecars(uploads: Sequence[Upload]) -> tuple[list[Upload], dict[str, str]]:
    """The uploads without ``NAME.txt`` files that lie beside a picture NAME, and those as captions by picture name."""
    texts = {_stem(upload.name): upload for upload in uploads if upload.name.lower().endswith(".txt")}
    pictures = [upload for upload in uploads if not upload.name.lower().endswith(".txt")]
    captions: dict[str, str] = {}
    for picture in pictures:
        beside = texts.get(_stem(picture.name))
        if beside is not None and beside.path.stat().st_size <= 4 * MAX_CAPTION_CHARS:
            captions[picture.name] = beside.path.read_text("utf-8", errors="replace")[:MAX_CAPTION_CHARS]
    used = {_stem(name) for name in captions}
    lost = [upload for stem, upload in texts.items() if stem not in used]
    return [*pictures, *lost], captions


def check_captions(captions: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise Unprocessable where a caption names no image or is too long."""
    errors = []
    for name, caption in captions.items():
        pointer = f"/captions/{name.replace('~', '~0').replace('/', '~1')}"
        if name not in names:
            errors.append({"pointer": pointer, "detail": "no image has this file name"})
        elif len(caption) > MAX_CAPTION_CHARS:
            errors.append({"pointer": pointer, "detail": f"a caption has at most {MAX_CAPTION_CHARS} characters"})
    if errors:
        raise Unprocessable("these captions fit no image or are too long", errors=errors)


async def store(
    db: Database, blobs: BlobStore, character: Character, judged: Judged, captions: Mapping[str, str], now: float
) -> Material:
    """Put the usable images into the store; the rows that go with them are returned, not written.

    Only their assets are, as pending and before the images: what a crash leaves in the store is known to the sweep.
    """
    dataset_id = new_id("dataset")
    assets: list[Asset] = []
    images: list[DatasetImage] = []
    for verdict in judged.report.images:
        asset = _asset_of(character, dataset_id, verdict, now) if verdict.is_usable else None
        if asset is not None:
            assets.append(asset)
        caption = caption_of(captions.get(verdict.name), character)
        images.append(_image_of(character.project_id, dataset_id, verdict, asset, caption))
    await db.write(announce_dataset, assets)
    for asset in assets:
        data = await asyncio.to_thread(judged.pngs[asset.position].read_bytes)
        await blobs.put(asset.key, data, asset.media_type)
    dataset = Dataset(dataset_id, character.project_id, character.id, _digest(images), now)
    return Material(dataset, tuple(images), tuple(assets))


def announce_dataset(c: Connection, assets: Sequence[Asset]) -> None:
    """Say which images are about to be stored."""
    asset_rows.insert_assets(c, [replace(asset, status="pending") for asset in assets])


async def discard(db: Database, blobs: BlobStore, material: Material | None) -> None:
    """Delete the stored images of material whose rows were never written, at the latest by the sweep."""
    assets = material.assets if material is not None else ()
    for asset in assets:
        await blobs.delete(asset.key)
    if assets:
        with contextlib.suppress(DatabaseAway):
            await db.write(asset_rows.drop_pending, [asset.id for asset in assets])


def again(
    c: Connection, character: Character, captions: Mapping[str, str], base: BaseModel, settings: Settings, now: float
) -> Material:
    """The last dataset of a character; a copy of its rows where captions change or images are too small for the base.

    Raises Conflict where there is none, DatasetRejected where too few of its images are large enough.
    """
    versions = character_rows.versions(c, character.project_id, [character.id])
    dataset = dataset_rows.get(c, character.project_id, versions[-1].dataset_id) if versions else None
    if dataset is None:
        raise Conflict(f"{character.id} has no dataset; send images")
    images = dataset_rows.images(c, character.project_id, dataset.id)
    judged = [_judged_again(image, base) for image in images]
    if not captions and judged == images:
        return Material(dataset, tuple(images), is_new=False)
    check_captions(captions, [image.name for image in images])
    if judged != images:
        check_usable(_report(judged), settings)
    dataset_id = new_id("dataset")
    copies = [
        replace(
            image,
            id=new_id("image"),
            dataset_id=dataset_id,
            caption=caption_of(captions[image.name], character) if image.name in captions else image.caption,
        )
        for image in judged
    ]
    return Material(Dataset(dataset_id, character.project_id, character.id, _digest(copies), now), tuple(copies))


def report_of(c: Connection, project_id: str, dataset_id: str) -> DatasetReport:
    """The verdicts on a kept dataset."""
    return _report(dataset_rows.images(c, project_id, dataset_id))


def digests(uploads: Sequence[Upload]) -> list[tuple[str, str]]:
    """Name and sha256 of every upload: what a repeated request is compared by."""
    found = []
    for upload in uploads:
        with upload.path.open("rb") as file:
            found.append((upload.name, hashlib.file_digest(file, "sha256").hexdigest()))
    return found


def _judged_again(image: DatasetImage, base: BaseModel) -> DatasetImage:
    """The image, rejected where it was kept for another base and is too small for this one."""
    size = (image.width or 0, image.height or 0)
    too_small = size_fault(base, size, size) if image.asset_id is not None else None
    if too_small is None:
        return image
    return replace(image, verdict="reject", reasons=(too_small,), asset_id=None, caption="")


def _report(images: Sequence[DatasetImage]) -> DatasetReport:
    verdicts = tuple(
        ImageVerdict(image.position, image.name, image.verdict, image.reasons, image.width, image.height, image.sha256)
        for image in images
    )
    return DatasetReport(verdicts, advice(verdicts))


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem


def _digest(images: Sequence[DatasetImage]) -> str:
    return dataset_digest((image.sha256 or "", image.caption) for image in images if image.asset_id)


def _asset_of(character: Character, dataset_id: str, verdict: ImageVerdict, now: float) -> Asset:
    return Asset(
        id=new_id("asset"),
        project_id=character.project_id,
        kind="dataset",
        status="stored",
        key=dataset_key(character.project_id, character.id, dataset_id, verdict.position),
        media_type="image/png",
        bytes=verdict.bytes or 0,
        sha256=verdict.sha256 or "",
        created_at=now,
        character_id=character.id,
        position=verdict.position,
        name=verdict.name,
        width=verdict.width,
        height=verdict.height,
    )


def _image_of(
    project_id: str, dataset_id: str, verdict: ImageVerdict, asset: Asset | None, caption: str
) -> DatasetImage:
    return DatasetImage(
        id=new_id("image"),
        project_id=project_id,
        dataset_id=dataset_id,
        position=verdict.position,
        name=verdict.name,
        verdict=verdict.verdict,
        reasons=verdict.reasons,
        caption=caption if asset is not None else "",
        asset_id=asset.id if asset is not None else None,
        width=verdict.width,
        height=verdict.height,
        sha256=verdict.sha256,
    )
