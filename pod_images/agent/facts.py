"""What a running ComfyUI can do, as the control plane is told at registration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .comfy_link import ComfyLink

NOT_MODELS = frozenset({"custom_nodes", "configs"})


@dataclass(frozen=True)
class Facts:
    """Everything that placement asks of a pod and that only its ComfyUI knows."""

    gpu: str = ""
    vram_bytes: int = 0
    comfyui_version: str = ""
    node_pack_digest: str = ""
    node_classes: tuple[str, ...] = ()
    models: Mapping[str, list[str]] = field(default_factory=dict)
    trainers: tuple[str, ...] = ()
    trainer_obstacles: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """Their part of the body of POST /pods."""
        return {
            "gpu": self.gpu,
            "vram_bytes": self.vram_bytes,
            "comfyui_version": self.comfyui_version,
            "node_pack_digest": self.node_pack_digest,
            "node_classes": list(self.node_classes),
            "models": dict(self.models),
            "trainers": list(self.trainers),
            "trainer_obstacles": dict(self.trainer_obstacles),
        }


async def gather(link: ComfyLink, state: Mapping[str, Any]) -> Facts:
    """Asks a running ComfyUI; `state` is its answer to GET /troupe/state. Raises NoAnswerError."""
    stats = await link.system_stats()
    classes = await link.object_info()
    models = await link.models()
    return Facts(
        gpu=str(state.get("gpu") or ""),
        vram_bytes=int(state.get("vram_bytes") or 0),
        comfyui_version=str((stats.get("system") or {}).get("comfyui_version") or "")[:40],
        node_pack_digest=str(state.get("node_pack_digest") or ""),
        node_classes=tuple(sorted(classes)),
        models={folder: files for folder, files in models.items() if folder not in NOT_MODELS},
        trainers=tuple(str(name) for name in state.get("trainers") or ()),
        trainer_obstacles={str(name): str(words) for name, words in (state.get("trainer_obstacles") or {}).items()},
    )
