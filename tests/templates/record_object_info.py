"""Records what one ComfyUI says of the classes that the shipped templates use: types, ranges and choices, nothing else.

Run by hand, with COMFYUI_DIR and COMFYUI_PYTHON of the version to record:
``python -m tests.templates.record_object_info``
"""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from controlplane.workflows.catalog import Catalog
from tests.comfyui.server import start_comfyui
from tests.workflows.record_object_info import reduced

TEMPLATES = Path(__file__).parents[2] / "workflow_templates"
DATA = Path(__file__).with_name("data")


def classes() -> list[str]:
    """Every node class of every shipped template."""
    return sorted({name for one in Catalog.load(TEMPLATES).templates.values() for name in one.needs.nodes})


def asked(address: str, path: str) -> Any:
    """The JSON of one GET."""
    with urllib.request.urlopen(address + path, timeout=60) as answer:
        return json.load(answer)


def recorded_from(address: str) -> dict[str, Any]:
    """The reduced facts of a running ComfyUI on the classes that it has."""
    everything = asked(address, "/object_info")
    return {name: reduced(everything[name]) for name in classes() if name in everything}


def version_of(address: str) -> str:
    """ComfyUI's own version."""
    return str(asked(address, "/system_stats")["system"]["comfyui_version"])


def main() -> None:
    """Start the ComfyUI that the environment names without any pack, and write down what it says."""
    with tempfile.TemporaryDirectory() as base, start_comfyui(Path(base), packs={}) as comfyui:
        target = DATA / f"object_info_{version_of(comfyui.address)}.json"
        facts = recorded_from(comfyui.address)
    target.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sys.stdout.write(f"{target.name}: {', '.join(facts)}\n")


if __name__ == "__main__":
    main()
