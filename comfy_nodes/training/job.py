"""What every trainer is given and what it must say of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..control_plane import Dataset
from .failure import TrainerError
from .runner import Command

# The file that a trainer writes into the job's output folder.
OUTPUT_NAME = "lora"


@dataclass(frozen=True)
class Resume:
    """A saved state to go on from: its folder, where the training stood, and the settings that it has to fit."""

    folder: Path
    step: int
    epoch: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One training: the base's file, the folder of NAME.png + NAME.txt, the folder to write to, the dataset's words.

    vram_bytes: memory of the accelerator, 0 = CPU. settings: the trainer's own, once a try has changed them.
    """

    dataset: Dataset
    checkpoint: Path
    images: Path
    output: Path
    threads: int
    vram_bytes: int = 0
    resume: Resume | None = None
    settings: Any = None

    @property
    def result(self) -> Path:
        """Where the finished LoRA lies."""
        return self.output / f"{OUTPUT_NAME}.safetensors"

    @property
    def start_step(self) -> int:
        """How many steps were done before this run."""
        return self.resume.step if self.resume is not None else 0

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


def _no_easier(_job: Job, _error: TrainerError) -> tuple[Job, str] | None:
    return None


def _nothing(_job: Job) -> dict[str, Any]:
    return {}


def _start_over(job: Job, _resume: Resume) -> tuple[Job, str]:
    return job, "this trainer cannot go on from a saved state; training starts over"


def _never(_job: Job, _seconds: float) -> bool:
    return False


@dataclass(frozen=True)
class Trainer:
    """One trainer: how to start it, which modules a checkpoint has, and what keeps it from running here (or None).

    easier: the next try after a failed one and a sentence about it, or None. described: what a saved state has to fit.
    resumed: the job that goes on from a state, or the job as it was, and a sentence that says which. worth_saving:
    whether a state is handed over, given how many seconds the whole training takes on this pod.
    """

    command: Callable[[Job], Command]
    known_modules: Callable[[Path], frozenset[str]]
    obstacle: Callable[[], str | None]
    easier: Callable[[Job, TrainerError], tuple[Job, str] | None] = _no_easier
    described: Callable[[Job], dict[str, Any]] = _nothing
    resumed: Callable[[Job, Resume], tuple[Job, str]] = _start_over
    worth_saving: Callable[[Job, float], bool] = _never
