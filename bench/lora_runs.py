"""LoRAs for the judges: trained with the shipped trainer as a subprocess, one folder per character."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TRAINER = ROOT / "comfy_nodes" / "training" / "sketch_trainer.py"
RECIPES = ROOT / "workflow_templates" / "recipes.yaml"


@dataclass(frozen=True)
class Run:
    """A finished training: the LoRA file and how long it took (0 when it was already there)."""

    path: Path
    seconds: float


def recipe_params(name: str) -> dict[str, Any]:
    """Parameters of a sketch recipe by name."""
    params: dict[str, Any] = yaml.safe_load(RECIPES.read_text(encoding="utf-8"))["sketch"][name]["params"]
    return params


def folder_for(checkpoint: Path, recipe: str) -> Path:
    """Where LoRAs of this very checkpoint and recipe are kept between runs."""
    made_of = checkpoint.read_bytes() + json.dumps(recipe_params(recipe), sort_keys=True).encode()
    return ROOT / ".work" / "loras" / f"{recipe}-{hashlib.sha256(made_of).hexdigest()[:12]}"


def train(
    folder: Path,
    checkpoint: Path,
    pictures: Sequence[tuple[Image.Image, str]],
    trigger: str,
    class_word: str,
    params: Mapping[str, Any],
    threads: int,
    seed: int = 42,
) -> Run:
    """Train on (picture, caption) pairs in `folder`; RuntimeError with the trainer's last lines when it fails."""
    result = folder / "lora.safetensors"
    if result.exists():
        return Run(result, 0.0)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for index, (picture, caption) in enumerate(pictures, start=1):
        picture.save(images / f"{index:03d}.png")
        (images / f"{index:03d}.txt").write_text(caption, encoding="utf-8")
    job = {
        "checkpoint": str(checkpoint.resolve()),
        "dataset_dir": str(images.resolve()),
        "output_dir": str(folder.resolve()),
        "output_name": "lora",
        "seed": seed,
        "params": dict(params),
        "trigger": trigger,
        "class_word": class_word,
        "threads": threads,
    }
    config = folder / "job.json"
    config.write_text(json.dumps(job), encoding="utf-8")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(TRAINER), "--config", str(config)],
        capture_output=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode != 0 or not result.exists():
        raise RuntimeError(done.stderr.decode("utf-8", "replace")[-600:])
    return Run(result, time.monotonic() - started)
