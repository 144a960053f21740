"""The body of ``POST /prompt``: checked before it goes out, because some shapes kill a pod's worker for good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from controlplane.errors import PodRefused

# Several node packs fail without a workflow in extra_pnginfo. The value is constant, so that the files that nodes
# embed it in depend on nothing but the graph.
WORKFLOW_STUB: Mapping[str, Any] = {"id": "troupe", "nodes": [], "links": []}


def sanitise(graph: Mapping[str, Any]) -> dict[str, Any]:
    """The graph with only what ComfyUI reads of each node: class_type, inputs, title.

    Raises PodRefused for a node without a class_type or an ``inputs`` dict, also an unreachable one: ComfyUI accepts
    such a graph and its worker dies of it. NaN and infinity are refused too, JSON has none.
    """
    if not graph:
        raise PodRefused("The graph is empty.")
    return {_checked_id(node_id): _checked_node(node_id, node) for node_id, node in graph.items()}


def prompt_body(graph: Mapping[str, Any], prompt_id: str, client_id: str, previews: bool = False) -> dict[str, Any]:
    """The whole body: our own ids, so that the prompt can be found again, and cheap ``previews`` or none."""
    if not prompt_id or not client_id:
        raise PodRefused("A prompt needs its own prompt_id and client_id.")
    return {
        "prompt": sanitise(graph),
        "prompt_id": prompt_id,
        "client_id": client_id,
        "extra_data": {
            "extra_pnginfo": {"workflow": dict(WORKFLOW_STUB)},
            "preview_method": "latent2rgb" if previews else "none",
        },
    }


def _checked_id(node_id: Any) -> str:
    if not isinstance(node_id, str) or not node_id:
        raise PodRefused(f"Node id {node_id!r} is not a non-empty text.")
    return node_id


def _checked_node(node_id: str, node: Any) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        raise PodRefused(f"Node {node_id} is not an object.")
    class_type, inputs = node.get("class_type"), node.get("inputs")
    if not isinstance(class_type, str) or not class_type:
        raise PodRefused(f"Node {node_id} has no class_type.")
    if not isinstance(inputs, Mapping):
        raise PodRefused(f"Node {node_id} ({class_type}) has no inputs.")
    clean: dict[str, Any] = {
        "class_type": class_type,
        "inputs": {_checked_id(name): _finite(node_id, value) for name, value in inputs.items()},
    }
    title = (node.get("_meta") or {}).get("title")
    if isinstance(title, str):
        clean["_meta"] = {"title": title}
    return clean


def _finite(node_id: str, value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise PodRefused(f"Node {node_id} has an input that is not a finite number.")
    if isinstance(value, Mapping):
        return {str(key): _finite(node_id, one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(node_id, one) for one in value]
    return value
