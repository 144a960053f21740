"""The node classes this pod can run, and how they describe themselves in /object_info."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

NodeClass = Any  # V1 node classes share no base class; they are read by their attributes


class NodeRegistry:
    """Node classes by name. Built-in names win over packs, as in ComfyUI."""

    def __init__(self) -> None:
        self.classes: dict[str, NodeClass] = {}
        self._display_names: dict[str, str] = {}
        self._modules: dict[str, str] = {}

    def add(self, classes: Mapping[str, NodeClass], display_names: Mapping[str, str], module: str) -> None:
        for name, node_class in classes.items():
            if self._modules.get(name) == "nodes":
                continue
            self.classes[name] = node_class
            self._modules[name] = module
            if name in display_names:
                self._display_names[name] = display_names[name]

    def add_pack(self, pack: ModuleType, module: str) -> None:
        self.add(pack.NODE_CLASS_MAPPINGS, getattr(pack, "NODE_DISPLAY_NAME_MAPPINGS", {}), module)

    def describe(self, name: str) -> dict[str, Any]:
        """One entry of /object_info: inputs with their ranges, outputs, names, category."""
        node_class = self.classes[name]
        inputs = node_class.INPUT_TYPES()
        outputs = list(node_class.RETURN_TYPES)
        info: dict[str, Any] = {
            "input": inputs,
            "input_order": {group: list(fields) for group, fields in inputs.items()},
            "output": outputs,
            "output_is_list": list(getattr(node_class, "OUTPUT_IS_LIST", [False] * len(outputs))),
            "output_name": list(getattr(node_class, "RETURN_NAMES", outputs)),
            "name": name,
            "display_name": self._display_names.get(name, name),
            "description": getattr(node_class, "DESCRIPTION", ""),
            "python_module": self._modules[name],
            "category": getattr(node_class, "CATEGORY", "sd"),
            "output_node": bool(getattr(node_class, "OUTPUT_NODE", False)),
        }
        if hasattr(node_class, "OUTPUT_TOOLTIPS"):
            info["output_tooltips"] = list(node_class.OUTPUT_TOOLTIPS)
        for flag in ("DEPRECATED", "EXPERIMENTAL"):
            if getattr(node_class, flag, False):
                info[flag.lower()] = True
        return info


def import_pack(folder: Path) -> ModuleType:
    """Imports a node pack from a folder with `__init__.py`, under a name that cannot meet another package."""
    name = f"troupe_pack_{folder.name}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is not a node pack")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def full_registry(packs: list[Path]) -> NodeRegistry:
    """The embedded pod's own nodes, the project's node pack, then the packs of the given folders."""
    registry = NodeRegistry()
    registry.add_pack(importlib.import_module("pod_images.embedded.nodes"), "nodes")
    registry.add_pack(importlib.import_module("comfy_nodes"), "custom_nodes.troupe")
    for folder in packs:
        registry.add_pack(import_pack(folder), f"custom_nodes.{folder.name}")
    return registry
