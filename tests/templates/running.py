"""Shipped templates on a running ComfyUI: bound, made small enough for a CPU, run, and their files read back."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from controlplane.workflows.binding import bind
from controlplane.workflows.catalog import Catalog
from controlplane.workflows.graph import is_link

from .record_object_info import TEMPLATES

CATALOG = Catalog.load(TEMPLATES)
Graph = dict[str, Any]


def bound(name: str, values: Mapping[str, Any], **fields: Any) -> Graph:
    """A shipped template's graph; ``fields`` (``n10_width=64``) go past the manifest's ranges, which are for GPUs."""
    graph: Graph = json.loads(json.dumps(bind(CATALOG.template(name), values).graph))
    for place, value in fields.items():
        node, field = place.removeprefix("n").split("_", 1)
        graph[node]["inputs"][field] = value
    return graph


def part(graph: Graph, outputs: Iterable[str]) -> Graph:
    """Only the nodes that these output nodes need."""
    wanted: set[str] = set()
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node not in wanted:
            wanted.add(node)
            waiting += [value[0] for value in graph[node]["inputs"].values() if is_link(value)]
    return {node: graph[node] for node in graph if node in wanted}


def pixels(content: bytes) -> NDArray[np.int64]:
    """A picture as [height, width, 3] of 0..255."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(np.int64)


def frames(content: bytes) -> NDArray[np.int64]:
    """A video as [frames, height, width, 3] of 0..255."""
    with av.open(io.BytesIO(content)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.int64)
