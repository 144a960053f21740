"""Nodes that misbehave, for a real ComfyUI: some inside our pack's boundary, some without it."""

from __future__ import annotations

import sys
import time
from typing import Any


def _boundary() -> Any:
    """Our pack's boundary module, under whatever name ComfyUI gave the pack."""
    return next(module for name, module in sys.modules.items() if name.endswith("troupe.boundary"))


class _Trouble:
    RETURN_TYPES = ()
    FUNCTION = "make"
    OUTPUT_NODE = True
    CATEGORY = "Trouble"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls, **_inputs: Any) -> float:
        return float("nan")


class TroubleExit(_Trouble):
    def make(self) -> None:
        raise SystemExit(2)


class TroubleContainedExit(_Trouble):
    def make(self) -> Any:
        def exits() -> None:
            raise SystemExit(2)

        return _boundary().contained(exits)()


class TroubleTensorInUi(_Trouble):
    def make(self) -> Any:
        import torch

        return {"ui": _boundary().ui(values=[torch.zeros(1)])}


class TroubleRaise(_Trouble):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"words": ("STRING", {"default": ""})}}

    def make(self, words: str) -> None:
        raise RuntimeError(words)


class TroubleSleep(_Trouble):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seconds": ("FLOAT", {"default": 1.0})}}

    def make(self, seconds: float) -> dict[str, Any]:
        time.sleep(seconds)
        return {}


NODE_CLASS_MAPPINGS = {
    cls.__name__: cls for cls in (TroubleExit, TroubleContainedExit, TroubleTensorInUi, TroubleRaise, TroubleSleep)
}
