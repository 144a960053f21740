"""Datasets: the reference images of one version, the verdict on each, and its captions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "reject"]


@dataclass(frozen=True)
class ImageVerdict:
    """What intake found about one file. ``width`` and ``height`` are pixels after turning; ``sha256`` is of the PNG.

    ``reasons`` are sentences for people; an ``ok`` image has none.
    """

    position: int
    name: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    width: int | None = None
    height: int | None = None
    sha256: str | None = None
    bytes: int | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it may be trained on."""
        return self.verdict != "reject"


@dataclass(frozen=True)
class DatasetReport:
    """The verdicts on a whole set of images, and advice on the set."""

    images: tuple[ImageVerdict, ...]
    advice: tuple[str, ...] = ()

    @property
    def usable(self) -> tuple[ImageVerdict, ...]:
        """The images that may be trained on, in order."""
        return tuple(image for image in self.images if image.is_usable)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many images got each verdict: ``{"ok", "warn", "reject"}``."""
        verdicts = [image.verdict for image in self.images]
        return {verdict: verdicts.count(verdict) for verdict in ("ok", "warn", "reject")}


@dataclass(frozen=True)
class DatasetImage:
    """One row of a kept dataset; ``caption`` is without the trigger phrase, ``asset_id`` None where it was rejected."""

    id: str
    project_id: str
    dataset_id: str
    position: int
    name: str
    verdict: Verdict
    reasons: tuple[str, ...]
    caption: str = ""
    asset_id: str | None = None
    width: int | None = None
    height: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A kept dataset of a character; ``digest`` says what a training on it sees."""

    id: str
    project_id: str
    character_id: str
    digest: str
    created_at: float


def dataset_digest(images: Iterable[tuple[str, str]]) -> str:
    """sha256 (hex) over the sorted (image sha256, caption) pairs: the order of the files does not matter."""
    return hashlib.sha256(json.dumps(sorted(images), ensure_ascii=True).encode()).hexdigest()
