"""The trainers by name, as a base model names its own, and which of them this pod can run."""

from __future__ import annotations

from collections.abc import Mapping

from . import kohya, sketch
from .job import Trainer

TRAINERS: Mapping[str, Trainer] = {"kohya": kohya.TRAINER, "sketch": sketch.TRAINER}


def available() -> list[str]:
    """The names of the trainers that can run here, as a registration tells them."""
    hindered = obstacles()
    return [name for name in sorted(TRAINERS) if name not in hindered]


def obstacles() -> dict[str, str]:
    """What keeps the other trainers from running here, by their names."""
    found = {name: trainer.obstacle() for name, trainer in sorted(TRAINERS.items())}
    return {name: words for name, words in found.items() if words is not None}
