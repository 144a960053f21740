"""The Troupe node pack: the same V1 node classes for ComfyUI (`custom_nodes/troupe`) and for the embedded pod.

Importing it imports neither torch nor ComfyUI where they are not loaded yet; both are looked for when a node runs. A
part that cannot be imported or registered is left out, logged, and told by `/troupe/state`.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

from . import state

_log = logging.getLogger(__name__)
# node class: its module, and what ComfyUI's menu calls it
_NODES = {
    "CharacterLoRALoader": ("character_lora_loader", "Character LoRA (Troupe)"),
    "PromptTravelSampler": ("prompt_travel_sampler", "Prompt travel (Troupe)"),
    "S3Save": ("s3_save", "Save to store (Troupe)"),
    "TrainLoRA": ("train_lora", "Train character LoRA (Troupe)"),
}

NODE_CLASS_MAPPINGS: dict[str, type[Any]] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}


def _part(name: str) -> Any:
    return importlib.import_module(f".{name}", __name__)


def _without(part: str, error: Exception) -> None:
    _log.error("Troupe runs without %s", part, exc_info=error)
    state.note_problem(part, f"{type(error).__name__}: {error}")


def _load_nodes() -> None:
    for name, (module, title) in _NODES.items():
        try:
            NODE_CLASS_MAPPINGS[name] = getattr(_part(module), name)
            NODE_DISPLAY_NAME_MAPPINGS[name] = title
        except Exception as error:  # one part must not take the others with it
            _without(name, error)


def _join_comfyui() -> None:
    """In ComfyUI: the host, the sketch base among its models, and the pack's route."""
    _part("host").offer_comfy_host(_part("comfy_host").ComfyHost)
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is None:
        return
    try:
        _part("comfy_sketch").register()
    except Exception as error:  # one part must not take the others with it
        _without("the sketch base", error)
    try:
        _part("comfy_routes").serve(server)
    except Exception as error:  # the same
        _without("/troupe/state", error)


_load_nodes()
_join_comfyui()

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
