"""Bringing a dataset to the pod: one flat folder of images, downloaded side by side and checked, and their captions."""

from __future__ import annotations

import concurrent.futures
import hashlib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ..control_plane import Dataset, DatasetImage
from ..transport import Stream, TransportError, retrying
from .failure import TrainerError

DOWNLOADS_AT_ONCE = 8
MAX_IMAGE_BYTES = 256 << 20
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.png")
_LOOK_EVERY_SECONDS = 0.25

Download = Callable[[str], AbstractContextManager[Stream]]


def write_dataset(
    dataset: Dataset, folder: Path, download: Download, check: Callable[[], None], progress: Callable[[int], None]
) -> None:
    """Write NAME.png and NAME.txt for every image; `progress` is told how many are there, `check` may raise.

    Raises TrainerError `no_data` or `bad_dataset`, or TransportError.
    """
    if not dataset.images:
        raise TrainerError("no_data", f"version {dataset.version} of {dataset.character_id} has no images")
    _check_names(dataset)
    folder.mkdir(parents=True)
    pool = concurrent.futures.ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="dataset")
    try:
        waiting = {pool.submit(_write_image, image, dataset, folder, download) for image in dataset.images}
        while waiting:
            check()
            done, waiting = concurrent.futures.wait(
                waiting, _LOOK_EVERY_SECONDS, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                future.result()
            progress(len(dataset.images) - len(waiting))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def caption_of(image: DatasetImage, dataset: Dataset) -> str:
    """The image's caption with the trigger first: trainers ignore prefixes once captions are encoded beforehand."""
    caption = " ".join(image.caption.split())
    if re.match(rf"{re.escape(dataset.trigger)}\b", caption):
        return caption
    phrase = f"{dataset.trigger} {dataset.class_word}".strip()
    return f"{phrase}, {caption}" if caption else phrase


def _check_names(dataset: Dataset) -> None:
    names = [image.name for image in dataset.images]
    for name in names:
        if not _SAFE_NAME.fullmatch(name):
            raise TrainerError("bad_dataset", f"not a name for a training image: {name!r}")
    if len(set(names)) != len(names):
        raise TrainerError("bad_dataset", "two training images have the same name")


def _write_image(image: DatasetImage, dataset: Dataset, folder: Path, download: Download) -> None:
    (folder / image.name).write_bytes(retrying(lambda: _content(image, download)))
    text = (folder / image.name).with_suffix(".txt")
    text.write_text(caption_of(image, dataset) + "\n", encoding="utf-8")


def _content(image: DatasetImage, download: Download) -> bytes:
    if image.bytes > MAX_IMAGE_BYTES:
        raise TrainerError("bad_dataset", f"image {image.name} has {image.bytes} bytes")
    content = bytearray()
    with download(image.url) as stream:
        for chunk in stream.chunks:
            content += chunk
            if len(content) > image.bytes:
                raise TrainerError("bad_dataset", f"image {image.name} is longer than stated")
    if len(content) < image.bytes:
        raise TransportError(None, "cut_off", f"image {image.name} ended after {len(content)} of {image.bytes} bytes")
    if hashlib.sha256(content).hexdigest() != image.sha256:
        raise TrainerError("bad_dataset", f"image {image.name} is not the one that was stored: its sha256 differs")
    return bytes(content)
