"""The host on ComfyUI: progress, interrupts, LoRA patches, sampling and folders through ComfyUI's own functions."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .host import Clip, Conditioning, Latent, Model, SampleCallback

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PREVIEW_PIXELS = 512


def _module(name: str) -> Any:
    # ComfyUI is not installed where this package is type-checked, and importing it starts its devices.
    return importlib.import_module(name)


class ComfyHost:
    """`Host` for ComfyUI 0.3.64 to 0.8.0; every import of ComfyUI happens in the method that needs it."""

    def prompt_id(self) -> str:
        context = _module("comfy_execution.utils").get_executing_context()
        if context is not None:
            return str(context.prompt_id)
        return str(_module("server").PromptServer.instance.last_prompt_id)

    def progress(self, value: int, total: int, preview: Image | None = None) -> None:
        self.raise_if_interrupted()
        shown = None if preview is None else ("JPEG", preview, PREVIEW_PIXELS)
        _module("comfy.utils").ProgressBar(total).update_absolute(value, total, shown)

    def interrupted(self) -> bool:
        return bool(_module("comfy.model_management").processing_interrupted())

    def raise_if_interrupted(self) -> None:
        _module("comfy.model_management").throw_exception_if_processing_interrupted()

    def free_memory(self) -> None:
        management = _module("comfy.model_management")
        management.unload_all_models()
        management.soft_empty_cache()

    def vram_bytes(self) -> int:
        management = _module("comfy.model_management")
        device = management.get_torch_device()
        # On a CPU ComfyUI answers with the main memory.
        return 0 if device.type == "cpu" else int(management.get_total_memory(device))

    def apply_lora(
        self, model: Model, clip: Clip, state_dict: Mapping[str, Tensor], strength: float
    ) -> tuple[Model, Clip, int, int]:
        lora = _module("comfy.lora")
        key_map: dict[str, Any] = {}
        if model is not None:
            key_map = lora.model_lora_keys_unet(model.model, key_map)
        if clip is not None:
            key_map = lora.model_lora_keys_clip(clip.cond_stage_model, key_map)
        converted = _module("comfy.lora_convert").convert_lora(dict(state_dict))
        weights = {} if model is None else model.model.state_dict()
        weights |= {} if clip is None else clip.cond_stage_model.state_dict()
        if not _fits(converted, key_map, weights):
            return model, clip, 0, _modules_in(converted)
        patches = lora.load_lora(converted, key_map, log_missing=False)
        applied: set[Any] = set()
        patched_model, patched_clip = model, clip
        if model is not None:
            patched_model = model.clone()
            applied.update(patched_model.add_patches(patches, strength))
        if clip is not None:
            patched_clip = clip.clone()
            applied.update(patched_clip.add_patches(patches, strength))
        return patched_model, patched_clip, len(applied), _modules_in(converted)

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
        """Euler with the normal schedule, as the sketch base's templates use."""
        sampling = _module("comfy.sample")
        start = sampling.fix_empty_latent_channels(model, latent["samples"])
        noise = sampling.prepare_noise(start, seed, latent.get("batch_index"))

        def told(step: int, _denoised: Any, _noisy: Any, total: int) -> None:
            self.raise_if_interrupted()
            if callback is not None:
                callback(step + 1, total)

        samples = sampling.sample(
            model, noise, steps, cfg, "euler", "normal", positive, negative, start,
            denoise=denoise, noise_mask=latent.get("noise_mask"), callback=told, disable_pbar=True, seed=seed,
        )  # fmt: skip
        return {**latent, "samples": samples}

    def blend(self, first: Conditioning, second: Conditioning, weight: float) -> Conditioning:
        return _module("nodes").ConditioningAverage().addWeighted(second, first, weight)[0]

    def models_dir(self, kind: str) -> list[Path]:
        return [Path(folder) for folder in _module("folder_paths").get_folder_paths(kind)]

    def checkpoint_path(self, name: str) -> Path:
        found = _module("folder_paths").get_full_path("checkpoints", name)
        if found is None:
            raise FileNotFoundError(f"this pod has no checkpoint named {name}")
        return Path(found).resolve()

    def output_dir(self) -> Path:
        return Path(_module("folder_paths").get_output_directory())

    def loras_cache_dir(self) -> Path:
        given = os.environ.get("TROUPE_LORA_CACHE_DIR", "").strip()
        if given:
            return Path(given)
        # Beside models/loras, not in it: a cached LoRA belongs to one project and is nobody's to pick by name.
        return Path(_module("folder_paths").models_dir) / "troupe_loras"


def _fits(state_dict: Mapping[str, Tensor], key_map: Mapping[str, Any], weights: Mapping[str, Tensor]) -> bool:
    """Whether every LoRA layer that the model knows by name has the size of the model's own layer.

    Names alone do not tell bases apart: nearly two thirds of an SD1.5 LoRA are named as layers of SDXL are, and where
    a size is wrong ComfyUI only logs it. A LoRA of the loaded base fits everywhere.
    """
    for name, key in key_map.items():
        up, down = state_dict.get(f"{name}.lora_up.weight"), state_dict.get(f"{name}.lora_down.weight")
        # A key that is no text is a part of a weight; whole numbers are packed, a middle makes another size.
        weight = weights.get(key) if isinstance(key, str) else None
        if up is None or down is None or weight is None or not weight.is_floating_point():
            continue
        if f"{name}.lora_mid.weight" in state_dict or f"{name}.reshape_weight" in state_dict:
            continue
        if up.shape[0] != weight.shape[0] or down[0].numel() != math.prod(weight.shape[1:]):
            return False
    return True


def _modules_in(state_dict: Mapping[str, Any]) -> int:
    """How many modules a LoRA file changes: each has one down, A or diff tensor."""
    ends = (".lora_down.weight", ".lora_A.weight", ".diff", ".diff_b")
    return sum(1 for key in state_dict if key.endswith(ends))
