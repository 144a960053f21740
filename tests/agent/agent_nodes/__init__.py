"""A node that is silent but alive, as a training is: it says nothing to ComfyUI and beats through our pack."""

from __future__ import annotations

import sys
import time
from typing import Any


class AgentSilentTraining:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "lab"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "seconds": ("FLOAT", {"default": 1.0, "max": 1000.0})}}

    def run(self, image: Any, seconds: float) -> tuple[Any]:
        # ComfyUI gave the pack a name of its own.
        state = next(module for name, module in sys.modules.items() if name.endswith("troupe.state"))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.5)
            state.beat()
        return (image,)


NODE_CLASS_MAPPINGS = {"AgentSilentTraining": AgentSilentTraining}
