"""The chaos run's node pack: a picture whose colours tell whose it is, and a journal of every prompt that ran here."""

from __future__ import annotations

import json
import os
import time
from typing import Any

SIDE = 16
JOURNAL = "TROUPE_CHAOS_JOURNAL"


def colour_of(seed: int, index: int) -> tuple[int, int, int]:
    """The colour of the ``index``-th picture of a seed: no two pictures of one run share one. 0..255 each."""
    number = seed * 4 + index
    return number >> 16 & 255, number >> 8 & 255, number & 255


class ChaosPicture:
    """``count`` plain pictures in the colours of ``seed``, after ``seconds`` of work that an interrupt ends."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "paint"
    CATEGORY = "chaos"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**22}),
                "count": ("INT", {"default": 1, "min": 1, "max": 4}),
                "seconds": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 60.0}),
                "text": ("STRING", {"default": ""}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, **_inputs: Any) -> float:
        return float("nan")

    def paint(self, seed: int, count: int, seconds: float, text: str) -> tuple[Any]:
        import torch

        from comfy_nodes.host import current_host, pause

        host = current_host()
        note("ran", host.prompt_id(), seed)
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0:
            host.progress(int(1000 * (seconds - rest)), int(1000 * seconds))
            pause(min(0.1, rest))
        rows = [torch.tensor(colour_of(seed, index)).div(255.0).expand(SIDE, SIDE, 3) for index in range(count)]
        return (torch.stack(rows),)


def note(what: str, prompt_id: str, seed: int) -> None:
    """Write down what happens, so that it outlives this process."""
    path = os.environ.get(JOURNAL)
    if path:
        with open(path, "a", encoding="utf-8") as journal:
            journal.write(json.dumps({"what": what, "prompt_id": prompt_id, "seed": seed, "at": time.time()}) + "\n")


NODE_CLASS_MAPPINGS = {"ChaosPicture": ChaosPicture}
