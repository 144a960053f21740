"""The sketch base's trainer as a script: `sketch_trainer.py --config job.json`; talks like kohya's sd-scripts."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..sketch.architecture import SketchModules
    from ..sketch.fine_tuning import LoraTraining

# glibc gives freed memory back to the kernel and asks for it again at every step; keeping it made steps up to twice as
# fast on a virtual machine. Read by the C library at process start only, hence the restart in `_with_kept_memory`.
_KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
_PACK = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Job:
    """job.json, read once; paths are absolute."""

    checkpoint: Path
    dataset_dir: Path
    output_dir: Path
    output_name: str
    seed: int
    params: Mapping[str, Any]
    trigger: str
    class_word: str
    sample_prompts: tuple[str, ...]
    sample_every: int  # steps between samples, 0 = none
    metadata: Mapping[str, str]
    threads: int

    @classmethod
    def read(cls, path: Path) -> Job:
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            checkpoint=Path(data["checkpoint"]),
            dataset_dir=Path(data["dataset_dir"]),
            output_dir=Path(data["output_dir"]),
            output_name=data.get("output_name", "lora"),
            seed=int(data.get("seed", 0)),
            params=data.get("params", {}),
            trigger=data.get("trigger", ""),
            class_word=data.get("class_word", ""),
            sample_prompts=tuple(data.get("sample_prompts", ())),
            sample_every=int(data.get("sample_every", 0)),
            metadata={name: str(value) for name, value in data.get("metadata", {}).items()},
            threads=int(data.get("threads", 1)),
        )

    @property
    def result(self) -> Path:
        return self.output_dir / f"{self.output_name}.safetensors"


def main(arguments: list[str] | None = None) -> int:
    """Train as the job file says. 0 = the file is written; 1 = failed, the reason is the last line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    job = Job.read(parser.parse_args(arguments).config)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)  # type: ignore[union-attr]
    try:
        train(job)
    except _expected_errors() as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def train(job: Job) -> None:
    """The whole run: load, prepare, step, sample, save."""
    import torch

    torch.set_num_threads(job.threads)
    checkpoint, fine_tuning = _sketch("checkpoint"), _sketch("fine_tuning")
    reference_images, architecture = _sketch("reference_images"), _sketch("architecture")
    recipe = fine_tuning.Recipe.of(job.params)
    print(f"load sketch checkpoint: {job.checkpoint.name}")
    modules = checkpoint.load(job.checkpoint)
    print("caching latents...")
    references = reference_images.read_references(
        modules, job.dataset_dir, architecture.SKETCH.image_size, recipe.views, recipe.zoom, random.Random(job.seed)
    )
    training = fine_tuning.LoraTraining(modules, references, recipe, job.seed)
    job.output_dir.mkdir(parents=True, exist_ok=True)
    _announce(len(references), recipe.batch_size, recipe.steps)
    _run_steps(job, training, modules, window=max(1, -(-len(references) // recipe.batch_size)))
    print(f"\nsaving checkpoint: {job.result}")
    fine_tuning.write_lora(job.result, training, job.seed, len(references), _named(job, job.metadata))
    print("model saved.")


def _run_steps(job: Job, training: LoraTraining, modules: SketchModules, window: int) -> None:
    """Every step, with the bar on stderr; the loss shown is the mean of the last pass over the pictures."""
    from tqdm import tqdm

    recent: deque[float] = deque(maxlen=max(window, 8))
    steps = training.recipe.steps
    with tqdm(total=steps, smoothing=0, desc="steps", ascii=True, file=sys.stderr, mininterval=0.3) as bar:
        for step in range(1, steps + 1):
            recent.append(training.step())
            bar.set_postfix(refresh=False, avr_loss=sum(recent) / len(recent))
            bar.update(1)
            if job.sample_every and (step % job.sample_every == 0 or step == steps):
                _samples(job, modules, step)


def _samples(job: Job, modules: SketchModules, step: int) -> None:
    """One picture per sample prompt, always from the same seed, so that they can be compared over the steps."""
    sampling, reference_images = _sketch("sampling"), _sketch("reference_images")
    size = _sketch("architecture").SKETCH.image_size
    folder = job.output_dir / "sample"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\ngenerating sample images at step / サンプル画像生成 ステップ: {step}")
    empty = sampling.encode_prompt(modules, "")
    for index, prompt in enumerate(job.sample_prompts):
        latent = sampling.sample(
            modules,
            sampling.encode_prompt(modules, prompt),
            empty,
            sampling.empty_latent(modules, size, size),
            job.seed + index,
        )
        path = folder / f"{job.output_name}_{step:06d}_{index:02d}.png"
        reference_images.to_image(sampling.decode(modules, latent)[0]).save(path)
        print(f"saved sample: {path}")


def _announce(images: int, batch_size: int, steps: int) -> None:
    print("running training / 学習開始")
    print(f"  num train images * repeats / 学習画像の数×繰り返し回数: {images}")
    print(f"  num batches per epoch / 1epochのバッチ数: {-(-images // batch_size)}")
    print(f"  total optimization steps / 学習ステップ数: {steps}")


def _named(job: Job, given: Mapping[str, str]) -> dict[str, str]:
    phrase = f"{job.trigger} {job.class_word}".strip()
    return ({"modelspec.trigger_phrase": phrase} if phrase else {}) | dict(given)


def _expected_errors() -> tuple[type[Exception], ...]:
    fine_tuning, reference_images = _sketch("fine_tuning"), _sketch("reference_images")
    return (OSError, ValueError, TypeError, fine_tuning.DivergedError, reference_images.NoPicturesError)


def _sketch(name: str) -> Any:
    """A module of the pack's sketch package, whatever folder the pack is installed as."""
    return importlib.import_module(f"{_PACK.name}.sketch.{name}")


def _with_kept_memory() -> None:
    """Start this very process again (same id, same group) with the C library told to keep freed memory."""
    if sys.platform == "linux" and not any(name in os.environ for name in _KEEP_MEMORY):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **_KEEP_MEMORY})


if __name__ == "__main__":
    _with_kept_memory()
    # Run by path, the script's own folder would shadow the pack's package: put the pack's parent there instead.
    sys.path[0] = str(_PACK.parent)
    sys.exit(main())
