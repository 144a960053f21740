"""The trainer of SDXL and SD1.5, kohya's sd-scripts: its command line, its files, and whether this pod can run it.

sd-scripts lies outside the pack and has a Python of its own: SD_SCRIPTS_DIR, SD_SCRIPTS_PYTHON, SD_SCRIPTS_TOKENIZERS.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import kohya_settings
from .failure import TrainerError
from .job import OUTPUT_NAME, Job, Resume, Trainer
from .kohya_layers import layer_names
from .kohya_settings import Recipe, Settings
from .runner import Command

SCRIPTS = {"sdxl": "sdxl_train_network.py", "sd15": "train_network.py"}
# The folders that sd-scripts looks for in its tokenizer cache.
TOKENIZERS = ("openai_clip-vit-large-patch14", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k")
CLIP_TOKENS = 77
SAMPLE_PROMPTS = 2
BUCKET_STEP = 64


def command(job: Job) -> Command:
    """Write the run's files beside its output folder, and the argument list that reads them."""
    settings = settings_of(job)
    folder = job.output.parent
    _write(folder / "dataset.toml", dataset_toml(job.images, settings))
    sampling: list[str] = []
    prompts = sample_prompts(job, settings)
    if prompts:
        _write(folder / "prompts.json", json.dumps(prompts, ensure_ascii=False, indent=1))
        sampling = [f"--sample_prompts={folder / 'prompts.json'}", "--sample_sampler=euler_a"]
        sampling.append(f"--sample_every_n_epochs={settings.sample_every_epochs}")
    threads = str(job.threads)
    return Command(
        argv=[_variable("SD_SCRIPTS_PYTHON"), *arguments(job, settings, folder), *sampling],
        cwd=Path(_variable("SD_SCRIPTS_DIR")),
        # Packages that this process was shown are not for the trainer's own Python.
        environment={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": "", "PYTHONNOUSERSITE": "1"},
    )


def settings_of(job: Job) -> Settings:
    """The job's settings: its recipe on this pod, and what earlier tries or a saved state have changed."""
    if isinstance(job.settings, Settings):
        return job.settings
    return kohya_settings.settings_for(Recipe.of(job.dataset.params), len(job.dataset.images), job.vram_bytes)


def arguments(job: Job, settings: Settings, folder: Path) -> list[str]:
    """The script and its options, each as one argument, so that no value can be taken for an option."""
    options: dict[str, Any] = {
        "dataset_config": folder / "dataset.toml",
        "pretrained_model_name_or_path": job.checkpoint.resolve(),
        "tokenizer_cache_dir": Path(_variable("SD_SCRIPTS_TOKENIZERS")).resolve(),
        "output_dir": job.output.resolve(),
        "output_name": OUTPUT_NAME,
        "save_model_as": "safetensors",
        "save_precision": "fp16",
        "network_module": "networks.lora",
        "network_dim": settings.rank,
        "network_alpha": settings.alpha,
        "network_train_unet_only": True,
        "learning_rate": settings.learning_rate,
        "optimizer_type": settings.optimizer,
        "lr_scheduler": settings.scheduler,
        "lr_warmup_steps": settings.warmup,
        "max_train_epochs": settings.epochs,
        "gradient_accumulation_steps": settings.accumulation,
        "max_grad_norm": 1.0,
        "min_snr_gamma": settings.min_snr_gamma,
        "mixed_precision": settings.mixed_precision,
        "full_bf16": settings.full_bf16,
        "no_half_vae": True,
        "sdpa": True,
        "gradient_checkpointing": settings.checkpointing,
        "fp8_base_unet" if settings.architecture == "sdxl" else "fp8_base": settings.fp8_base,
        "cache_latents": True,
        "cache_text_encoder_outputs": settings.architecture == "sdxl",
        "max_data_loader_n_workers": 2 if job.vram_bytes else 0,
        "persistent_data_loader_workers": bool(job.vram_bytes),
        "seed": job.dataset.seed,
        **words_of(job),
        **_saving(settings),
        **_resuming(job),
    }
    if settings.placement:
        options[settings.placement] = True
    return [SCRIPTS[settings.architecture], *_as_arguments(options)]


def _saving(settings: Settings) -> dict[str, Any]:
    if not settings.save_every_epochs:
        return {}
    saving: dict[str, Any] = {"save_every_n_epochs": settings.save_every_epochs}
    if settings.resumable:
        # Two states, so that the one that is being packed for its upload is not deleted under the packer.
        saving |= {"save_state": True, "save_last_n_epochs_state": 2}
    return saving


def _resuming(job: Job) -> dict[str, Any]:
    if job.resume is None:
        return {}
    # The state counts its steps from its own run's start, so a second resume would train too long: the absolute step
    # is always told. It is an epoch's end, so nothing is to be skipped within an epoch; `skip_until_initial_step`,
    # which only adds that, miscounts epochs where gradients are gathered.
    return {"resume": job.resume.folder.resolve(), "initial_step": job.resume.step}


def _as_arguments(options: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in options.items():
        if value is True:
            found.append(f"--{name}")
        elif value is not False:
            found.append(f"--{name}={value}")
    return found


def _passable(words: str) -> str:
    """What an argument cannot hold is left out: the end of a string, and halves of characters."""
    return words.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def dataset_toml(images: Path, settings: Settings) -> str:
    """The dataset's file: one flat folder, aspect buckets, captions as they are written there.

    JSON writes these values, among them no words of people's, as TOML does.
    """
    side = settings.resolution
    values: tuple[tuple[str, Any], ...] = (
        ("resolution", [side, side]),
        ("batch_size", settings.batch_size),
        ("enable_bucket", True),
        ("min_bucket_reso", max(BUCKET_STEP, side // 2 // BUCKET_STEP * BUCKET_STEP)),
        ("max_bucket_reso", max(BUCKET_STEP, side * 3 // 2 // BUCKET_STEP * BUCKET_STEP)),
        ("bucket_reso_steps", BUCKET_STEP),
        ("bucket_no_upscale", True),
    )
    lines = ["[general]", 'caption_extension = ".txt"', "shuffle_caption = false", "", "[[datasets]]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in values]
    lines += ["", "[[datasets.subsets]]", f"image_dir = {json.dumps(str(images.resolve()))}"]
    lines += [f"num_repeats = {settings.repeats}", "flip_aug = false", ""]
    return "\n".join(lines)


def words_of(job: Job) -> dict[str, str]:
    """The options that carry people's words, and what the LoRA file says of its making.

    Each is one argument `--name=words` of a list that no shell sees: whatever the words are, they stay words.
    """
    made_by = {key: value for key, value in job.metadata().items() if key.startswith("troupe.")}
    return {
        "metadata_title": _passable(job.dataset.name),
        "metadata_trigger_phrase": _passable(job.trigger_phrase),
        "training_comment": json.dumps(made_by, sort_keys=True),
    }


def sample_prompts(job: Job, settings: Settings) -> list[dict[str, Any]]:
    """The sample pictures as JSON entries, in which nothing in a prompt can be read as an option."""
    if not settings.sample_every_epochs:
        return []
    recipe = Recipe.of(job.dataset.params)
    side = recipe.sample_pixels or settings.resolution
    return [
        {
            "prompt": prompt,
            "width": side,
            "height": side,
            "sample_steps": recipe.sample_steps,
            "scale": 6.5,
            "seed": job.dataset.seed + index,
        }
        for index, prompt in enumerate(job.dataset.sample_prompts[:SAMPLE_PROMPTS])
    ]


def easier(job: Job, error: TrainerError) -> tuple[Job, str] | None:
    """The next try after a failure, and a sentence about it; None where trying again would change nothing."""
    if job.resume is not None and error.code in ("bad_state", "trainer_failed"):
        return replace(job, resume=None), f"the saved state could not be used ({error.detail}); training starts over"
    before = settings_of(job)
    found = kohya_settings.easier(before, error.code, job.vram_bytes)
    if found is None:
        return None
    settings, words = found
    sentence = f"{error.detail}: trying again with {words}"
    resume = job.resume
    if resume is not None and kohya_settings.differences(settings, asdict(before)):
        resume, sentence = None, f"{sentence}, from the beginning"
    return replace(job, settings=settings, resume=resume), sentence


def worth_saving(job: Job, seconds: float) -> bool:
    """Whether a training that takes so long in all is gone on with by a retry; a state has half a gigabyte or more."""
    return seconds >= Recipe.of(job.dataset.params).restart_under_seconds


def described(job: Job) -> dict[str, Any]:
    """What a saved state has to fit, as JSON values."""
    return asdict(settings_of(job))


def resumed(job: Job, resume: Resume) -> tuple[Job, str]:
    """The job that goes on from a saved state where it fits, and a sentence that says which of the two it is."""
    settings = settings_of(job)
    fitting = kohya_settings.fitting(settings, resume.settings, job.vram_bytes)
    if fitting is None:
        changed = ", ".join(kohya_settings.differences(settings, resume.settings))
        return job, f"the state saved at step {resume.step} was made with another {changed}; training starts over"
    sentence = f"training goes on from the state saved at step {resume.step} (epoch {resume.epoch})"
    return replace(job, settings=fitting, resume=resume), sentence


def known_modules(checkpoint: Path) -> frozenset[str]:
    """The kohya names of every layer of a SDXL or SD1.5 checkpoint that its LoRA may change."""
    return layer_names(checkpoint)


def obstacle() -> str | None:
    """What keeps this pod from training with sd-scripts, and what to set; None where nothing does."""
    return _folder_obstacle() or _interpreter_obstacle() or _tokenizer_obstacle()


def _folder_obstacle() -> str | None:
    folder = _variable("SD_SCRIPTS_DIR")
    if not folder:
        return "SD_SCRIPTS_DIR is not set: it names the folder of kohya's sd-scripts"
    for script in SCRIPTS.values():
        if not (Path(folder) / script).is_file():
            return f"SD_SCRIPTS_DIR names no folder of sd-scripts: there is no {script} in {folder}"
    return None


def _interpreter_obstacle() -> str | None:
    python = _variable("SD_SCRIPTS_PYTHON")
    if not python:
        return "SD_SCRIPTS_PYTHON is not set: it names the Python of sd-scripts' own environment"
    if shutil.which(python) is None:
        return f"SD_SCRIPTS_PYTHON names no interpreter: {python}"
    return None


def _tokenizer_obstacle() -> str | None:
    folder = _variable("SD_SCRIPTS_TOKENIZERS")
    if not folder:
        return f"SD_SCRIPTS_TOKENIZERS is not set: it names the folder that holds {' and '.join(TOKENIZERS)}"
    for name in TOKENIZERS:
        path = Path(folder) / name
        if not any((path / file).is_file() for file in ("vocab.json", "tokenizer.json")):
            return f"SD_SCRIPTS_TOKENIZERS lacks a tokenizer: there is no {name}/vocab.json in {folder}"
        try:
            length = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))["model_max_length"]
        except (OSError, ValueError, KeyError, TypeError):
            return f"{path}/tokenizer_config.json does not say model_max_length = {CLIP_TOKENS}"
        if length != CLIP_TOKENS:
            # sd-scripts would make captions of this length for a text encoder with 77 places.
            return f"{path}/tokenizer_config.json says model_max_length = {length}; set it to {CLIP_TOKENS}"
    return None


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


TRAINER = Trainer(command, known_modules, obstacle, easier, described, resumed, worth_saving)
