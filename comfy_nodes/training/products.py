"""What a trainer leaves in its output folder on its way: samples, checkpoints, states, each found once and whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..lora_file import LoraFileError, read_header
from .job import OUTPUT_NAME

_CHECKPOINT = re.compile(rf"{OUTPUT_NAME}-(\d{{6}})\.safetensors$")
_STATE = re.compile(rf"{OUTPUT_NAME}-(\d{{6}})-state$")
_PICTURES = (".png", ".webp", ".jpg", ".jpeg")
# accelerate writes the random states last.
_LAST_OF_A_STATE = "random_states_0.pkl"


@dataclass(frozen=True)
class Product:
    """One finished file or folder; `epoch` is the epoch at whose end it was written, 0 for a sample."""

    kind: Literal["sample", "checkpoint", "state"]
    path: Path
    epoch: int


class Products:
    """Looks into an output folder; a product counts once nothing changed between two looks and its format is whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[Path, int] = {}
        self._told: set[Path] = set()

    def look(self) -> list[Product]:
        """What became whole since the last look, oldest first."""
        found = []
        for product in self._candidates():
            if product.path in self._told:
                continue
            size = _size(product.path)
            settled, self._sizes[product.path] = self._sizes.get(product.path) == size, size
            if settled and _is_whole(product):
                self._told.add(product.path)
                found.append(product)
        return sorted(found, key=lambda product: (product.epoch, product.kind, product.path.name))

    def _candidates(self) -> Iterator[Product]:
        for path in _entries(self._folder):
            if (found := _CHECKPOINT.match(path.name)) is not None:
                yield Product("checkpoint", path, int(found[1]))
            elif (found := _STATE.match(path.name)) is not None:
                yield Product("state", path, int(found[1]))
        for path in _entries(self._folder / "sample"):
            if path.suffix in _PICTURES:
                yield Product("sample", path, 0)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _size(path: Path) -> int:
    """The bytes of a file or of a folder's files; -1 where one of them vanished meanwhile."""
    try:
        return sum(one.stat().st_size for one in path.iterdir()) if path.is_dir() else path.stat().st_size
    except OSError:
        return -1


def _is_whole(product: Product) -> bool:
    if product.kind == "state":
        return (product.path / _LAST_OF_A_STATE).is_file()
    if product.kind == "checkpoint":
        try:
            read_header(product.path)
        except (LoraFileError, OSError):
            return False
        return True
    return _is_picture(product.path)


def _is_picture(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError):  # PIL's words for a PNG with a damaged chunk
        return False
    return True
