"""Requests for pictures and videos, as plain values with the names that the REST API gives their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class _Generation:
    """What a picture and a video are both asked for with."""

    prompt: str
    character_id: str | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    cfg: float | None = None
    seed: int | None = None
    lora_strength: float | None = None
    version: int | None = None
    model: str | None = None
    workflow: str | None = None
    format: str | None = None
    rating: str | None = None
    end_user: str | None = None
    image_asset_id: str | None = None
    priority: int | None = None
    deadline_seconds: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    workflow_inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageRequest(_Generation):
    """The fields of ``POST /generate-image``; None means that the template's or the model's default holds.

    ``workflow_inputs`` are further inputs that the chosen template declares.
    """

    count: int | None = None


@dataclass(frozen=True)
class VideoRequest(_Generation):
    """The fields of ``POST /generate-video``: those of a picture, and how it moves. ``seconds`` excludes ``frames``."""

    frames: int | None = None
    seconds: float | None = None
    fps: float | None = None
    motion: str | None = None


Request = ImageRequest | VideoRequest
