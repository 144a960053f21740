"""The one seam between the node pack and the program it runs in: what a node may ask of its host."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from . import state

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

# Models, text encoders and conditionings belong to the host: the pack only hands them on.
Model = Any
Clip = Any
Conditioning = Any
# {"samples": Tensor [N, C, h, w], ...}, as in ComfyUI.
Latent = dict[str, Any]
# Called after every sampler step with (steps done, steps in all); raises the host's interrupt exception.
SampleCallback = Callable[[int, int], None]


class Host(Protocol):
    """What ComfyUI and the embedded pod both can do for a node. Called from the thread that executes the prompt."""

    def prompt_id(self) -> str:
        """The id of the prompt that is being executed; it is the id of the job's attempt."""
        ...

    def progress(self, value: int, total: int, preview: Image | None = None) -> None:
        """Show `value` of `total` for the node that runs. Raises the host's interrupt exception when interrupted."""
        ...

    def interrupted(self) -> bool:
        """True once the running prompt was asked to stop; does not clear the flag."""
        ...

    def raise_if_interrupted(self) -> None:
        """Raise the host's interrupt exception if the running prompt was asked to stop."""
        ...

    def free_memory(self) -> None:
        """Unload every model, so that another process may have the accelerator."""
        ...

    def vram_bytes(self) -> int:
        """The whole memory of the accelerator, free or not; 0 where there is only a CPU."""
        ...

    def apply_lora(
        self, model: Model, clip: Clip, state_dict: Mapping[str, Tensor], strength: float
    ) -> tuple[Model, Clip, int, int]:
        """(patched model, patched clip, modules matched, modules in the file); the given objects stay as they are."""
        ...

    def sample(
        self,
        model: Model,
        seed: int,
        steps: int,
        cfg: float,
        positive: Conditioning,
        negative: Conditioning,
        latent: Latent,
        denoise: float,
        callback: SampleCallback | None = None,
    ) -> Latent:
        """Sample `latent` (image to image where denoise < 1); the same seed gives the same noise."""
        ...

    def blend(self, first: Conditioning, second: Conditioning, weight: float) -> Conditioning:
        """The conditioning that is `first` at weight 0 and `second` at weight 1."""
        ...

    def models_dir(self, kind: str) -> list[Path]:
        """The folders that hold models of a kind (`checkpoints`, `loras`, ...), best first."""
        ...

    def checkpoint_path(self, name: str) -> Path:
        """The absolute path of a checkpoint. Raises FileNotFoundError where this pod has no such file."""
        ...

    def output_dir(self) -> Path:
        """Where files are written when no control plane takes them."""
        ...

    def loras_cache_dir(self) -> Path:
        """A folder for the LoRA cache, used by this process only."""
        ...


_host: Host | None = None
_comfy_host: Callable[[], Host] | None = None
_LOOK_EVERY_SECONDS = 0.25


def set_host(host: Host | None) -> None:
    """Choose the host of this process; None forgets it, so that the next use looks for ComfyUI again."""
    global _host
    _host = host


def offer_comfy_host(make: Callable[[], Host]) -> None:
    """Say how ComfyUI's host is made, for when the pack runs inside it; the package does so at import."""
    global _comfy_host
    _comfy_host = make


def current_host() -> Host:
    """The host that was set, else ComfyUI when the pack runs inside it. Raises RuntimeError outside both."""
    global _host
    if _host is None:
        if _comfy_host is None or importlib.util.find_spec("comfy") is None:
            raise RuntimeError("the Troupe nodes run in ComfyUI or in the embedded pod; neither is here")
        _host = _comfy_host()
    return _host


def pause(seconds: float) -> None:
    """Wait, and raise the host's interrupt exception as soon as the prompt is interrupted; 0 only looks.

    A sign of life: whoever waits so for its next try, or between two parts of a file, does not hang. Only for the
    thread that executes the prompt: on ComfyUI raising clears the flag.
    """
    host = current_host()
    until = time.monotonic() + seconds
    while True:
        host.raise_if_interrupted()
        state.beat()
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(_LOOK_EVERY_SECONDS, left))
