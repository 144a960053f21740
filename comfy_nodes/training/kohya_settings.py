"""How one run of sd-scripts is set up: the recipe, what the pod's memory allows, and easier settings when it does not.

Pure: parameters, numbers of images and bytes in, frozen settings out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .failure import TrainerError

ARCHITECTURES = ("sdxl", "sd15")
GIB = 2**30
# SD1.5 needs this much less memory than SDXL, for which the classes below are made.
_SD15_SHARE = 2.5


@dataclass(frozen=True)
class Recipe:
    """The parameters of a kohya recipe; one that is not here is refused by name.

    views: how often every image is seen, the knob that decides likeness; steps stay between min_steps and max_steps.
    save_every_epochs, sample_every_epochs: 0 = only the last LoRA, no samples. resumable: whether states are kept for
    a retry on another pod; a training that takes less than restart_under_seconds on its pod rather starts over.
    """

    architecture: str
    views: int = 100
    epochs: int = 20
    min_steps: int = 1
    max_steps: int = 100_000
    resolution: int = 1024
    batch_size: int = 2
    rank: int = 16
    alpha: float = 8.0
    learning_rate: float = 1e-4
    scheduler: str = "cosine"
    warmup: float = 0.05
    min_snr_gamma: float = 5.0
    mixed_precision: str = "bf16"
    full_bf16: bool = False
    save_every_epochs: int = 0
    sample_every_epochs: int = 0
    sample_pixels: int = 0
    sample_steps: int = 24
    resumable: bool = False
    restart_under_seconds: int = 600

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Recipe:
        """Read a recipe's parameters. Raises TrainerError `bad_recipe`."""
        unknown = sorted(set(params) - {field.name for field in fields(cls)})
        if unknown:
            raise TrainerError("bad_recipe", f"kohya knows no recipe parameter {', '.join(unknown)}")
        if params.get("architecture") not in ARCHITECTURES:
            known = " or ".join(ARCHITECTURES)
            raise TrainerError("bad_recipe", f"the recipe's architecture has to be {known} for kohya")
        for name, value in params.items():
            wanted = type(getattr(cls, name, ""))
            # Numbers may be written without a point; True is a number to Python and to nobody else.
            if type(value) is not wanted and not (wanted is float and type(value) is int):
                raise TrainerError("bad_recipe", f"the recipe's {name} has to be of type {wanted.__name__} for kohya")
        return cls(**params)


@dataclass(frozen=True)
class Settings:
    """What one run is told. placement: `lowram` loads straight to the GPU, `highvram` keeps everything there."""

    architecture: str
    resolution: int
    batch_size: int
    accumulation: int
    epochs: int
    repeats: int
    rank: int
    alpha: float
    learning_rate: float
    optimizer: str
    scheduler: str
    warmup: float
    min_snr_gamma: float
    mixed_precision: str
    full_bf16: bool
    checkpointing: bool
    fp8_base: bool
    placement: str
    save_every_epochs: int
    sample_every_epochs: int
    resumable: bool


@dataclass(frozen=True)
class MemoryClass:
    """What a GPU with less than `below_gib` may be asked for, for SDXL."""

    below_gib: float
    batch_size: int = 1
    resolution: int = 1024
    rank: int = 128
    checkpointing: bool = True
    eight_bit: bool = True
    fp8_base: bool = False
    placement: str = ""
    samples: bool = False


# A card shows a little less than its name says: a 40 GB one 39.4 GiB. Samples move the text encoders to the GPU.
MEMORY_CLASSES = (
    MemoryClass(10, resolution=768, rank=8, fp8_base=True),
    MemoryClass(15, rank=16),
    MemoryClass(22, batch_size=2, samples=True),
    MemoryClass(36, batch_size=2, placement="lowram", samples=True),
    MemoryClass(math.inf, batch_size=8, checkpointing=False, eight_bit=False, placement="highvram", samples=True),
)
# No GPU: nothing to spare but time; 8-bit optimisers need a GPU.
CPU = MemoryClass(0, batch_size=8, checkpointing=False, eight_bit=False, samples=True)


def settings_for(recipe: Recipe, images: int, vram_bytes: int) -> Settings:
    """The recipe on a pod with so much GPU memory (0 = CPU); gradients are gathered where a batch does not fit.

    The number of images that one step learns from is the recipe's on every pod, so that it trains equally.
    """
    allowed = _class_of(recipe, vram_bytes)
    batch_size = min(recipe.batch_size, allowed.batch_size)
    epochs, repeats = exposure(recipe, images)
    rank = min(recipe.rank, allowed.rank)
    return Settings(
        architecture=recipe.architecture,
        resolution=min(recipe.resolution, allowed.resolution),
        batch_size=batch_size,
        accumulation=math.ceil(recipe.batch_size / batch_size),
        epochs=epochs,
        repeats=repeats,
        rank=rank,
        alpha=recipe.alpha * rank / recipe.rank,
        learning_rate=recipe.learning_rate,
        optimizer="AdamW8bit" if allowed.eight_bit else "AdamW",
        scheduler=recipe.scheduler,
        warmup=recipe.warmup,
        min_snr_gamma=recipe.min_snr_gamma,
        mixed_precision=recipe.mixed_precision,
        full_bf16=recipe.full_bf16,
        checkpointing=allowed.checkpointing,
        fp8_base=allowed.fp8_base,
        placement=allowed.placement,
        save_every_epochs=recipe.save_every_epochs,
        sample_every_epochs=recipe.sample_every_epochs if allowed.samples else 0,
        resumable=recipe.resumable and recipe.save_every_epochs > 0,
    )


def exposure(recipe: Recipe, images: int) -> tuple[int, int]:
    """(epochs, repeats of every image in an epoch) that show each image `views` times within the limits of steps."""
    epochs = max(1, recipe.epochs)
    repeats = max(1, round(recipe.views / epochs))
    seen_in_an_epoch = recipe.batch_size / images
    if _steps(images, repeats, recipe) * epochs < recipe.min_steps:
        repeats = math.ceil(recipe.min_steps / epochs * seen_in_an_epoch)
    if _steps(images, repeats, recipe) * epochs > recipe.max_steps:
        repeats = max(1, math.floor(recipe.max_steps / epochs * seen_in_an_epoch))
        epochs = max(1, min(epochs, recipe.max_steps // _steps(images, repeats, recipe)))
    return epochs, repeats


def _steps(images: int, repeats: int, recipe: Recipe) -> int:
    return math.ceil(images * repeats / recipe.batch_size)


def _class_of(recipe: Recipe, vram_bytes: int) -> MemoryClass:
    if vram_bytes <= 0:
        return CPU
    gib = vram_bytes / GIB * (1.0 if recipe.architecture == "sdxl" else _SD15_SHARE)
    return next(one for one in MEMORY_CLASSES if gib < one.below_gib)


Rung = Callable[[Settings], tuple[Settings, str]]


def _single_images(settings: Settings) -> tuple[Settings, str]:
    gathered = settings.batch_size * settings.accumulation
    if settings.batch_size == 1:
        return settings, ""
    return replace(settings, batch_size=1, accumulation=gathered), f"one image at a time, {gathered} for each step"


def _checkpointing(settings: Settings) -> tuple[Settings, str]:
    placement = "" if settings.placement == "highvram" else settings.placement
    return replace(settings, checkpointing=True, placement=placement), "gradient checkpointing"


def _eight_bit(settings: Settings) -> tuple[Settings, str]:
    return replace(settings, optimizer="AdamW8bit"), "the 8-bit optimiser"


def _fewer_pixels(settings: Settings) -> tuple[Settings, str]:
    return replace(settings, resolution=min(settings.resolution, 768)), "images of 768 pixels"


def _lower_rank(settings: Settings) -> tuple[Settings, str]:
    rank = min(settings.rank, 8)
    return replace(settings, rank=rank, alpha=settings.alpha * rank / settings.rank), "rank 8"


def _fp8(settings: Settings) -> tuple[Settings, str]:
    return replace(settings, fp8_base=True), "the base in 8-bit floats"


def _straight_to_gpu(settings: Settings) -> tuple[Settings, str]:
    return replace(settings, placement="lowram"), "the base loaded straight to the GPU"


def _half_weights(settings: Settings) -> tuple[Settings, str]:
    return replace(settings, mixed_precision="bf16", full_bf16=True), "every weight in bfloat16"


# What is given up, one after the other, and kept given up.
GPU_LADDER: tuple[Rung, ...] = (_single_images, _checkpointing, _eight_bit, _fewer_pixels, _lower_rank, _fp8)
# Loading straight to the GPU spares the main memory and costs 10 GB of the GPU's for a moment.
HOST_LADDER: tuple[Rung, ...] = (_straight_to_gpu,)
HOST_LADDER_FROM = 22 * GIB
CPU_LADDER: tuple[Rung, ...] = (_half_weights, _checkpointing, _single_images)

OUT_OF_GPU_MEMORY = "out_of_memory"
OUT_OF_MAIN_MEMORY = ("killed", "out_of_host_memory")


def easier(settings: Settings, code: str, vram_bytes: int) -> tuple[Settings, str] | None:
    """The next try after a failure with this code, and in words what is given up; None where nothing helps."""
    for rung in _ladder(code, vram_bytes):
        changed, words = rung(settings)
        if changed != settings:
            return changed, words
    return None


def _ladder(code: str, vram_bytes: int) -> tuple[Rung, ...]:
    if code == OUT_OF_GPU_MEMORY and vram_bytes > 0:
        return GPU_LADDER
    if code in OUT_OF_MAIN_MEMORY:
        if vram_bytes <= 0:
            return CPU_LADDER
        return HOST_LADDER if vram_bytes >= HOST_LADDER_FROM else ()
    return ()


# What may differ between the run that saved a state and the one that goes on: neither the LoRA's nor the optimiser's
# tensors nor the number of steps depend on it.
_FREE_ON_RESUME = ("checkpointing", "fp8_base", "placement", "sample_every_epochs", "full_bf16", "mixed_precision")


def differences(settings: Settings, saved: Mapping[str, Any]) -> list[str]:
    """The names of the settings for which a saved state does not fit this run; none = it fits."""
    here = asdict(settings)
    return [name for name in here if name not in _FREE_ON_RESUME and here[name] != saved.get(name)]


def fitting(settings: Settings, saved: Mapping[str, Any], vram_bytes: int) -> Settings | None:
    """The settings, or the easier ones down the ladder, that a saved state fits; None where none do."""
    code = OUT_OF_GPU_MEMORY if vram_bytes > 0 else OUT_OF_MAIN_MEMORY[0]
    candidate: Settings | None = settings
    while candidate is not None:
        if not differences(candidate, saved):
            return candidate
        step = easier(candidate, code, vram_bytes)
        candidate = step[0] if step else None
    return None
