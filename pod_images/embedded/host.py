"""The node pack's host in the embedded pod: the running prompt, its progress, and the sketch base's model work."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import painting
from .folders import Folders
from .models import CheckpointStore, Clip, Model, apply_lora
from .progress import RunProgress

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from comfy_nodes.host import SampleCallback


class EmbeddedHost:
    """Answers `comfy_nodes.host.Host` for the prompt that the worker runs."""

    def __init__(self, folders: Folders, checkpoints: CheckpointStore) -> None:
        self.folders = folders
        self.checkpoints = checkpoints
        self._running: RunProgress | None = None
        self._lock = threading.Lock()

    def enter(self, progress: RunProgress | None) -> None:
        """The worker says which prompt runs now."""
        with self._lock:
            self._running = progress

    def _progress(self) -> RunProgress:
        with self._lock:
            running = self._running
        if running is None:
            raise RuntimeError("no prompt is running")
        return running

    def prompt_id(self) -> str:
        return self._progress().item.prompt_id

    def progress(self, value: int, total: int, preview: Image | None = None) -> None:
        self._progress().update(value, total, preview)

    def watched(self) -> bool:
        """Whether anybody would see a preview."""
        running = self._progress()
        return running.watched() and running.item.extra_data.get("preview_method") != "none"

    def interrupted(self) -> bool:
        return self._progress().item.interrupt.is_set()

    def raise_if_interrupted(self) -> None:
        self._progress().check()

    def free_memory(self) -> None:
        self.checkpoints.clear()

    def vram_bytes(self) -> int:
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else 0

    def apply_lora(
        self, model: Model, clip: Clip, state_dict: Mapping[str, Tensor], strength: float
    ) -> tuple[Model, Clip, int, int]:
        return apply_lora(model, clip, state_dict, strength, strength)

    def sample(
        self,
        model: Model,
        seed: int,
        steps: int,
        cfg: float,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        denoise: float,
        callback: SampleCallback | None = None,
    ) -> dict[str, Any]:
        def told(done: int, total: int, _samples: Any) -> None:
            self.raise_if_interrupted()
            if callback is not None:
                callback(done, total)

        return painting.sample(model, seed, steps, cfg, positive, negative, latent, denoise, told)

    def blend(self, first: Any, second: Any, weight: float) -> Any:
        return painting.blend(first, second, weight)

    def models_dir(self, kind: str) -> list[Path]:
        return self.folders.model_dirs(kind)

    def checkpoint_path(self, name: str) -> Path:
        return self.folders.model_path("checkpoints", name)

    def output_dir(self) -> Path:
        return self.folders.directory("output")

    def loras_cache_dir(self) -> Path:
        return self.folders.lora_cache()


def pod_host() -> EmbeddedHost:
    """The host of this process, for this pod's own nodes. Raises RuntimeError where another host is set."""
    from comfy_nodes.host import current_host

    host = current_host()
    if not isinstance(host, EmbeddedHost):
        raise RuntimeError("this node runs in the embedded pod only")
    return host
