"""The bench's own node pack, for ComfyUI and the embedded pod: work that takes a set time and leaves the cores free."""

from __future__ import annotations

import time
from typing import Any


class BenchWork:
    """Keeps the worker busy for so many seconds, as a GPU would, and hands the image on."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "bench"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "seconds": ("FLOAT", {"default": 0.1, "min": 0.0, "max": 600.0, "step": 0.001}),
            }
        }

    def run(self, image: Any, seconds: float) -> tuple[Any]:
        time.sleep(seconds)
        return (image,)


NODE_CLASS_MAPPINGS = {"BenchWork": BenchWork}
