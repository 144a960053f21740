"""What every trainer is given and what it must say of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..control_plane import Dataset
from .runner import Command

# The file that a trainer writes into the job's output folder.
OUTPUT_NAME = "lora"


@dataclass(frozen=True)
class Job:
    """One training: the base's file, the folder of NAME.png + NAME.txt, the folder to write to, the dataset's words."""

    dataset: Dataset
    checkpoint: Path
    images: Path
    output: Path
    threads: int

    @property
    def result(self) -> Path:
        """Where the finished LoRA lies."""
        return self.output / f"{OUTPUT_NAME}.safetensors"

    @property
    def trigger_phrase(self) -> str:
        """The words that call the character: its trigger and its class word."""
        return f"{self.dataset.trigger} {self.dataset.class_word}".strip()

    def metadata(self) -> dict[str, str]:
        """What the LoRA file says of its making: only what determines it, so that equal trainings give equal files."""
        dataset = self.dataset
        return {
            "modelspec.title": dataset.name,
            "modelspec.trigger_phrase": self.trigger_phrase,
            "ss_seed": str(dataset.seed),
            "ss_num_train_images": str(len(dataset.images)),
            "troupe.base": dataset.base,
            "troupe.recipe": dataset.recipe,
            "troupe.recipe_digest": dataset.recipe_digest,
            "troupe.dataset_digest": dataset.digest,
        }


@dataclass(frozen=True)
class Trainer:
    """One trainer: how to start it, which modules a checkpoint has, and what keeps it from running here (or None)."""

    command: Callable[[Job], Command]
    known_modules: Callable[[Path], frozenset[str]]
    obstacle: Callable[[], str | None]
