"""S3Save: makes files of images, hands them to the store of whoever owns this ComfyUI, and says where they are."""

from __future__ import annotations

import functools
import json
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .boundary import contained, never_the_same, ui
from .control_plane import ControlPlane, Upload, digest_of, link_from_environment
from .hand_over import Parcel, hand_over
from .host import Host, current_host, pause
from .media import IMAGE_FORMATS, VIDEO_FORMATS, Measures, Pixels, encode_image, encode_video, measures_of, pixels_of
from .own_bucket import OwnBucket, bucket_from_environment
from .provenance import Recipe, recipe_of

if TYPE_CHECKING:
    from torch import Tensor

MAX_NAME_LENGTH = 80
REFERENCE_BYTES = 16


@dataclass(frozen=True)
class File:
    """A file to be: what it will be like, its encoder, and the bytes of the pixels that this holds."""

    measures: Measures
    encode: Callable[[], bytes]
    weight: int


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

        With a control plane the files are only promised: they are encoded and stored while the next prompt runs, and
        `GET /troupe/uploads/{prompt_id}` tells how far that is. Raises ValueError for a bad shape or format; without
        a control plane EncodingError and BucketError too.
        """
        host = current_host()
        link = link_from_environment()
        # The UI workflow is the artist's own: it is embedded on a desktop and never leaves with a job's assets.
        extra = {} if link is not None else {key: json.dumps(value) for key, value in (extra_pnginfo or {}).items()}
        files = _files(pixels_of(images), format, fps, quality, recipe_of(prompt), extra)
        stem = safe_name(name)
        if link is not None:
            return {"ui": ui(assets=_promise(host, link, stem, files))}
        made = [(file.measures, file.encode()) for file in files]
        # The artist's own copy first: a bucket that cannot be reached costs no picture.
        shown = _write(host, stem, made)
        bucket = bucket_from_environment()
        return {"ui": shown if bucket is None else {**shown, **ui(assets=_put(host, bucket, stem, made))}}


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


def _files(
    frames: list[Pixels], form: str, fps: float, quality: int, recipe: Recipe, extra: Mapping[str, str]
) -> list[File]:
    """One file for each frame, or all of them as one video. Raises ValueError for a form or fps there is not."""
    measures = measures_of(frames, form, fps)
    if form in VIDEO_FORMATS:
        encode = functools.partial(encode_video, frames, form, fps, quality, recipe)
        return [File(measures, encode, sum(frame.nbytes for frame in frames))]
    return [
        File(measures, functools.partial(encode_image, frame, form, quality, recipe, extra), frame.nbytes)
        for frame in frames
    ]


def _promise(host: Host, link: ControlPlane, stem: str, files: list[File]) -> list[dict[str, Any]]:
    """Queue the files for the store; each asset names its `upload`, a reference that nothing else has."""
    prompt_id = host.prompt_id()
    first = _output_numbers.take(prompt_id, len(files))
    assets = []
    try:
        for index, file in enumerate(files, start=first):
            pause(0)
            reference, name = secrets.token_hex(REFERENCE_BYTES), f"{stem}-{index + 1}.{file.measures.extension}"
            pack = functools.partial(_packed, file, name, index)
            hand_over().add(Parcel(prompt_id, reference, link, file.weight, pack), pause)
            assets.append({"upload": reference, "name": name, **_facts(file.measures)})
    except BaseException:  # an interrupt, as the host words it: whatever it is, nobody will ask for these files
        hand_over().drop(prompt_id, "the prompt was stopped")
        raise
    return assets


def _packed(file: File, name: str, index: int) -> Upload:
    return Upload(name=name, content=file.encode(), kind="output", index=index, **_facts(file.measures))


def _put(host: Host, bucket: OwnBucket, stem: str, files: list[tuple[Measures, bytes]]) -> list[dict[str, Any]]:
    """The day and the prompt are in every key: no run of a graph takes the place of another's files."""
    prompt_id = host.prompt_id()
    first = _output_numbers.take(prompt_id, len(files))
    folder = datetime.now(UTC).strftime("%Y-%m-%d")
    assets = []
    for index, (measures, content) in enumerate(files, start=first):
        pause(0)
        name = f"{stem}-{safe_name(prompt_id)[:8]}-{index + 1}.{measures.extension}"
        key = bucket.key(f"{folder}/{name}")
        bucket.put(key, content, measures.media_type)
        sha256, size = digest_of(content)
        stored = {"url": bucket.url(key), "bucket": bucket.name, "key": key, "name": name}
        assets.append({**stored, "bytes": size, "sha256": sha256, **_facts(measures)})
    return assets


def _facts(measures: Measures) -> dict[str, Any]:
    return {name: value for name, value in asdict(measures).items() if name != "extension"}


def _write(host: Host, stem: str, files: list[tuple[Measures, bytes]]) -> dict[str, list[Any]]:
    folder = host.output_dir()
    folder.mkdir(parents=True, exist_ok=True)
    names = [_write_new(folder, stem, measures.extension, content) for measures, content in files]
    images = [{"filename": name, "subfolder": "", "type": "output"} for name in names]
    if files[0][0].frames is not None:
        return ui(images=images, animated=[True])
    return ui(images=images)


def _write_new(folder: Path, stem: str, extension: str, content: bytes) -> str:
    """Write under the next free number, as SaveImage names its files; never over a file that is there."""
    taken = (re.fullmatch(rf"{re.escape(stem)}_(\d+)_\..+", path.name) for path in folder.iterdir())
    number = max((int(match[1]) for match in taken if match), default=0) + 1
    while True:
        name = f"{stem}_{number:05}_.{extension}"
        try:
            with (folder / name).open("xb") as target:
                target.write(content)
            return name
        except FileExistsError:
            number += 1
