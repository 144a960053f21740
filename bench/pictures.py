"""Pictures for the judges: made with the shipped sampler from a checkpoint and perhaps a LoRA, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from comfy_nodes.sketch import checkpoint, lora, sampling
from comfy_nodes.sketch.architecture import SketchModules
from comfy_nodes.sketch.reference_images import to_image
from comfy_nodes.sketch.tensor_file import read_tensors

BATCH = 8


def load(checkpoint_path: Path, lora_path: Path | None = None, strength: float = 1.0) -> SketchModules:
    """The base, with a LoRA added where one is given. ValueError when the LoRA matches no layer of it."""
    modules = checkpoint.load(checkpoint_path)
    return modules if lora_path is None else with_lora(modules, lora_path, strength)


def with_lora(modules: SketchModules, lora_path: Path, strength: float = 1.0) -> SketchModules:
    applied = lora.apply(modules, read_tensors(lora_path), strength)
    if applied.matched == 0:
        raise ValueError(f"{lora_path.name} matches no layer of the sketch base")
    return applied.modules


def generate(
    modules: SketchModules,
    prompts: Sequence[str],
    seed: int,
    size: int = 128,
    steps: int = sampling.DEFAULT_STEPS,
    cfg: float = sampling.DEFAULT_CFG,
) -> list[Image.Image]:
    """One picture per prompt; the noise depends on the seed and the place in the list."""
    import torch

    empty = sampling.encode_prompt(modules, "")
    images: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        part = list(prompts[start : start + BATCH])
        latent = sampling.empty_latent(modules, size, size, len(part))
        noise = torch.cat([sampling.noise_like(latent[:1], seed + start + index) for index in range(len(part))])
        done = sampling.sample(
            modules, sampling.encode_prompt(modules, part), empty, latent, seed, steps, cfg, noise=noise
        )
        images += [to_image(pixels) for pixels in sampling.decode(modules, done)]
    return images


def sheet(rows: Sequence[Sequence[Image.Image]], size: int = 128) -> Image.Image:
    """Rows of pictures as one contact sheet."""
    width = max(len(row) for row in rows)
    result = Image.new("RGB", (width * size, len(rows) * size), (255, 255, 255))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            result.paste(image.resize((size, size)), (x * size, y * size))
    return result
