"""The Troupe node pack: the same V1 node classes for ComfyUI (`custom_nodes/troupe`) and for the embedded pod.

Importing it imports neither torch nor ComfyUI; both are looked for when a node runs.
"""

from __future__ import annotations

from typing import Any

from .character_lora_loader import CharacterLoRALoader
from .comfy_host import ComfyHost
from .host import offer_comfy_host
from .prompt_travel_sampler import PromptTravelSampler
from .s3_save import S3Save
from .train_lora import TrainLoRA

offer_comfy_host(ComfyHost)

NODE_CLASS_MAPPINGS: dict[str, type[Any]] = {
    "CharacterLoRALoader": CharacterLoRALoader,
    "PromptTravelSampler": PromptTravelSampler,
    "S3Save": S3Save,
    "TrainLoRA": TrainLoRA,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "CharacterLoRALoader": "Character LoRA (Troupe)",
    "PromptTravelSampler": "Prompt travel (Troupe)",
    "S3Save": "Save to store (Troupe)",
    "TrainLoRA": "Train character LoRA (Troupe)",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
