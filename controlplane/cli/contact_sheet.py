"""The demo's contact sheet: for every character a strip of references, of pictures made, and of video frames."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

CELL = 160
GAP = 8
TITLE = 26
LABEL = 30
MAX_CELLS = 8
INK = (30, 30, 36)
PAPER = (250, 249, 246)


@dataclass(frozen=True)
class Cell:
    """One picture and the words under it."""

    picture: Image.Image
    label: str = ""


@dataclass(frozen=True)
class Strip:
    """A titled row of pictures."""

    title: str
    cells: Sequence[Cell]


def draw(strips: Sequence[Strip], path: Path) -> None:
    """Write a PNG of the strips, one below the other, at most eight pictures each."""
    columns = max([min(len(strip.cells), MAX_CELLS) for strip in strips], default=1)
    height = GAP + len(strips) * (TITLE + CELL + LABEL + GAP)
    sheet = Image.new("RGB", (GAP + columns * (CELL + GAP), height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for row, strip in enumerate(strips):
        top = GAP + row * (TITLE + CELL + LABEL + GAP)
        pen.text((GAP, top), strip.title, fill=INK, font=ImageFont.load_default(16))
        for column, cell in enumerate(strip.cells[:MAX_CELLS]):
            left = GAP + column * (CELL + GAP)
            sheet.paste(_fitted(cell.picture), (left, top + TITLE))
            _write_label(pen, cell.label, left, top + TITLE + CELL + 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def picture_of(data: bytes) -> Image.Image:
    """An image file's picture."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def frames_of(data: bytes, count: int = MAX_CELLS) -> list[Image.Image]:
    """Frames of a video file, evenly spread; none where PyAV is not installed."""
    if importlib.util.find_spec("av") is None:
        return []
    import av

    opened: Any = av.open(io.BytesIO(data))  # PyAV's own types say less than what it does
    with opened as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    return [frames[index * len(frames) // count] for index in range(count)] if len(frames) > count else frames


def _fitted(picture: Image.Image) -> Image.Image:
    """The picture as large as a cell allows, centred on paper."""
    scale = CELL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    cell = Image.new("RGB", (CELL, CELL), PAPER)
    resized = picture.resize(size, Image.Resampling.LANCZOS)
    cell.paste(resized, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return cell


def _write_label(pen: ImageDraw.ImageDraw, label: str, left: int, top: int) -> None:
    """Two lines at most, broken at a space."""
    font = ImageFont.load_default(11)
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font=font) <= CELL or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    for number, line in enumerate(lines[:2]):
        pen.text((left, top + number * 13), line, fill=INK, font=font)
