"""Assets: stored files, what is known of each, and the clean keys they live under."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

AssetKind = Literal["image", "video", "lora", "dataset", "sample", "checkpoint", "state"]
AssetStatus = Literal["pending", "stored"]

LORA_MEDIA_TYPE = "application/safetensors"
STATE_MEDIA_TYPE = "application/x-tar"
THUMBNAIL_MEDIA_TYPE = "image/webp"
THUMBNAIL_SIDE = 256

EXTENSIONS: Mapping[str, str] = {
    "image/png": "png",
    "image/webp": "webp",
    "image/jpeg": "jpg",
    "video/mp4": "mp4",
    "video/webm": "webm",
    LORA_MEDIA_TYPE: "safetensors",
    STATE_MEDIA_TYPE: "tar",
    "application/octet-stream": "safetensors",
}
"""Every media type that a pod may hand over, and the ending of its key."""


@dataclass(frozen=True)
class Asset:
    """One stored file. Sizes are bytes and pixels, ``duration`` seconds, times seconds since the epoch.

    ``pending`` assets were announced by a pod and are not yet somebody's result; only ``stored`` ones are listed.
    """

    id: str
    project_id: str
    kind: AssetKind
    status: AssetStatus
    key: str
    media_type: str
    bytes: int
    sha256: str
    created_at: float
    character_id: str | None = None
    version: int | None = None
    job_id: str | None = None
    attempt_id: str | None = None
    position: int = 0
    name: str = ""
    width: int | None = None
    height: int | None = None
    duration: float | None = None
    fps: float | None = None
    frames: int | None = None
    thumbnail_key: str | None = None
    seed: int | None = None
    recipe: Mapping[str, Any] | None = None
    rating: str | None = None
    favourite: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    upload: str | None = None
    """The reference under which a pod promised it before it was stored."""

    @property
    def is_public(self) -> bool:
        """Whether its clean URL may be shown: pictures and videos that were asked for, never references or LoRAs."""
        return self.kind in ("image", "video")


def output_key(
    project_id: str,
    character_id: str | None,
    job_id: str,
    attempt_number: int,
    position: int,
    extension: str,
    created_at: float,
) -> str:
    """``{project}/{character}/{yyyy-mm-dd}/{job}-{n}.{ext}`` with n from 1 and the day in UTC.

    From the second attempt on the key carries the attempt's number, so a key never changes its bytes.
    """
    day = time.strftime("%Y-%m-%d", time.gmtime(created_at))
    attempt = f"-a{attempt_number}" if attempt_number > 1 else ""
    return f"{project_id}/{character_id or '_'}/{day}/{job_id}{attempt}-{position + 1}.{extension}"


def training_key(
    project_id: str,
    character_id: str,
    kind: Literal["lora", "sample", "checkpoint", "state"],
    job_id: str,
    attempt_number: int,
    position: int,
    extension: str,
) -> str:
    """Where a training's files live: ``{project}/{character}/loras|samples|checkpoints|states/{job}-{n}.{ext}``."""
    attempt = f"-a{attempt_number}" if attempt_number > 1 else ""
    return f"{project_id}/{character_id}/{kind}s/{job_id}{attempt}-{position + 1}.{extension}"


def preview_keys(project_id: str, character_id: str | None, job_id: str) -> tuple[str, str]:
    """Where the previews of a job take turns, ``{project}/{character}/previews/{job}-0|1.jpg``: never public."""
    folder = f"{project_id}/{character_id or '_'}/previews"
    return f"{folder}/{job_id}-0.jpg", f"{folder}/{job_id}-1.jpg"


def dataset_key(project_id: str, character_id: str, dataset_id: str, position: int) -> str:
    """Where a reference image lives; n from 1."""
    return f"{project_id}/{character_id}/dataset/{dataset_id}/{position + 1:03d}.png"


_STATE_NAME = re.compile(r"state-e(\d{6})-s(\d{8})\.tar")


@dataclass(frozen=True)
class Standing:
    """How far a training was: the epochs and steps done, from its true beginning."""

    epoch: int
    step: int


def state_standing(name: str) -> Standing | None:
    """How far a training was that saved a state under this name, None where the name does not say."""
    found = _STATE_NAME.fullmatch(name)
    return Standing(int(found[1]), int(found[2])) if found is not None else None


def thumbnail_key(key: str) -> str:
    """The key of a blob's thumbnail, beside it."""
    return f"{key.rsplit('.', 1)[0]}.thumb.webp"
