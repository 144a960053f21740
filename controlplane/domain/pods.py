"""Pods: what they are, how loaded they are, and which one a job goes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

JOINING = "joining"
READY = "ready"
DRAINING = "draining"
SUSPECT = "suspect"
LOST = "lost"


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
class Load:
    """What our own attempts say about one pod: work in hand, and what the last attempt left resident."""

    pod_id: str
    running: int = 0
    base_model: str | None = None
    lora_sha256: str | None = None
    idle_since: float = 0.0


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

    def as_placement(self) -> dict[str, Any]:
        """The JSON shown as a job's ``placement``."""
        return {"pod_id": self.pod_id, "reason": self.reason, "considered": [dict(one) for one in self.considered]}


CAPACITY = 1
"""Prompts a pod is given at a time: ComfyUI runs them one after another anyway."""


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


def choose(
    needs: Needs,
    pods: Sequence[Pod],
    loads: Mapping[str, Load],
    avoid: frozenset[str] = frozenset(),
) -> Choice:
    """Choose a pod for one job; pure.

    Pods that are not ready, lack something or are full drop out. Among the rest: least switch cost (base model
    resident, LoRA resident, LoRA on disk), then longest idle. ``avoid`` names pods where the job failed before: they
    are used only while no other capable pod is known.
    """
    verdicts = {pod.id: _verdict(needs, pod, loads.get(pod.id)) for pod in pods}
    capable = [pod for pod in pods if not lacks(needs, pod) and pod.state == READY and not pod.draining]
    others = [pod for pod in capable if pod.id not in avoid]
    if others:
        verdicts.update({pod.id: "failed this job before" for pod in capable if pod.id in avoid})
    free = [pod for pod in (others or capable) if _is_free(loads.get(pod.id))]
    considered = tuple({"pod": pod.id, "verdict": verdicts[pod.id]} for pod in pods)
    if not free:
        return Choice(None, _why_none(pods, capable, verdicts), considered)
    best = min(free, key=lambda pod: _cost(needs, pod, loads.get(pod.id)))
    return Choice(best.id, verdicts[best.id], considered)


def _is_free(load: Load | None) -> bool:
    return load is None or load.running < CAPACITY


def _verdict(needs: Needs, pod: Pod, load: Load | None) -> str:
    if pod.state == JOINING:
        return _joining(pod.boot)
    if pod.state != READY:
        return f"is {pod.state}"
    if pod.draining:
        return "is draining"
    missing = lacks(needs, pod)
    if missing:
        return missing
    if load is not None and load.running >= CAPACITY:
        return f"is busy with {load.running} job{'s' if load.running > 1 else ''}"
    return f"free; {_warmth(needs, pod, load)}"


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


def _warmth(needs: Needs, pod: Pod, load: Load | None) -> str:
    base_resident = load is not None and needs.base_model is not None and load.base_model == needs.base_model
    if needs.lora_sha256 and base_resident and load is not None and load.lora_sha256 == needs.lora_sha256:
        return "base model and LoRA are resident"
    if base_resident:
        return "base model is resident"
    if needs.lora_sha256 and needs.lora_sha256 in pod.loras:
        return "LoRA is on its disk"
    return "nothing is resident"


def _cost(needs: Needs, pod: Pod, load: Load | None) -> tuple[int, int, int, float, str]:
    base_cold = int(needs.base_model is not None and (load is None or load.base_model != needs.base_model))
    lora_cold = int(needs.lora_sha256 is not None and (load is None or load.lora_sha256 != needs.lora_sha256))
    not_on_disk = int(needs.lora_sha256 is not None and needs.lora_sha256 not in pod.loras)
    # The id makes equal pods come out in a fixed order.
    return base_cold, lora_cold, not_on_disk, load.idle_since if load else 0.0, pod.id


def _why_none(pods: Sequence[Pod], capable: Sequence[Pod], verdicts: Mapping[str, str]) -> str:
    if not pods:
        return "No pod is known."
    if capable:
        return "Every pod that can do this work is busy."
    told = "; ".join(f"{pod.name or pod.id} {verdicts[pod.id]}" for pod in pods[:5])
    yet = " yet" if any(pod.state == JOINING for pod in pods) else ""
    return f"No pod can do this work{yet}: {told}{' …' if len(pods) > 5 else ''}."
