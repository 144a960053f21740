"""Intake: judges a set of reference images before any GPU is used, and writes the good ones as plain upright PNGs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from controlplane.domain.datasets import DatasetReport, ImageVerdict
from controlplane.errors import DatasetRejected
from controlplane.services.pictures import (
    KEPT_SIDE,
    Measures,
    UnreadablePicture,
    as_png,
    measure,
    open_upright,
    shrunk,
)
from controlplane.settings import Settings
from controlplane.workflows.models import BaseModel

SHARP_FROM = 40.0
"""Below this Laplacian variance a picture looks blurred: photographs in focus reach hundreds, drawings thousands."""
EMPTY_BELOW = 3.0
DARK_BELOW, BRIGHT_ABOVE = 20.0, 247.0
NARROW_FROM = 3.0
SAME_BITS, SAME_COLOUR = 12, 4.0
"""Two pictures are nearly the same within 12 of 256 gradient bits and 4 of 255 mean colour difference."""
GOOD_COUNT = 15
ODD_FROM_COUNT, ODD_FACTOR = 8, 2.5


@dataclass(frozen=True)
class SourceFile:
    """One file as it came: its name and where it lies."""

    name: str
    path: Path


@dataclass(frozen=True)
class Judged:
    """The verdicts, and where the PNG of each usable image lies, by position."""

    report: DatasetReport
    pngs: dict[int, Path]


@dataclass(frozen=True)
class _Seen:
    verdict: ImageVerdict
    measures: Measures
    pixels: str
    """sha256 of the decoded pixels: the same picture in two files or formats is still the same picture."""


async def judge(files: Sequence[SourceFile], settings: Settings, folder: Path, base: BaseModel) -> Judged:
    """Judge a set of images for a base model in a worker thread and write usable ones as PNG into ``folder``.

    Raises DatasetRejected with one reason per image where the set cannot be used: none, too many, or too few that are
    usable.
    """
    check_count(len(files), settings)
    judged = await asyncio.to_thread(judge_now, files, settings, folder, base)
    check_usable(judged.report, settings)
    return judged


def check_count(count: int, settings: Settings) -> None:
    """Raise DatasetRejected where no image came, or more than are taken, before any is opened."""
    wanted = f"send {settings.min_images} to {settings.max_images}, about 20 are best"
    if count == 0:
        raise DatasetRejected(f"no images were sent: {wanted}", errors=[_error("/images", "no images were sent")])
    if count > settings.max_images:
        detail = f"{count} images were sent, more than the {settings.max_images} that are taken"
        raise DatasetRejected(f"{detail}: {wanted}", errors=[_error("/images", detail)])


def judge_now(files: Sequence[SourceFile], settings: Settings, folder: Path, base: BaseModel) -> Judged:
    """Judge without an event loop; sets of any size, nothing is raised for bad images."""
    verdicts: list[ImageVerdict] = []
    seen: list[_Seen] = []
    pngs: dict[int, Path] = {}
    for position, file in enumerate(files):
        target = folder / f"{position:04d}.png"
        found = _judge_one(position, file, settings, target, base)
        if isinstance(found, _Seen):
            found = _compared(found, seen)
        if isinstance(found, _Seen):
            seen.append(found)
            pngs[position] = target
            verdicts.append(found.verdict)
        else:
            target.unlink(missing_ok=True)
            verdicts.append(found)
    odd = _odd_ones(seen)
    images = tuple(_warned(v, odd[v.position]) if v.position in odd else v for v in verdicts)
    return Judged(DatasetReport(images, advice(images)), pngs)


def size_fault(base: BaseModel, given: tuple[int, int], kept: tuple[int, int]) -> str | None:
    """Why a picture of this size (pixels, as given and as kept) is too small for a base model; None where it is not."""
    if min(kept) >= base.min_image_side:
        return None
    shrunk_to = "" if kept == given else f", kept as {kept[0]} x {kept[1]}"
    size = f"it is {given[0]} x {given[1]} pixels{shrunk_to}"
    return f"{size}: {base.title} needs at least {base.min_image_side} on each side"


def _judge_one(
    position: int, file: SourceFile, settings: Settings, target: Path, base: BaseModel
) -> _Seen | ImageVerdict:
    try:
        image = open_upright(file.path, settings.max_image_bytes, settings.max_image_pixels)
    except UnreadablePicture as error:
        return ImageVerdict(position, file.name, "reject", (str(error),))
    width, height = image.size
    kept = shrunk(image, KEPT_SIDE)
    too_small = size_fault(base, image.size, kept.size)
    if too_small is not None:
        return ImageVerdict(position, file.name, "reject", (too_small,), width, height)
    measures = measure(kept)
    if measures.contrast < EMPTY_BELOW:
        return ImageVerdict(position, file.name, "reject", ("it shows nothing but one colour",), width, height)
    data = as_png(kept)
    target.write_bytes(data)
    reasons = _doubts(measures, min(base.width, base.height))
    verdict = ImageVerdict(
        position=position,
        name=file.name,
        verdict="warn" if reasons else "ok",
        reasons=reasons,
        width=kept.width,
        height=kept.height,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
    )
    return _Seen(verdict, measures, hashlib.sha256(f"{kept.size}".encode() + kept.tobytes()).hexdigest())


def _doubts(measures: Measures, wanted_side: int) -> tuple[str, ...]:
    short, long = sorted((measures.width, measures.height))
    doubts = []
    if short < wanted_side:
        doubts.append(f"its shorter side has {short} pixels, the model works at {wanted_side}: it will be enlarged")
    if measures.sharpness < SHARP_FROM:
        doubts.append("it looks blurred")
    if measures.brightness < DARK_BELOW:
        doubts.append("it is very dark")
    if measures.brightness > BRIGHT_ABOVE:
        doubts.append("it is very bright")
    if long / short >= NARROW_FROM:
        doubts.append("it is a narrow strip, most of which will be cut off")
    return tuple(doubts)


def _compared(image: _Seen, seen: Sequence[_Seen]) -> _Seen | ImageVerdict:
    """Against the images before it: the same picture is rejected, nearly the same is a warning."""
    for other in seen:
        if other.pixels == image.pixels:
            reason = f"it is the same picture as {other.verdict.name}"
            verdict = image.verdict
            return ImageVerdict(verdict.position, verdict.name, "reject", (reason,), verdict.width, verdict.height)
    for other in seen:
        bits = int((other.measures.fingerprint != image.measures.fingerprint).sum())
        colour = float(np.abs(other.measures.colours - image.measures.colours).mean())
        if bits <= SAME_BITS and colour <= SAME_COLOUR:
            return replace(image, verdict=_warned(image.verdict, f"it is nearly the same as {other.verdict.name}"))
    return image


def _odd_ones(seen: Sequence[_Seen]) -> dict[int, str]:
    """Positions of images whose colours are far from all others': perhaps another character. Only ever a hint."""
    if len(seen) < ODD_FROM_COUNT:
        return {}
    colours = np.stack([image.measures.colours.ravel() for image in seen])
    middle = np.median(colours, axis=0)
    distances = np.abs(colours - middle).mean(axis=1)
    limit = ODD_FACTOR * float(np.median(distances))
    reason = "its colours are unlike the other images: is it the same character?"
    return {image.verdict.position: reason for image, distance in zip(seen, distances, strict=True) if distance > limit}


def _warned(verdict: ImageVerdict, reason: str) -> ImageVerdict:
    return replace(verdict, verdict="warn", reasons=(*verdict.reasons, reason))


def advice(images: Sequence[ImageVerdict]) -> tuple[str, ...]:
    """What would make the whole set better, in sentences."""
    usable = [image for image in images if image.is_usable]
    sentences = []
    if 0 < len(usable) < GOOD_COUNT:
        sentences.append(f"{len(usable)} usable images are few: 15 to 30 with different clothes and places work best")
    if sum("nearly the same" in reason for image in usable for reason in image.reasons) * 4 > len(usable) > 0:
        sentences.append("many images are nearly the same: the character will look alike in every picture")
    return tuple(sentences)


def check_usable(report: DatasetReport, settings: Settings) -> None:
    """Raise DatasetRejected, with one reason per image, where too few images of a set can be used."""
    usable = len(report.usable)
    if usable >= settings.min_images:
        return
    errors = [
        _error(f"/images/{image.position}", f"{image.name}: {'; '.join(image.reasons)}")
        for image in report.images
        if not image.is_usable
    ]
    detail = f"{usable} of {len(report.images)} images can be used, at least {settings.min_images} are needed"
    raise DatasetRejected(detail, errors=errors or [_error("/images", detail)])


def _error(pointer: str, detail: str) -> dict[str, str]:
    return {"pointer": pointer, "detail": detail}
