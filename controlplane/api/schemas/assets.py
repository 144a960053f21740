"""Stored files as clients see them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from controlplane.api.schemas.base import FreeJson, PageQuery, Reply, Request, Timestamp

AssetKind = Literal["image", "video", "lora", "dataset", "sample", "checkpoint", "state"]
Rating = Literal["general", "mature"]


class Asset(Reply):
    """One stored file."""

    id: str
    kind: AssetKind
    url: str
    thumbnail_url: str | None = None
    name: str
    media_type: str
    bytes: int
    sha256: str
    width: int | None = None
    height: int | None = None
    duration: float | None = Field(None, description="Seconds, of a video.")
    fps: float | None = None
    frames: int | None = None
    character_id: str | None = None
    version: int | None = None
    job_id: str | None = None
    seed: int | None = None
    recipe: dict[str, Any] | None = Field(None, description="What made it.")
    rating: str | None = None
    favourite: bool = False
    metadata: FreeJson
    created_at: Timestamp


class AssetPage(Reply):
    """One page of assets, newest first."""

    items: list[Asset]
    next_cursor: str | None = None


class AssetsQuery(PageQuery):
    """Which assets to list."""

    character_id: str | None = Field(None, max_length=80)
    job_id: str | None = Field(None, max_length=40)
    kind: AssetKind | None = None
    favourite: bool | None = None


class PatchAsset(Request):
    """What may be changed of an asset."""

    favourite: bool | None = None
    rating: Rating | None = None
    metadata: FreeJson | None = None
