"""Train the autoencoder on the corpus and measure its round trip on drawings it has never seen."""

from __future__ import annotations

import argparse
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from comfy_nodes.sketch.architecture import SKETCH

from .corpus import corpus_image, unseen_image
from .muon import Muon

SEED = 20261120
GATE_SEED = 900_000_000  # seeds from here on are never trained on


def load_pool(path: Path, count: int, workers: int) -> torch.Tensor:
    """`count` corpus images as uint8 (count, 3, 128, 128); drawn once, then read from `path`."""
    if path.exists():
        return torch.from_numpy(np.load(path))
    with ProcessPoolExecutor(workers) as drawers:
        images = list(drawers.map(corpus_image, range(SEED, SEED + count), chunksize=64))
    pool = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
    np.save(path, pool)
    return torch.from_numpy(pool)


class Crops:
    """Random 64 px crops of the pool in [-1, 1], flipped, turned, colours swapped or inverted by chance."""

    def __init__(self, pool: torch.Tensor, batch: int, seed: int) -> None:
        self.pool, self.batch = pool, batch
        self.rng = np.random.default_rng(seed)

    def next(self) -> torch.Tensor:
        crops = [self._crop() for _ in range(self.batch)]
        batch = torch.stack(crops).float().div_(127.5).sub_(1)
        return batch.contiguous(memory_format=torch.channels_last)

    def _crop(self) -> torch.Tensor:
        y, x = self.rng.integers(0, 65, 2)
        crop = self.pool[self.rng.integers(len(self.pool)), :, y : y + 64, x : x + 64]
        if self.rng.random() < 0.5:
            crop = crop.flip(2)
        if self.rng.random() < 0.15:
            crop = crop.transpose(1, 2)
        if self.rng.random() < 0.3:
            crop = crop[torch.from_numpy(self.rng.permutation(3))]
        return 255 - crop if self.rng.random() < 0.1 else crop


def reconstruction_loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1]: absolute and squared error plus edges at three scales (a blur is punished twice)."""
    loss = (out - target).abs().mean() + 4 * functional.mse_loss(out, target)
    for scale in (1, 2, 4):
        a = functional.avg_pool2d(out, scale) if scale > 1 else out
        b = functional.avg_pool2d(target, scale) if scale > 1 else target
        error = a - b
        loss = loss + 0.5 * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())
    return loss


class NormalisedLatents(torch.nn.Module):
    """Zero mean and unit deviation per latent channel; the running figures are folded into the encoder at the end."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(channels, affine=False, momentum=0.01)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = self.norm(latents)
        return normalised


@torch.no_grad()
def calibrate(encoder: torch.nn.Module, norm: torch.nn.BatchNorm2d, crops: Crops, batches: int = 40) -> None:
    """Measure the latents of the averaged encoder: the running figures belong to the weights of the last steps."""
    norm.reset_running_stats()
    norm.momentum = None  # a plain mean over all batches
    norm.train()
    for _ in range(batches):
        norm(encoder(crops.next()))
    norm.eval()


def fold(encoder: torch.nn.Module, norm: torch.nn.BatchNorm2d) -> None:
    """Make the encoder's last convolution give normalised latents by itself."""
    last = list(encoder.layers)[-1]  # type: ignore[arg-type]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = 1 / (norm.running_var + norm.eps).sqrt()
    with torch.no_grad():
        last.bias.copy_((last.bias - norm.running_mean) * scale)
        last.weight.mul_(scale[:, None, None, None])


def initialise(vae: torch.nn.Module) -> None:
    """Every residual block starts as the identity (its last convolution near zero)."""
    for module in vae.modules():
        if type(module).__name__ == "AutoencoderTinyBlock":
            torch.nn.init.normal_(module.conv[-1].weight, std=1e-3)  # type: ignore[index, union-attr, arg-type]
            torch.nn.init.zeros_(module.conv[-1].bias)  # type: ignore[index, union-attr, arg-type]


def split_weights(vae: torch.nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights for Muon (64 x 64 convolutions) and the rest for Adam."""
    inner: list[torch.Tensor] = []
    outer: list[torch.Tensor] = []
    for weight in vae.parameters():
        (inner if weight.ndim == 4 and min(weight.shape[:2]) >= 64 else outer).append(weight)
    return inner, outer


def schedule(step: int, steps: int, warmup: int = 100) -> float:
    """Warm-up, then cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def train(folder: Path, steps: int, batch: int, pool_size: int, muon: bool = True, start: Path | None = None) -> Any:
    """Train for `steps` steps; writes log.csv and vae.pt (folded, fp32 state dict) into `folder`."""
    torch.manual_seed(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    crops = Crops(load_pool(folder / f"pool_{pool_size}.npy", pool_size, 2), batch, SEED)
    vae = SKETCH.build_vae()
    initialise(vae)
    vae = vae.to(memory_format=torch.channels_last).train()
    latent_norm = NormalisedLatents(SKETCH.latent_channels)
    if start is not None:
        saved = torch.load(start)
        vae.load_state_dict(saved["vae"])
        latent_norm.load_state_dict(saved["norm"])
    inner, outer = split_weights(vae)
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(outer if muon else [*inner, *outer], lr=1e-3, betas=(0.9, 0.98))
    ]
    if muon:
        optimisers.append(Muon(inner, lr=3e-3))
    base_rates = [o.param_groups[0]["lr"] for o in optimisers]
    average = {k: v.clone() for k, v in vae.state_dict().items()}
    started = time.time()
    log = (folder / "log.csv").open("w", buffering=1)
    for step in range(steps):
        for optimiser, rate in zip(optimisers, base_rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * schedule(step, steps)
        loss, error = _step(vae, latent_norm, crops.next(), optimisers)
        keep = min(0.998, step / (step + 20))
        with torch.no_grad():
            for name, value in vae.state_dict().items():
                average[name].lerp_(value, 1 - keep)
        if step % 20 == 0:
            log.write(f"{step},{loss:.4f},{-10 * math.log10(error / 4):.2f},{time.time() - started:.0f}\n")
        if step % 500 == 499:
            torch.save({"vae": average, "norm": latent_norm.state_dict(), "step": step}, folder / "vae_unfolded.pt")
    vae.load_state_dict(average)
    calibrate(vae.encoder, latent_norm.norm, crops)
    fold(vae.encoder, latent_norm.norm)
    torch.save(vae.state_dict(), folder / "vae.pt")
    return vae


def _step(
    vae: Any, latent_norm: torch.nn.Module, target: torch.Tensor, optimisers: list[torch.optim.Optimizer]
) -> tuple[float, float]:
    with torch.autocast("cpu", torch.bfloat16):
        latents = latent_norm(vae.encoder(target))
        noise = torch.randn_like(latents) * torch.rand(len(latents), 1, 1, 1) * 0.12
        out = vae.decoder(latents + noise)
    loss = reconstruction_loss(out.float(), target)
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    for optimiser in optimisers:
        optimiser.step()
    with torch.no_grad():
        error = functional.mse_loss(out.float(), target)
    return float(loss.detach()), float(error)


@torch.no_grad()
def round_trip(vae: Any, count: int = 500) -> dict[str, float]:
    """Mean PSNR in dB of encode-decode over unseen drawings, half of them in a hand that was never trained on."""
    figures: dict[bool, list[float]] = {False: [], True: []}
    for start in range(0, count, 20):
        drawn = [unseen_image(GATE_SEED + i) for i in range(start, min(start + 20, count))]
        target = torch.from_numpy(np.stack([d[0] for d in drawn])).permute(0, 3, 1, 2).float() / 127.5 - 1
        out = vae.decoder(vae.encoder(target)).clamp(-1, 1)
        for (_, foreign), error in zip(drawn, (out - target).square().mean((1, 2, 3)), strict=True):
            figures[foreign].append(-10 * math.log10(float(error) / 4))
    both = figures[False] + figures[True]
    return {
        "drawings": float(len(both)),
        "psnr_db": float(np.mean(both)),
        "psnr_db_known_hands": float(np.mean(figures[False])),
        "psnr_db_unseen_hand": float(np.mean(figures[True])),
        "psnr_db_worst": float(np.min(both)),
    }


@torch.no_grad()
def round_trip_sheet(vae: Any, path: Path, count: int = 12) -> None:
    """A picture of the gate's first drawings: above as drawn, below after encode and decode."""
    drawn = np.stack([unseen_image(GATE_SEED + i)[0] for i in range(count)])
    pixels = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1
    out = ((vae.decoder(vae.encoder(pixels)).clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).byte().numpy()
    Image.fromarray(np.vstack([np.hstack(list(drawn)), np.hstack(list(out))])).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".work/base/vae"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pool", type=int, default=12000)
    parser.add_argument("--adam", action="store_true")
    parser.add_argument("--start", type=Path, help="an earlier vae_unfolded.pt to go on from")
    args = parser.parse_args()
    vae = train(args.folder, args.steps, args.batch, args.pool, muon=not args.adam, start=args.start)
    figures = round_trip(vae)
    (args.folder / "vae_round_trip.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
