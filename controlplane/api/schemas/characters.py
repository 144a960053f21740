"""Characters, versions and datasets as clients see them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from controlplane.api.schemas.base import (
    DeadlineSeconds,
    FreeJson,
    Links,
    PageQuery,
    Priority,
    Reply,
    Request,
    Timestamp,
)
from controlplane.api.schemas.jobs import Fault, Job

Subject = Literal["fictional", "real"]
CharacterStatus = Literal["training", "ready", "failed"]
VersionStatus = Literal["training", "ready", "failed", "cancelled"]


class Consent(Request):
    """Who attests that the person shown agrees; needed where the subject is real."""

    attested_by: str = Field(min_length=1, max_length=200)
    text_version: str = Field(min_length=1, max_length=80)


class ConsentShown(Reply):
    """Who attested what, and when."""

    attested_by: str
    text_version: str
    attested_at: Timestamp | None = None


class CreateCharacter(Request):
    """The fields of the form, beside its `images`."""

    name: str = Field(min_length=1, max_length=120)
    class_word: str | None = Field(None, min_length=1, max_length=40, examples=["woman"])
    trigger_word: str | None = Field(None, pattern=r"^[a-z0-9]{4,10}$")
    description: str = Field("", max_length=4000)
    base_model: str | None = Field(None, min_length=1, max_length=64)
    recipe: str | None = Field(None, min_length=1, max_length=40, examples=["fast"])
    metadata: FreeJson = Field(default_factory=dict)
    captions: dict[str, str] = Field(default_factory=dict, description="Captions by file name.")
    image_urls: list[str] = Field(default_factory=list, max_length=200, description="Pictures to fetch, http(s).")
    subject: Subject = "fictional"
    consent: Consent | None = None
    priority: Priority = None
    deadline_seconds: DeadlineSeconds = None


class PatchCharacter(Request):
    """What may be changed of a character."""

    name: str | None = Field(None, min_length=1, max_length=120)
    description: str | None = Field(None, max_length=4000)
    metadata: FreeJson | None = None
    cover_asset_id: str | None = Field(None, max_length=40)


class TrainVersion(Request):
    """How to train a further version; without images on the same pictures as the version before."""

    recipe: str | None = Field(None, min_length=1, max_length=40)
    base_model: str | None = Field(None, min_length=1, max_length=64)
    captions: dict[str, str] = Field(default_factory=dict, description="Captions by file name.")
    priority: Priority = None
    deadline_seconds: DeadlineSeconds = None


class DatasetImage(Reply):
    """The verdict on one reference image."""

    name: str
    verdict: Literal["ok", "warn", "reject"]
    reasons: list[str]
    width: int | None = None
    height: int | None = None


class Dataset(Reply):
    """The verdicts on a set of reference images."""

    usable: int
    counts: dict[str, int] = Field(description="How many images got each verdict.")
    images: list[DatasetImage]
    advice: list[str]


class Version(Reply):
    """One trained LoRA."""

    number: int
    status: VersionStatus
    base_model: str
    recipe: str
    job_id: str
    lora_sha256: str | None = None
    default_strength: float
    score: float | None = None
    proof: dict[str, Any] | None = Field(None, description="What shows that the LoRA is sound.")
    error: Fault | None = None
    created_at: Timestamp
    finished_at: Timestamp | None = None


class Counts(Reply):
    """How much there is of a character."""

    images: int
    videos: int
    versions: int


class CharacterJob(Reply):
    """The newest job of a character, in short."""

    id: str
    kind: str
    status: str
    created_at: Timestamp


class Character(Reply):
    """A character."""

    id: str
    name: str
    status: CharacterStatus
    class_word: str
    trigger_word: str
    description: str
    subject: Subject
    consent: ConsentShown | None = None
    base_model: str
    metadata: FreeJson
    active_version: int | None = None
    cover_url: str | None = None
    cover_thumbnail_url: str | None = None
    counts: Counts
    last_job: CharacterJob | None = None
    versions: list[Version]
    created_at: Timestamp
    updated_at: Timestamp


class CharacterPage(Reply):
    """One page of characters, newest first."""

    items: list[Character]
    next_cursor: str | None = None


class TrainingReply(Reply):
    """An accepted training: the character, its job and the verdicts on the images."""

    character: Character
    job: Job
    dataset: Dataset
    links: Links


class CharactersQuery(PageQuery):
    """Which characters to list."""
