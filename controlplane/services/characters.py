"""Characters: making one from reference images, listing, changing, training again and choosing its version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.domain.characters import Consent


@dataclass(frozen=True)
class Upload:
    """One file of a request, streamed to disk by the caller, who also deletes it afterwards."""

    name: str
    path: Path
    media_type: str = ""


@dataclass(frozen=True)
class NewCharacter:
    """The fields of ``POST /characters`` beside the images; None means the default. ``captions`` are by file name."""

    name: str
    class_word: str | None = None
    trigger_word: str | None = None
    description: str = ""
    base_model: str | None = None
    recipe: str | None = None
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


@dataclass(frozen=True)
class CharacterPatch:
    """The fields of ``PATCH /characters/{id}``; None leaves a field as it is, ``metadata`` is replaced whole."""

    name: str | None = None
    description: str | None = None
    metadata: Mapping[str, Any] | None = None
    cover_asset_id: str | None = None
