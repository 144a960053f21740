"""Requests for images and video."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from controlplane.api.schemas.assets import Rating
from controlplane.api.schemas.base import DeadlineSeconds, FreeJson, Priority, Request


class Generate(Request):
    """What images and video have in common. Further members are inputs that the chosen workflow declares."""

    # The workflow's own inputs are checked by name when they are bound: an unknown one is refused there.
    model_config = ConfigDict(extra="allow", frozen=True)

    character_id: str | None = Field(None, min_length=1, max_length=80)
    version: int | None = Field(None, ge=1, le=2**31 - 1, description="Default: the active version.")
    prompt: str = Field(min_length=1, description="What to show; the trigger word is added in front.")
    negative_prompt: str | None = None
    width: int | None = Field(None, ge=16, le=8192)
    height: int | None = Field(None, ge=16, le=8192)
    steps: int | None = Field(None, ge=1, le=1000)
    cfg: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, le=2**53 - 1, description="Default: random, and recorded.")
    lora_strength: float | None = Field(
        None, ge=-1, le=4, allow_inf_nan=False, description="-1 is the version's own default, 0 the base model alone."
    )
    model: str | None = Field(None, min_length=1, max_length=64, description="A base model's id.")
    workflow: str | None = Field(None, min_length=1, max_length=80, description="A workflow template's name.")
    image_asset_id: str | None = Field(None, max_length=40, description="A picture to start at.")
    rating: Rating | None = None
    end_user: str | None = Field(None, max_length=200, description="Your own id of the person you ask for.")
    metadata: FreeJson = Field(default_factory=dict)
    priority: Priority = None
    deadline_seconds: DeadlineSeconds = None


class GenerateImage(Generate):
    """A request for images."""

    count: int | None = Field(None, ge=1, le=1000)
    format: Literal["png", "webp", "jpeg"] | None = None


class GenerateVideo(Generate):
    """A request for a video; without `image_asset_id` the still is made first."""

    frames: int | None = Field(None, ge=1, le=10_000)
    seconds: float | None = Field(None, gt=0, le=600, allow_inf_nan=False)
    fps: float | None = Field(None, gt=0, le=120, allow_inf_nan=False)
    motion: str | None = Field(None, max_length=2000, description="What moves, in words.")
    format: Literal["mp4", "webm"] | None = None
