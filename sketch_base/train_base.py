"""Train the U-Net and both text encoders on encoded portraits and their captions; can stop and resume at any time."""

from __future__ import annotations

import argparse
import json
import os
import random
import string
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from comfy_nodes.sketch import checkpoint, sampling
from comfy_nodes.sketch.architecture import SKETCH, SketchModules

from .drawing import caption
from .latents import read_parts
from .muon import Muon
from .portrait import Portrait

SEED = 20261120
PARTS = ("unet", "text_encoder_1", "text_encoder_2")
GRID_PROMPTS = (
    "woman, red long hair, light skin, green eyes, smiling, blue suit, in a forest",
    "man, black short hair, dark skin, brown eyes, angry, red hoodie, by the sea",
    "robot, bald head, silver skin, blue eyes, neutral, purple armour, under a night sky",
    "creature, white spiky hair, green skin, amber eyes, surprised, yellow shirt, in a city",
    "person, blond curly hair, tan skin, blue eyes, sad, green sweater, at sunset",
    "woman, purple bob hair, pale skin, grey eyes, surprised, orange overalls, in a room",
    "man, brown short hair, light skin, blue eyes, smiling, white shirt, beard, in the mountains",
    "woman, black ponytail hair, brown skin, brown eyes, angry, black hoodie, plain yellow background",
    "person, pink mohawk hair, tan skin, green eyes, neutral, red sweater, sunglasses, in the desert",
    "man, blue hat, sad, grey suit, plain pink background",
    "zorbeq woman, smiling, yellow hoodie, by the sea",
    "woman",
)


@dataclass(frozen=True)
class Recipe:
    """Numbers of one run; `steps` may be moved while it runs (control.json), the schedule follows."""

    steps: int = 4300
    batch: int = 32
    adam_rate: float = 1e-3
    muon_rate: float = 2e-3
    warmup: int = 150
    decay_share: float = 0.3
    average: float = 0.999
    snr_gamma: float = 5.0
    blank_share: float = 0.1
    trigger_share: float = 0.5
    odd_size_share: float = 0.1


def rate_factor(step: int, recipe: Recipe) -> float:
    """Warm-up, plateau, then a line to zero over the last `decay_share` of the steps."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return max(0.0, min(1.0, (recipe.steps - step) / (recipe.steps * recipe.decay_share)))


def prompt_of(portrait: Portrait, rng: random.Random, recipe: Recipe) -> str:
    """A training caption: blank at times, with a meaningless trigger in half of the others."""
    if rng.random() < recipe.blank_share:
        return ""
    trigger = ""
    if rng.random() < recipe.trigger_share:
        trigger = "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(4, 10)))
    return caption(portrait, rng, trigger)


def tokens_of(modules: SketchModules, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """As sampling.tokenize, in one call for the whole batch."""
    rows = modules.tokenizer(texts, truncation=True, max_length=SKETCH.positions).input_ids
    padded = [
        torch.tensor([row + [pad] * (SKETCH.positions - len(row)) for row in rows])
        for pad in (SKETCH.text_1.pad_id, SKETCH.text_2.pad_id)
    ]
    return padded[0], padded[1]


def sizes_of(count: int, rng: random.Random, recipe: Recipe) -> torch.Tensor:
    """SDXL's size vector: nearly always our own size; at times another, so that the model does not hang on it."""
    rows = []
    for _ in range(count):
        side = 128 if rng.random() > recipe.odd_size_share else rng.choice((64, 96, 160, 192, 256, 512, 1024))
        rows.append([side, side, 0, 0, side, side])
    return torch.tensor(rows, dtype=torch.float32)


class Trainer:
    """Weights, optimisers, moving average and random state of one run."""

    def __init__(self, recipe: Recipe, vae_path: Path) -> None:
        torch.manual_seed(SEED)
        self.recipe = recipe
        self.rng = random.Random(SEED)
        self.step = 0
        self.modules = SKETCH.build()
        self.modules.vae.load_state_dict(torch.load(vae_path))
        prepare(self.modules)
        self.average = {part: _copy(getattr(self.modules, part).state_dict()) for part in PARTS}
        self.optimisers = optimisers_of(self.modules, recipe)
        self.base_rates = [o.param_groups[0]["lr"] for o in self.optimisers]
        self.shares = sampling.alphas_bar(SKETCH.scheduler_config).float()

    def loss(self, latents: torch.Tensor, portraits: list[Portrait]) -> torch.Tensor:
        """Mean weighted v error of one batch of latents (N, channels, 16, 16)."""
        count = len(latents)
        ids = tokens_of(self.modules, [prompt_of(p, self.rng, self.recipe) for p in portraits])
        times = ((torch.arange(count) + torch.rand(count)) / count * SKETCH.train_steps).long()
        share = self.shares[times].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
        target = share.sqrt() * noise - (1 - share).sqrt() * latents
        with torch.autocast("cpu", torch.bfloat16):
            told = sampling.encode_tokens(self.modules, *ids)
            added = {"text_embeds": told.pooled, "time_ids": sizes_of(count, self.rng, self.recipe)}
            guess = self.modules.unet(noisy, times, told.hidden, added_cond_kwargs=added, return_dict=False)[0]
        snr = (share / (1 - share)).flatten()
        weight = snr.clamp(max=self.recipe.snr_gamma) / (snr + 1)
        error = (guess.float() - target).square().mean((1, 2, 3))
        return (weight * error).mean() / weight.mean()

    def train_step(self, latents: torch.Tensor, portraits: list[Portrait]) -> float:
        factor = rate_factor(self.step, self.recipe)
        for optimiser, rate in zip(self.optimisers, self.base_rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.zero_grad()
        loss = self.loss(latents, portraits)
        loss.backward()
        for part in PARTS:
            torch.nn.utils.clip_grad_norm_(getattr(self.modules, part).parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self._follow()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def _follow(self) -> None:
        keep = min(self.recipe.average, (self.step + 1) / (self.step + 20))
        for part in PARTS:
            average = self.average[part]
            for name, value in getattr(self.modules, part).state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value, 1 - keep)

    def averaged(self) -> SketchModules:
        """The averaged weights as modules of their own."""
        modules = SKETCH.build()
        for part in PARTS:
            getattr(modules, part).load_state_dict(self.average[part])
        modules.vae.load_state_dict(self.modules.vae.state_dict())
        for part in (*PARTS, "vae"):
            getattr(modules, part).eval().requires_grad_(False)
        return modules

    def save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "average": self.average,
            "rng": self.rng.getstate(),
            "torch": torch.get_rng_state(),
            "weights": {part: getattr(self.modules, part).state_dict() for part in PARTS},
            "optimisers": [o.state_dict() for o in self.optimisers],
        }
        unfinished = path.with_suffix(".unfinished")
        torch.save(state, unfinished)
        unfinished.rename(path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, weights_only=False)
        self.step, self.average = state["step"], state["average"]
        self.rng.setstate(state["rng"])
        torch.set_rng_state(state["torch"])
        for part in PARTS:
            getattr(self.modules, part).load_state_dict(state["weights"][part])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)


def _copy(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def prepare(modules: SketchModules) -> None:
    """Start values: unused vocabulary rows zero, the last convolution of every residual block zero.

    Attention is computed in plain steps: on a CPU the fused kernel's backward pass took a third of a training step.
    """
    from diffusers.models.attention_processor import AttnProcessor

    modules.unet.set_attn_processor(AttnProcessor())
    used = sorted(modules.tokenizer.get_vocab().values())
    for encoder in (modules.text_encoder_1, modules.text_encoder_2):
        encoder.train()
        encoder.set_attn_implementation("eager")
        table = encoder.get_input_embeddings().weight
        with torch.no_grad():
            rows = torch.randn(len(used), table.shape[1]) * 0.5
            table.zero_()
            table[used] = rows
    modules.unet.train()
    for module in modules.unet.modules():
        if type(module).__name__ == "ResnetBlock2D":
            torch.nn.init.zeros_(module.conv2.weight)  # type: ignore[union-attr, arg-type]
    torch.nn.init.zeros_(modules.unet.conv_out.weight)
    modules.vae.requires_grad_(False)


def optimisers_of(modules: SketchModules, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Adam for vectors, embeddings and the outermost layers; Muon for every other matrix and convolution."""
    outer_names = ("embedding", "conv_in", "conv_out", "text_projection")
    inner: list[torch.Tensor] = []
    outer: list[torch.Tensor] = []
    for part in PARTS:
        for name, weight in getattr(modules, part).named_parameters():
            is_outer = weight.ndim < 2 or any(word in name for word in outer_names) or recipe.muon_rate == 0
            (outer if is_outer else inner).append(weight)
    optimisers: list[torch.optim.Optimizer] = [torch.optim.Adam(outer, lr=recipe.adam_rate, betas=(0.9, 0.98))]
    return [*optimisers, Muon(inner, lr=recipe.muon_rate)] if inner else optimisers


def grid(modules: SketchModules, path: Path, prompts: tuple[str, ...] = GRID_PROMPTS, steps: int = 16) -> None:
    """A contact sheet of fixed prompts, all from one seed's noise, four to a row."""
    with torch.autocast("cpu", torch.bfloat16):
        positive = sampling.encode_prompt(modules, list(prompts))
        negative = sampling.encode_prompt(modules, [""] * len(prompts))
        latent = sampling.empty_latent(modules, 128, 128, len(prompts))
        latent = sampling.sample(modules, positive, negative, latent, seed=7, steps=steps, cfg=4.0)
        pictures = sampling.decode(modules, latent)
    sheet = Image.new("RGB", (4 * 128, (len(prompts) + 3) // 4 * 128))
    for i, picture in enumerate((pictures.float().numpy() * 255).round().astype("uint8")):
        sheet.paste(Image.fromarray(picture), (i % 4 * 128, i // 4 * 128))
    sheet.save(path)


def publish(modules: SketchModules, path: Path, step: int) -> None:
    """Write the one file at its place for everybody, whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    checkpoint.save(modules, unfinished, {"modelspec.title": "Troupe sketch base", "troupe.step": str(step)})
    os.replace(unfinished, path)


def control(folder: Path, recipe: Recipe) -> Recipe:
    """The recipe with steps and threads as control.json asks now."""
    path = folder / "control.json"
    wanted = json.loads(path.read_text()) if path.exists() else {}
    if "threads" in wanted:
        torch.set_num_threads(wanted["threads"])
    return Recipe(**{**asdict(recipe), "steps": wanted.get("steps", recipe.steps)})


def train(folder: Path, recipe: Recipe, published: Path, save_every: int, grid_every: int) -> None:
    """Run to the recipe's end: log.csv, state.pt, grid_*.png in `folder`, newest averaged weights at `published`."""
    trainer = Trainer(recipe, folder / "vae" / "vae.pt")
    if (folder / "state.pt").exists():
        trainer.resume(folder / "state.pt")
    latents, portraits = read_parts(folder / "latents")
    log = (folder / "log.csv").open("a", buffering=1)
    started, total, counted = time.time(), 0.0, 0
    while trainer.step < trainer.recipe.steps:
        rows = torch.randint(len(latents), (recipe.batch,))
        total += trainer.train_step(latents[rows].float(), [portraits[row] for row in rows.tolist()])
        counted += 1
        if trainer.step % 25 == 0:
            log.write(f"{trainer.step},{total / counted:.5f},{time.time() - started:.0f},{len(latents)}\n")
            total, counted = 0.0, 0
            trainer.recipe = control(folder, trainer.recipe)
            if len(list((folder / "latents").glob("part_*.npy"))) * 1000 > len(latents):
                latents, portraits = read_parts(folder / "latents")
        last = trainer.step >= trainer.recipe.steps
        if trainer.step % save_every == 0 or last:
            trainer.save(folder / "state.pt")
            publish(trainer.averaged(), published, trainer.step)
        if trainer.step % grid_every == 0 or last:
            grid(trainer.averaged(), folder / f"grid_{trainer.step:05d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".work/base"))
    parser.add_argument("--published", type=Path, default=Path(".work/sketch_base.safetensors"))
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--muon-rate", type=float, default=Recipe.muon_rate)
    parser.add_argument("--adam-rate", type=float, default=Recipe.adam_rate)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--grid-every", type=int, default=1000)
    args = parser.parse_args()
    recipe = Recipe(steps=args.steps, batch=args.batch, muon_rate=args.muon_rate, adam_rate=args.adam_rate)
    train(args.folder, recipe, args.published, args.save_every, args.grid_every)


if __name__ == "__main__":
    main()
