"""The trainer of the sketch base: its command line, its job file, and whether this machine can run it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

from .job import OUTPUT_NAME, Job, Trainer
from .runner import Command

SCRIPT = Path(__file__).with_name("sketch_trainer.py")
_PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors")


def command(job: Job) -> Command:
    """Write job.json beside the output folder, and the command that reads it."""
    path = job.output.parent / "job.json"
    path.write_text(json.dumps(job_file(job), indent=1, sort_keys=True), encoding="utf-8")
    threads = str(job.threads)
    return Command(
        argv=[interpreter(), str(SCRIPT), "--config", str(path)],
        cwd=job.output.parent,
        environment={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
    )


def job_file(job: Job) -> dict[str, object]:
    """The members of job.json; every path is absolute."""
    dataset = job.dataset
    params = dict(dataset.params)
    sample_every = int(params.pop("sample_every", 0) or 0)
    return {
        "checkpoint": str(job.checkpoint.resolve()),
        "dataset_dir": str(job.images.resolve()),
        "output_dir": str(job.output.resolve()),
        "output_name": OUTPUT_NAME,
        "seed": dataset.seed,
        "params": params,
        "trigger": dataset.trigger,
        "class_word": dataset.class_word,
        "sample_prompts": list(dataset.sample_prompts),
        "sample_every": sample_every,
        "metadata": {**job.metadata(), "ss_base_model_version": "troupe_sketch"},
        "threads": job.threads,
    }


def interpreter() -> str:
    """The Python that runs the trainer: TROUPE_SKETCH_PYTHON, else this one."""
    return os.environ.get("TROUPE_SKETCH_PYTHON", "").strip() or sys.executable


def known_modules(checkpoint: Path) -> frozenset[str]:
    """The kohya names of every module of a sketch checkpoint that a LoRA may change."""
    from ..sketch.checkpoint import named_sizes
    from ..sketch.lora import known_names

    return known_names(named_sizes(checkpoint))


def obstacle() -> str | None:
    """What keeps this pod from training on the sketch base, or None."""
    python = interpreter()
    if shutil.which(python) is None:
        return f"TROUPE_SKETCH_PYTHON names no interpreter: {python}"
    if not SCRIPT.is_file():
        return "the node pack is incomplete: sketch_trainer.py is missing"
    if python == sys.executable:
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            return f"the Python of this pod lacks {', '.join(missing)}"
    return None


TRAINER = Trainer(command, known_modules, obstacle)
