"""A trainer's folder of reference pictures and captions, read into latents and prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import sampling

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from .architecture import SketchModules

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Reference:
    """One reference picture: its caption (trigger and class word first) and latents of several views of it."""

    caption: str
    views: torch.Tensor  # (views, channels, size / 8, size / 8)


class NoPicturesError(Exception):
    """The data set folder holds no picture with a caption."""


def read_references(
    modules: SketchModules, folder: Path, size: int, views: int, zoom: float, rng: random.Random
) -> list[Reference]:
    """Every NAME.png|jpg|webp with its NAME.txt, as latents of `views` crops.

    The first view is the whole picture (its middle square), the others are cut by chance to at least 1 - zoom of its
    side. Raises NoPicturesError, and ValueError for a missing or empty caption; a broken file raises Pillow's OSError.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_ENDINGS)
    if not paths:
        raise NoPicturesError(f"no pictures in {folder.name}")
    return [Reference(_caption(path), _views(modules, path, size, views, zoom, rng)) for path in paths]


def vary_caption(caption: str, rng: random.Random, phrase_dropout: float, caption_dropout: float) -> str:
    """The caption as one training step reads it: head kept, other phrases shuffled and some left out; or nothing."""
    if rng.random() < caption_dropout:
        return ""
    head, *phrases = [phrase.strip() for phrase in caption.split(",")]
    kept = [phrase for phrase in phrases if phrase and rng.random() >= phrase_dropout]
    rng.shuffle(kept)
    return ", ".join([head, *kept])


def _caption(path: Path) -> str:
    beside = path.with_suffix(".txt")
    text = beside.read_text(encoding="utf-8").strip() if beside.exists() else ""
    if not text:
        raise ValueError(f"{path.name} has no caption beside it")
    return text


def _views(modules: SketchModules, path: Path, size: int, views: int, zoom: float, rng: random.Random) -> torch.Tensor:
    from PIL import Image

    with Image.open(path) as image:
        picture = image.convert("RGB")
    whole = min(picture.size)
    left, top = (picture.width - whole) // 2, (picture.height - whole) // 2
    boxes = [(left, top, left + whole, top + whole)]
    for _ in range(views - 1):
        side = round(whole * (1 - zoom * rng.random()))
        x, y = left + rng.randint(0, whole - side), top + rng.randint(0, whole - side)
        boxes.append((x, y, x + side, y + side))
    crops = [picture.resize((size, size), Image.Resampling.LANCZOS, box) for box in boxes]
    return sampling.encode(modules, to_pixels(crops)).clone()


def to_pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size as (N, H, W, 3) with values 0..1."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) / 255 for image in images]))


def to_image(pixels: torch.Tensor) -> Image.Image:
    """One (H, W, 3) tensor with values 0..1 as a picture."""
    import numpy as np
    from PIL import Image

    return Image.fromarray((pixels.clamp(0, 1).numpy() * 255 + 0.5).astype(np.uint8), "RGB")
