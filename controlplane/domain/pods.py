"""Pods: what they are, what they have in hand, and in which words they are found fit or unfit for a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

JOINING = "joining"
READY = "ready"
DRAINING = "draining"
SUSPECT = "suspect"
LOST = "lost"
BUSY = "busy"
"""Derived: a ready pod with work in hand. No row says so."""

SHARED_PROJECT = "default"
"""Pods of this project work for every project."""


@dataclass(frozen=True)
class Pod:
    """A GPU process group that speaks ComfyUI's protocol, as registered. Sizes are bytes, times epoch seconds."""

    id: str
    project_id: str
    instance_id: str
    name: str
    kind: str
    address: str
    token: str = field(repr=False)
    key_hash: str = field(repr=False)
    state: str
    protocol: int
    node_classes: tuple[str, ...]
    models: Mapping[str, Sequence[str]]
    trainers: tuple[str, ...]
    labels: tuple[str, ...]
    loras: tuple[str, ...]
    created_at: float
    last_heartbeat_at: float
    gpu: str = ""
    vram_bytes: int = 0
    comfyui_version: str = ""
    node_pack_digest: str = ""
    queue_length: int = 0
    vram_free_bytes: int | None = None
    disk_free_bytes: int | None = None
    draining: bool = False
    provider: str = ""
    provider_id: str = ""
    price_per_hour: float | None = None
    boot: Mapping[str, Any] | None = None
    restarts: int = 0
    restart_reason: str = ""
    trainer_obstacles: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Live:
    """One attempt that occupies a pod: running there, or waiting behind others."""

    attempt_id: str
    job_id: str
    project_id: str
    slot: int
    kind: str
    estimate_seconds: float
    since: float
    """When the pod was given it."""


@dataclass(frozen=True)
class Load:
    """What our own attempts say about one pod: work in hand, and what the newest attempt leaves resident."""

    pod_id: str
    live: tuple[Live, ...] = ()
    """In the order in which the pod works on them."""
    base_model: str | None = None
    lora_sha256: str | None = None
    idle_since: float = 0.0
    """When it last finished something."""

    def rest(self, now: float) -> float:
        """How many seconds of work it has by estimate, the running attempt's time already spent left out."""
        if not self.live:
            return 0.0
        first, *others = self.live
        spent = now - max(first.since, self.idle_since)
        return max(0.0, first.estimate_seconds - spent) + sum(one.estimate_seconds for one in others)


@dataclass(frozen=True)
class Needs:
    """What a bound graph asks of a pod."""

    nodes: frozenset[str] = frozenset()
    models: Mapping[str, Sequence[str]] = field(default_factory=dict)
    labels: frozenset[str] = frozenset()
    trainer: str | None = None
    base_model: str | None = None
    lora_sha256: str | None = None

    @classmethod
    def of(cls, needs: Mapping[str, Any], base_model: str | None = None) -> Needs:
        """Read the JSON kept on a job: ``{nodes, models: {folder: [file]}, labels, trainer, lora_sha256}``."""
        return cls(
            nodes=frozenset(needs.get("nodes") or ()),
            models=dict(needs.get("models") or {}),
            labels=frozenset(needs.get("labels") or ()),
            trainer=needs.get("trainer"),
            base_model=base_model,
            lora_sha256=needs.get("lora_sha256"),
        )


@dataclass(frozen=True)
class Choice:
    """The pod chosen, or None, with the reason in words and a verdict for each pod considered."""

    pod_id: str | None
    reason: str
    considered: tuple[Mapping[str, str], ...] = ()
    more: int = 0
    """How many further pods were considered that are not named here."""

    def as_placement(self) -> dict[str, Any]:
        """The JSON shown as a job's ``placement``."""
        told = {"pod_id": self.pod_id, "reason": self.reason, "considered": [dict(one) for one in self.considered]}
        return {**told, "more": self.more} if self.more else told


CAPACITY = 1
"""Prompts that a pod runs at a time: ComfyUI works on them one after another."""
PREFETCH_DEPTH = 8
"""At most so many prompts wait on a pod behind the running one."""
SLOTS = CAPACITY + PREFETCH_DEPTH
SHOWN_PODS = 10
"""A placement names so many of the pods considered, however large the fleet is."""


def serves(pod: Pod, project_id: str) -> bool:
    """Whether a pod works for a project at all."""
    return pod.project_id in (project_id, SHARED_PROJECT)


def is_open(pod: Pod) -> bool:
    """Whether a pod is to be given work, whatever it has in hand."""
    return pod.state == READY and not pod.draining


def state_shown(state: str, occupied: bool) -> str:
    """A pod's state in people's eyes: a ready one with work in hand is busy."""
    return BUSY if state == READY and occupied else state


def lacks(needs: Needs, pod: Pod) -> str:
    """What the pod misses for ever (trainer, label, node class, model), in words; empty when it misses nothing."""
    if needs.trainer and needs.trainer not in pod.trainers and needs.trainer in pod.trainer_obstacles:
        return f"cannot train with {needs.trainer}: {pod.trainer_obstacles[needs.trainer]}"
    missing_labels = needs.labels - frozenset(pod.labels) if pod.labels else frozenset()
    if missing_labels:
        return f"is not labelled {', '.join(sorted(missing_labels))}"
    missing_nodes = needs.nodes - frozenset(pod.node_classes)
    if missing_nodes:
        return f"lacks node class {', '.join(sorted(missing_nodes))}"
    for folder, files in needs.models.items():
        absent = [name for name in files if name not in pod.models.get(folder, ())]
        if absent:
            return f"lacks {folder}/{absent[0]}"
    if needs.trainer and needs.trainer not in pod.trainers:
        return f"has no trainer {needs.trainer}"
    return ""


def explain(
    needs: Needs, pods: Sequence[Pod], loads: Mapping[str, Load], avoid: frozenset[str] = frozenset()
) -> Choice:
    """Why no pod has a waiting job yet; pure. ``avoid`` names pods where it failed before."""
    verdicts = {pod.id: verdict(needs, pod, loads.get(pod.id)) for pod in pods}
    capable = [pod for pod in pods if is_open(pod) and not lacks(needs, pod)]
    others = [pod for pod in capable if pod.id not in avoid]
    if others:
        verdicts.update({pod.id: FAILED_BEFORE for pod in capable if pod.id in avoid})
    shown = [{"pod": pod.id, "verdict": verdicts[pod.id]} for pod in pods[:SHOWN_PODS]]
    reason = _why_none(pods, others or capable, verdicts, loads)
    return Choice(None, reason, tuple(shown), max(0, len(pods) - SHOWN_PODS))


FAILED_BEFORE = "failed this job before"
ABOUT_TO_BEGIN = "A pod is free for this work and about to take it."


def verdict(needs: Needs, pod: Pod, load: Load | None, missing: str | None = None) -> str:
    """What speaks for or against a pod, in words. ``missing`` is what it ``lacks``, where that is known already."""
    if pod.state == JOINING:
        return _joining(pod.boot)
    if pod.state != READY:
        return f"is {pod.state}"
    if pod.draining:
        return "is draining"
    missing = lacks(needs, pod) if missing is None else missing
    if missing:
        return missing
    in_hand = len(load.live) if load is not None else 0
    if in_hand >= CAPACITY:
        return f"is busy with {in_hand} job{'s' if in_hand > 1 else ''}"
    return f"free; {warmth(needs, pod, load)}"


BOOT_WORDS: Mapping[str, str] = {
    "models": "fetching its models",
    "starting": "starting ComfyUI",
    "probing": "making a probe image",
}


def _joining(boot: Mapping[str, Any] | None) -> str:
    phase = BOOT_WORDS.get(str((boot or {}).get("phase")), "")
    if boot is None or not phase:
        return "is joining"
    percent = boot.get("percent")
    return f"is joining, {phase}{f' ({percent:.0f} %)' if percent is not None else ''}"


def warmth(needs: Needs, pod: Pod, load: Load | None) -> str:
    """What of a job's models a pod has at hand, in words."""
    base_resident = load is not None and needs.base_model is not None and load.base_model == needs.base_model
    if needs.lora_sha256 and base_resident and load is not None and load.lora_sha256 == needs.lora_sha256:
        return "base model and LoRA are resident"
    if base_resident:
        return "base model is resident"
    if needs.lora_sha256 and needs.lora_sha256 in pod.loras:
        return "LoRA is on its disk"
    return "nothing is resident"


def _why_none(
    pods: Sequence[Pod], capable: Sequence[Pod], verdicts: Mapping[str, str], loads: Mapping[str, Load]
) -> str:
    if not pods:
        return "No pod is known."
    if capable:
        free = any(pod.id not in loads or not loads[pod.id].live for pod in capable)
        return ABOUT_TO_BEGIN if free else "Every pod that can do this work is busy."
    told = "; ".join(f"{pod.name or pod.id} {verdicts[pod.id]}" for pod in pods[:5])
    yet = " yet" if any(pod.state == JOINING for pod in pods) else ""
    return f"No pod can do this work{yet}: {told}{' …' if len(pods) > 5 else ''}."
