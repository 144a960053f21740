"""No nodes: takes from this ComfyUI's Python what ComfyUI does not bring (diffusers, peft), as on a desktop."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

LACKING = frozenset({"diffusers", "peft", "accelerate"})


class Lacking(MetaPathFinder):
    """Asked before all others; says that these packages are not there."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name.partition(".")[0] in LACKING:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return None


sys.meta_path.insert(0, Lacking())
NODE_CLASS_MAPPINGS: dict[str, Any] = {}
