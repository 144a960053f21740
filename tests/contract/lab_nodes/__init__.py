"""Nodes that misbehave on purpose, for the contract suite; one pack that runs in ComfyUI and in the embedded pod."""

from __future__ import annotations

import time
from typing import Any

from PIL import Image


def _progress(value: int, total: int, preview: Image.Image | None) -> None:
    """Progress by the host's own means: ComfyUI's bar, or the embedded pod's host."""
    try:
        from comfy.utils import ProgressBar  # type: ignore[import-not-found]
    except ImportError:
        from comfy_nodes.host import current_host

        current_host().progress(value, total, preview)
        return
    ProgressBar(total).update_absolute(value, total, None if preview is None else ("JPEG", preview, 512))


def _check() -> None:
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted  # type: ignore[import-not-found]
    except ImportError:
        from comfy_nodes.host import current_host

        current_host().raise_if_interrupted()
        return
    throw_exception_if_processing_interrupted()


class _ImageNode:
    RETURN_TYPES: tuple[str, ...] = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "lab"


class LabSleep(_ImageNode):
    """Takes its time: with progress, only looking for interrupts, or deaf to everything."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "steps": ("INT", {"default": 3, "min": 0, "max": 100000}),
                "step_seconds": ("FLOAT", {"default": 0.1, "min": 0.0, "max": 100.0}),
                "mode": (["progress", "progress_preview", "check", "deaf"],),
                "salt": ("INT", {"default": 0, "min": 0, "max": 2**53}),
            }
        }

    def run(self, image: Any, steps: int, step_seconds: float, mode: str, salt: int) -> tuple[Any]:
        preview = Image.new("RGB", (64, 64), (200, 40, 40)) if mode == "progress_preview" else None
        for step in range(steps):
            time.sleep(step_seconds)
            if mode.startswith("progress"):
                _progress(step + 1, steps, preview)
            elif mode == "check":
                _check()
        return (image,)


class LabFail(_ImageNode):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "kind": (["value", "sysexit", "keyboard"],)}}

    def run(self, image: Any, kind: str) -> tuple[Any]:
        if kind == "sysexit":
            raise SystemExit(3)
        if kind == "keyboard":
            raise KeyboardInterrupt
        raise ValueError("lab failure")


class LabHidden(_ImageNode):
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        hidden = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "uid": "UNIQUE_ID", "dyn": "DYNPROMPT"}
        return {"required": {"image": ("IMAGE",)}, "hidden": hidden}

    def run(self, image: Any, prompt: Any, extra_pnginfo: Any, uid: str, dyn: Any) -> dict[str, Any]:
        seen = {"prompt_keys": sorted(prompt), "extra_pnginfo": extra_pnginfo, "uid": uid, "dyn": type(dyn).__name__}
        return {"ui": {"text": [str(seen)], "shape": [list(image.shape)]}, "result": (image,)}


class LabValidate(_ImageNode):
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "name": ("STRING", {"default": "ok"})}}

    @classmethod
    def VALIDATE_INPUTS(cls, name: str) -> bool | str:
        if name == "boom":
            raise RuntimeError("validate exploded")
        return True if name == "ok" else f"name must be ok, got {name}"

    def run(self, image: Any, name: str) -> tuple[Any]:
        return (image,)


class LabBadUI(_ImageNode):
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "kind": (["tensor", "string", "nonlist"],)}}

    def run(self, image: Any, kind: str) -> dict[str, Any]:
        value = {"tensor": [image], "string": "abc", "nonlist": 7}[kind]
        return {"ui": {"lab": value}, "result": (image,)}


class LabChanged:
    """Says itself whether it changed: `always` runs every time, any other token once."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "lab"
    OUTPUT_NODE = True
    runs = 0

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"token": ("STRING", {"default": "a"})}}

    @classmethod
    def IS_CHANGED(cls, token: str) -> Any:
        return float("nan") if token == "always" else token

    def run(self, token: str) -> dict[str, Any]:
        type(self).runs += 1
        return {"ui": {"runs": [type(self).runs]}}


class LabLists:
    """Splits a text into a list output; what follows runs once per item."""

    RETURN_TYPES = ("STRING",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "run"
    CATEGORY = "lab"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {"default": "a b c"})}}

    def run(self, text: str) -> tuple[list[str]]:
        return (text.split(),)


class LabShow:
    """Shows a text; `prefix` is optional, and `options` may be a literal list."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "lab"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"text": ("STRING", {"forceInput": True})},
            "optional": {"prefix": ("STRING", {"default": ""}), "options": ("LAB_OPTIONS",)},
        }

    def run(self, text: str, prefix: str = "none:", options: Any = None) -> dict[str, Any]:
        return {"ui": {"text": [prefix + text], "options": [options]}}


class LabGather:
    """Takes whole lists at once."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "lab"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {"forceInput": True})}}

    def run(self, text: list[str]) -> dict[str, Any]:
        return {"ui": {"count": [len(text)]}}


class LabOptions:
    """Offers more choices than an error message lists."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "lab"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"choice": ([f"choice {number}" for number in range(30)],)}}

    def run(self, choice: str) -> dict[str, Any]:
        return {"ui": {"text": [choice]}}


class LabLong:
    """Shows a very long text."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "lab"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"characters": ("INT", {"default": 10, "min": 0, "max": 100_000_000})}}

    def run(self, characters: int) -> dict[str, Any]:
        return {"ui": {"text": ["x" * characters]}}


NODE_CLASS_MAPPINGS = {
    name: value for name, value in list(globals().items()) if name.startswith("Lab") and isinstance(value, type)
}
