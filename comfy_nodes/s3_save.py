"""S3Save: writes images or a video, hands them to the store of whoever owns this ComfyUI, and says where they are."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .boundary import contained, never_the_same, ui
from .control_plane import ControlPlane, Upload, digest_of, link_from_environment
from .host import Host, current_host, pause
from .media import IMAGE_FORMATS, VIDEO_FORMATS, Encoded, encode_image, encode_video, pixels_of
from .own_bucket import OwnBucket, bucket_from_environment
from .provenance import recipe_of

if TYPE_CHECKING:
    from torch import Tensor

MAX_NAME_LENGTH = 80


class S3Save:
    """A V1 output node: one asset for each image of the batch, or the whole batch as one video."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = "Troupe"
    DESCRIPTION = (
        "Saves images or a video to the project's store; without a control plane to ComfyUI's output folder, and to "
        "your own bucket where TROUPE_S3_BUCKET names one."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE",),
                "name": ("STRING", {"default": "image"}),
                "format": ([*IMAGE_FORMATS, *VIDEO_FORMATS],),
            },
            "optional": {
                "fps": ("FLOAT", {"default": 8.0, "min": 0.5, "max": 240.0, "step": 0.5}),
                "quality": ("INT", {"default": 90, "min": 1, "max": 100}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    @classmethod
    def IS_CHANGED(cls, **_inputs: Any) -> float:
        """NaN, so that it always runs: a cached result would name the first job's assets."""
        return never_the_same()

    @contained
    def save(
        self,
        images: Tensor,
        name: str,
        format: str,
        fps: float = 8.0,
        quality: int = 90,
        prompt: Mapping[str, Any] | None = None,
        extra_pnginfo: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Answers `{"ui": {"assets": [...]}}`; without a control plane ComfyUI's own `images`, with a bucket both.

        Raises ValueError for a bad shape or format, EncodingError, and TransportError or BucketError once the retries
        are used up.
        """
        host = current_host()
        link = link_from_environment()
        # The UI workflow is the artist's own: it is embedded on a desktop and never leaves with a job's assets.
        extra = {} if link is not None else {key: json.dumps(value) for key, value in (extra_pnginfo or {}).items()}
        recipe = recipe_of(prompt)
        pixels = pixels_of(images)
        if format in VIDEO_FORMATS:
            files = [encode_video(pixels, format, fps, quality, recipe)]
        else:
            files = [encode_image(frame, format, quality, recipe, extra) for frame in pixels]
        stem = safe_name(name)
        if link is not None:
            return {"ui": ui(assets=_upload(host, link, stem, files))}
        # The artist's own copy first: a bucket that cannot be reached costs no picture.
        shown = _write(host, stem, files)
        bucket = bucket_from_environment()
        return {"ui": shown if bucket is None else {**shown, **ui(assets=_put(host, bucket, stem, files))}}


def safe_name(name: str) -> str:
    """A file name stem of letters, digits, `-`, `_` and single dots, whatever was typed."""
    stem = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)
    return re.sub(r"\.{2,}", ".", stem).strip("-._")[:MAX_NAME_LENGTH] or "image"


class _OutputNumbers:
    """Numbers a prompt's outputs from 0 on, over all its S3Save nodes: the number is part of an upload's identity."""

    PROMPTS_KEPT = 64

    def __init__(self) -> None:
        self._next: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, prompt_id: str, count: int) -> int:
        """The first of `count` fresh numbers."""
        with self._lock:
            first = self._next.pop(prompt_id, 0)
            self._next[prompt_id] = first + count
            while len(self._next) > self.PROMPTS_KEPT:
                self._next.popitem(last=False)
            return first


_output_numbers = _OutputNumbers()


def _upload(host: Host, link: ControlPlane, stem: str, files: list[Encoded]) -> list[dict[str, Any]]:
    prompt_id = host.prompt_id()
    first = _output_numbers.take(prompt_id, len(files))
    assets = []
    for index, file in enumerate(files, start=first):
        pause(0)
        name = f"{stem}-{index + 1}.{file.extension}"
        upload = Upload(
            name=name,
            media_type=file.media_type,
            content=file.content,
            kind="output",
            index=index,
            width=file.width,
            height=file.height,
            duration=file.duration,
            fps=file.fps,
            frames=file.frames,
        )
        stored = link.upload(prompt_id, upload, pause)
        assets.append({"id": stored.asset_id, "url": stored.url, "name": name, **_facts(file)})
    return assets


def _put(host: Host, bucket: OwnBucket, stem: str, files: list[Encoded]) -> list[dict[str, Any]]:
    """The day and the prompt are in every key: no run of a graph takes the place of another's files."""
    prompt_id = host.prompt_id()
    first = _output_numbers.take(prompt_id, len(files))
    folder = datetime.now(UTC).strftime("%Y-%m-%d")
    assets = []
    for index, file in enumerate(files, start=first):
        pause(0)
        name = f"{stem}-{safe_name(prompt_id)[:8]}-{index + 1}.{file.extension}"
        key = bucket.key(f"{folder}/{name}")
        bucket.put(key, file.content, file.media_type)
        assets.append({"url": bucket.url(key), "bucket": bucket.name, "key": key, "name": name, **_facts(file)})
    return assets


def _facts(file: Encoded) -> dict[str, Any]:
    sha256, size = digest_of(file.content)
    return {
        "media_type": file.media_type,
        "bytes": size,
        "sha256": sha256,
        "width": file.width,
        "height": file.height,
        "duration": file.duration,
        "fps": file.fps,
        "frames": file.frames,
    }


def _write(host: Host, stem: str, files: list[Encoded]) -> dict[str, list[Any]]:
    folder = host.output_dir()
    folder.mkdir(parents=True, exist_ok=True)
    names = [_write_new(folder, stem, file) for file in files]
    images = [{"filename": name, "subfolder": "", "type": "output"} for name in names]
    if files[0].frames is not None:
        return ui(images=images, animated=[True])
    return ui(images=images)


def _write_new(folder: Path, stem: str, file: Encoded) -> str:
    """Write under the next free number, as SaveImage names its files; never over a file that is there."""
    taken = (re.fullmatch(rf"{re.escape(stem)}_(\d+)_\..+", path.name) for path in folder.iterdir())
    number = max((int(match[1]) for match in taken if match), default=0) + 1
    while True:
        name = f"{stem}_{number:05}_.{file.extension}"
        try:
            with (folder / name).open("xb") as target:
                target.write(file.content)
            return name
        except FileExistsError:
            number += 1
