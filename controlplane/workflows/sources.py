"""Files that carry a graph: an API export, a ``{"prompt": ...}`` wrapper, or a picture with one in its metadata."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError

from controlplane.domain.texts import is_storable
from controlplane.errors import InvalidTemplate

WAY_OUT = "In ComfyUI: Workflow > Export (API), and import that file"
UI_FORMAT = f"This is a workflow as ComfyUI's editor saves it, which no server can run. {WAY_OUT}."

MAX_FILE_BYTES = 32 * 2**20
MAX_GRAPH_BYTES = 2 * 2**20
MAX_NODES = 500
MAX_INPUTS = 200
MAX_NAME = 200
MAX_TEXT = 50_000
MAX_PIXELS = 64_000_000
MAX_DEPTH = 8

PICTURES = {"PNG": ".png", "WEBP": ".webp", "JPEG": ".jpg"}
EXIF_POINTER = 0x8769
USER_COMMENT = 0x9286


@dataclass(frozen=True)
class Source:
    """A graph as it came, with the file it came in. ``suffix`` is ``.json`` or a picture's."""

    graph: Mapping[str, Any]
    original: bytes
    suffix: str


def read(data: bytes) -> Source:
    """Find the graph in a file; InvalidTemplate says what the file is instead, and the way out."""
    if len(data) > MAX_FILE_BYTES:
        raise InvalidTemplate(f"The file has {len(data)} bytes; at most {MAX_FILE_BYTES} are read.")
    head = data.lstrip()[:1]
    if head in (b"{", b"[", b"\xef"):
        return Source(api_graph(_parsed(data)), data, ".json")
    return _from_picture(data)


def api_graph(raw: Any) -> dict[str, Any]:
    """The graph in API format within a parsed JSON value, checked for shape and size; InvalidTemplate otherwise."""
    if isinstance(raw, Mapping) and isinstance(raw.get("prompt"), Mapping) and "class_type" not in raw["prompt"]:
        raw = raw["prompt"]
    if not isinstance(raw, Mapping) or not raw:
        raise InvalidTemplate(f"There is no graph in this JSON. {WAY_OUT}.")
    inner = raw.get("workflow")
    if isinstance(raw.get("nodes"), list) or (isinstance(inner, Mapping) and isinstance(inner.get("nodes"), list)):
        raise InvalidTemplate(UI_FORMAT)
    if len(raw) > MAX_NODES:
        raise InvalidTemplate(f"The graph has {len(raw)} nodes; at most {MAX_NODES} are taken.")
    graph = {str(node_id): _node(str(node_id), node) for node_id, node in raw.items()}
    if len(json.dumps(graph)) > MAX_GRAPH_BYTES:
        raise InvalidTemplate(f"The graph is larger than {MAX_GRAPH_BYTES} bytes.")
    return graph


def _node(node_id: str, raw: Any) -> dict[str, Any]:
    """Only what ComfyUI reads of a node, and its title; older exports carry more (``is_changed``)."""
    class_type = raw.get("class_type") if isinstance(raw, Mapping) else None
    if not isinstance(class_type, str) or not class_type:
        raise InvalidTemplate(f"Node {node_id[:80]!r} has no class_type, so this is no API export. {WAY_OUT}.")
    inputs = raw.get("inputs")
    if not isinstance(inputs, Mapping):
        raise InvalidTemplate(f"Node {node_id[:80]!r} has no inputs object, so this is no API export. {WAY_OUT}.")
    meta = raw.get("_meta")
    title = meta.get("title") if isinstance(meta, Mapping) else None
    node: dict[str, Any] = {"class_type": class_type, "inputs": {str(name): value for name, value in inputs.items()}}
    if isinstance(title, str) and title:
        node["_meta"] = {"title": title[:MAX_NAME]}
    _check_node(node_id, node)
    return node


def _check_node(node_id: str, node: Mapping[str, Any]) -> None:
    names = [node_id, node["class_type"], *node["inputs"]]
    if len(node["inputs"]) > MAX_INPUTS or any(not name or len(name) > MAX_NAME for name in names):
        raise InvalidTemplate(f"Node {node_id[:80]!r} has too many inputs, or an empty or over-long name.")
    for name, value in node["inputs"].items():
        reason = _fault(value)
        if reason:
            raise InvalidTemplate(f"Input {name!r} of node {node_id!r} {reason}.")
    texts = (*names, node.get("_meta", {}).get("title", ""))
    if not all(is_storable(text) for text in texts):
        raise InvalidTemplate(f"Node {node_id[:80]!r} holds a character that cannot be stored.")


def _fault(value: Any, depth: int = 0) -> str:
    """Why an input's value cannot be kept; empty where it can."""
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number"
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            return f"has {len(value)} characters; at most {MAX_TEXT} are taken"
        return "" if is_storable(value) else "holds a character that cannot be stored"
    if isinstance(value, Mapping | list):
        if depth >= MAX_DEPTH:
            return "is nested too deeply"
        inner = [*value, *value.values()] if isinstance(value, Mapping) else value
        return next((reason for one in inner if (reason := _fault(one, depth + 1))), "")
    return ""


def _parsed(data: bytes | str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data)
    except UnicodeDecodeError:
        raise InvalidTemplate("The file is neither a picture nor JSON in UTF-8.") from None
    except RecursionError:
        raise InvalidTemplate("The JSON is nested too deeply.") from None
    except ValueError as error:
        raise InvalidTemplate(f"The file is not JSON: {error}.") from None


def _from_picture(data: bytes) -> Source:
    texts, suffix = _texts_of(data)
    if "prompt" in texts:
        return Source(api_graph(_parsed(texts["prompt"])), data, suffix)
    if "workflow" in texts:
        raise InvalidTemplate(f"The picture carries only the editor's workflow, which no server can run. {WAY_OUT}.")
    raise InvalidTemplate(
        "The picture carries no graph: it was saved with metadata off, or by a program or site that strips it. "
        f"{WAY_OUT}."
    )


def _texts_of(data: bytes) -> tuple[dict[str, str], str]:
    """The texts that a picture carries, by name, and its file suffix."""
    try:
        with Image.open(io.BytesIO(data), formats=tuple(PICTURES)) as picture:
            suffix = PICTURES[str(picture.format)]
            texts = _info_of(picture)
            if "prompt" not in texts and suffix == ".png" and picture.width * picture.height <= MAX_PIXELS:
                picture.load()  # texts behind the pixels are only read with them
                texts.update(_info_of(picture))
            for text in _exif_texts(picture):
                name, colon, value = text.partition(":")
                if colon and name.strip().lower() in ("prompt", "workflow"):
                    texts.setdefault(name.strip().lower(), value.strip())
    except UnidentifiedImageError:
        raise InvalidTemplate("The file is neither JSON nor a PNG, WebP or JPEG picture.") from None
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise InvalidTemplate(f"The picture cannot be read: {error}.") from None
    return texts, suffix


def _info_of(picture: Image.Image) -> dict[str, str]:
    return {str(key): value for key, value in picture.info.items() if isinstance(value, str)}


def _exif_texts(picture: Image.Image) -> Iterator[str]:
    exif = picture.getexif()
    values = [*exif.values(), exif.get_ifd(EXIF_POINTER).get(USER_COMMENT)]
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, bytes):
            # A UserComment opens with eight bytes that name its encoding.
            body = value[8:] if value[:7] in (b"ASCII\0\0", b"UNICODE") else value
            yield body.decode("utf-8", "replace").strip("\0")
