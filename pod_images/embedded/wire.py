"""What this pod says on /ws: the JSON events and the binary preview frames, in ComfyUI's shapes."""

from __future__ import annotations

import io
import json
import struct
import time
from typing import Any

from PIL import Image

Event = dict[str, Any]

PREVIEW_IMAGE = 1
PREVIEW_IMAGE_WITH_METADATA = 4
JPEG = 1
MAX_PREVIEW_SIDE = 512


def event(kind: str, **data: Any) -> Event:
    return {"type": kind, "data": data}


def stamped(kind: str, **data: Any) -> Event:
    """An event that carries the time in milliseconds, as everything in a history entry's messages does."""
    return event(kind, **data, timestamp=int(time.time() * 1000))


def status(remaining: int) -> Event:
    return event("status", status={"exec_info": {"queue_remaining": remaining}})


def jpeg_preview(picture: Image.Image) -> bytes:
    """A picture as JPEG, at most 512 pixels on its longer side."""
    picture = picture.convert("RGB")
    picture.thumbnail((MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def preview_frame(jpeg: bytes) -> bytes:
    return struct.pack(">II", PREVIEW_IMAGE, JPEG) + jpeg


def preview_frame_with_metadata(jpeg: bytes, prompt_id: str, node_id: str) -> bytes:
    """The newer preview frame, which says whose picture it is."""
    metadata = {
        "node_id": node_id,
        "prompt_id": prompt_id,
        "display_node_id": node_id,
        "parent_node_id": None,
        "real_node_id": node_id,
        "image_type": "image/jpeg",
    }
    encoded = json.dumps(metadata).encode()
    return struct.pack(">II", PREVIEW_IMAGE_WITH_METADATA, len(encoded)) + encoded + jpeg
