"""Nodes that bring models in: checkpoints and LoRA files."""

from __future__ import annotations

from typing import Any

from ..host import pod_host
from ..models import Clip, Model, Vae, apply_lora


class CheckpointLoaderSimple:
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load_checkpoint"
    CATEGORY = "loaders"
    DESCRIPTION = "Loads a sketch base checkpoint."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"ckpt_name": (pod_host().folders.model_files("checkpoints"),)}}

    def load_checkpoint(self, ckpt_name: str) -> tuple[Model, Clip, Vae]:
        host = pod_host()
        return host.checkpoints.load(host.checkpoint_path(ckpt_name))


class LoraLoader:
    RETURN_TYPES = ("MODEL", "CLIP")
    FUNCTION = "load_lora"
    CATEGORY = "loaders"
    DESCRIPTION = "Applies a LoRA file of this pod to a model and its text encoders."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        strength = ("FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01})
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "lora_name": (pod_host().folders.model_files("loras"),),
                "strength_model": strength,
                "strength_clip": strength,
            }
        }

    def load_lora(
        self, model: Model, clip: Clip, lora_name: str, strength_model: float, strength_clip: float
    ) -> tuple[Model, Clip]:
        from safetensors.torch import load_file

        state_dict = load_file(pod_host().folders.model_path("loras", lora_name))
        patched_model, patched_clip, _, _ = apply_lora(model, clip, state_dict, strength_model, strength_clip)
        return patched_model, patched_clip


NODES = {"CheckpointLoaderSimple": CheckpointLoaderSimple, "LoraLoader": LoraLoader}
