"""Pods: how they are shown, how they register and what they ask for while they work."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from controlplane.api.schemas.base import Reply, Request, Timestamp

Sha256 = Field(pattern=r"^[0-9a-f]{64}$")
Kind = Literal["embedded", "comfyui"]
Phase = Literal["downloading", "preparing", "training", "sampling", "verifying", "uploading"]


class Boot(Request):
    """How far a pod is that has not joined yet."""

    phase: Literal["models", "starting", "probing"]
    detail: str = Field("", max_length=500)
    percent: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)


class RegisterPod(Request):
    """What a pod says of itself on boot."""

    protocol: int
    instance_id: str = Field(min_length=8, max_length=64)
    address: str = Field(min_length=8, max_length=500, pattern=r"^https?://")
    token: str = Field(min_length=8, max_length=500)
    kind: Kind
    name: str = Field("", max_length=200)
    gpu: str = Field("", max_length=200)
    vram_bytes: int = Field(0, ge=0, le=2**53)
    comfyui_version: str = Field("", max_length=40)
    node_pack_digest: str = Field("", max_length=64)
    node_classes: list[str] = Field(default_factory=list, max_length=20_000)
    models: dict[str, list[str]] = Field(default_factory=dict)
    trainers: list[str] = Field(default_factory=list, max_length=100)
    labels: list[str] = Field(default_factory=list, max_length=100)
    trainer_obstacles: dict[str, str] = Field(
        default_factory=dict, max_length=100, description="Why a trainer cannot train on this pod, by its name."
    )
    state: Literal["joining", "ready"] = Field("ready", description="A joining pod is seen, but gets no work.")
    boot: Boot | None = None
    provider: str = Field("", max_length=32, description="Who rents the pod out.")
    provider_id: str = Field("", max_length=80, description="The pod's id there.")
    price_per_hour: float | None = Field(None, ge=0, le=10**6, allow_inf_nan=False, description="US dollars.")


class Heartbeat(Request):
    """What a pod says every half minute."""

    state: Literal["joining", "ready", "draining"] = "ready"
    boot: Boot | None = None
    restarts: int | None = Field(
        None, ge=0, le=10**6, description="How often ComfyUI was restarted since the agent began; null says nothing."
    )
    restart_reason: str = Field("", max_length=500)
    queue_running: int = Field(0, ge=0, le=10**6)
    queue_pending: int = Field(0, ge=0, le=10**6)
    loras: list[str] = Field(default_factory=list, max_length=20_000)
    vram_free_bytes: int | None = Field(None, ge=0, le=2**53)
    disk_free_bytes: int | None = Field(None, ge=0, le=2**63 - 1)


class HeartbeatReply(Reply):
    """What the control plane wants of the pod."""

    drain: bool
    heartbeat_seconds: float
    revoked: list[str] = Field(description="sha256 of LoRAs to drop.")


class Pod(Reply):
    """One pod; its token is never shown."""

    id: str
    name: str
    kind: str
    state: Literal["joining", "ready", "busy", "draining", "suspect", "lost"]
    address: str
    gpu: str
    vram_bytes: int
    comfyui_version: str
    protocol: int
    node_pack_digest: str
    node_classes: list[str]
    models: dict[str, list[str]]
    trainers: list[str]
    trainer_obstacles: dict[str, str]
    labels: list[str]
    loras: list[str]
    queue_length: int
    vram_free_bytes: int | None = None
    disk_free_bytes: int | None = None
    boot: Boot | None = None
    restarts: int
    restart_reason: str
    provider: str
    provider_id: str
    price_per_hour: float | None = None
    created_at: Timestamp
    last_heartbeat_at: Timestamp


class PodPage(Reply):
    """All pods."""

    items: list[Pod]
    next_cursor: str | None = None


class PodReply(Reply):
    """One pod after a change."""

    pod: Pod


class Registered(Reply):
    """A pod's identity and the key it calls us with, shown once."""

    pod: Pod
    pod_key: str
    heartbeat_seconds: float
    protocol: int


class LoraQuery(Request):
    """Which version's LoRA."""

    version: int = Field(0, ge=0, le=2**31 - 1, description="0 is the active one.")


class PodLora(Reply):
    """One LoRA and where to fetch it."""

    character_id: str
    version: int
    sha256: str
    bytes: int
    url: str
    trigger: str
    default_strength: float
    base: str


class PodRecipe(Reply):
    """The training parameters of a version."""

    name: str
    digest: str
    params: dict[str, Any]


class PodDatasetImage(Reply):
    """One prepared reference picture."""

    name: str
    url: str
    sha256: str
    bytes: int
    media_type: str
    caption: str


class PodResume(Reply):
    """The newest state that an earlier attempt of the same training stored."""

    step: int
    epoch: int
    url: str
    sha256: str
    bytes: int


class PodDataset(Reply):
    """Everything that training a version needs."""

    character_id: str
    version: int
    name: str
    trigger: str
    class_word: str
    base: str
    checkpoint: str
    trainer: str
    recipe: PodRecipe
    dataset_digest: str
    seed: int
    sample_prompts: list[str]
    images: list[PodDatasetImage]
    resume: PodResume | None = None


class UploadRequest(Request):
    """A file that a node wants to store."""

    prompt_id: str = Field(min_length=1, max_length=40)
    name: str = Field("", max_length=400)
    media_type: str = Field(min_length=3, max_length=80, pattern=r"^[a-z]+/[a-z0-9.+\-]+$")
    bytes: int = Field(ge=1, le=2**40)
    sha256: str = Sha256
    kind: Literal["output", "sample", "checkpoint", "state", "lora"] = "output"
    index: int = Field(0, ge=0, le=10**6)
    upload: str | None = Field(None, pattern=r"^[A-Za-z0-9_\-]{8,64}$")
    """The reference under which the prompt's outputs promised it; asking again under it gives the same ticket."""
    width: int | None = Field(None, ge=1, le=10**6)
    height: int | None = Field(None, ge=1, le=10**6)
    duration: float | None = Field(None, ge=0, le=10**6, allow_inf_nan=False)
    fps: float | None = Field(None, ge=0, le=10**4, allow_inf_nan=False)
    frames: int | None = Field(None, ge=1, le=10**7)


class UploadTarget(Reply):
    """Where to put the bytes."""

    method: str
    url: str
    headers: dict[str, str]


class UploadTicket(Reply):
    """Permission to store one file."""

    asset_id: str
    url: str
    upload: UploadTarget


class AttemptProgress(Request):
    """How far a training is; a `seq` that is not higher than the last is ignored."""

    seq: int = Field(ge=0, le=2**53)
    phase: Phase
    step: int | None = Field(None, ge=0, le=10**9)
    total_steps: int | None = Field(None, ge=0, le=10**9)
    loss: float | None = Field(None, allow_inf_nan=False)
    eta_seconds: float | None = Field(None, ge=0, le=10**9, allow_inf_nan=False)
    sample_asset_id: str | None = Field(None, max_length=40)
    checkpoint_asset_id: str | None = Field(None, max_length=40)
    note: str | None = Field(None, max_length=500, description="A warning that people should see, once per text.")


class AttemptReply(Reply):
    """Whether the work is still wanted."""

    cancel: bool
