"""The base's training set: portraits drawn from seeds, encoded once, in parts that training picks up as they come."""

from __future__ import annotations

import argparse
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from comfy_nodes.sketch.architecture import SKETCH

from .drawing import draw, random_portrait
from .portrait import Portrait

TRAIN_SEED = 100_000_000
PART = 1000


def portrait_of(seed: int) -> Portrait:
    """The training portrait that a seed stands for."""
    return random_portrait(random.Random(seed))


def drawing_of(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(draw(portrait_of(seed)))


@torch.no_grad()
def encode(vae: Any, images: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    """uint8 (N, 128, 128, 3) -> latents (N, channels, 16, 16) in fp16."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.autocast("cpu", torch.bfloat16):
        encoded = [vae.encoder(batch.contiguous(memory_format=torch.channels_last)) for batch in pixels.split(20)]
    return torch.cat(encoded).half()


def write_parts(vae: Any, folder: Path, first: int, count: int, workers: int) -> None:
    """Write parts first .. first+count-1 as `part_NNN.npy`, PART latents each, seed = TRAIN_SEED + index."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as drawers:
        for part in range(first, first + count):
            start = TRAIN_SEED + part * PART
            images = np.stack(list(drawers.map(drawing_of, range(start, start + PART), chunksize=50)))
            unfinished = folder / f"unfinished_{part:03d}.npy"
            np.save(unfinished, encode(vae, images).numpy())
            unfinished.rename(folder / f"part_{part:03d}.npy")


def read_parts(folder: Path) -> tuple[torch.Tensor, list[Portrait]]:
    """All parts so far: latents (N, channels, 16, 16) and their portraits."""
    latents: list[torch.Tensor] = []
    portraits: list[Portrait] = []
    for path in sorted(folder.glob("part_*.npy")):
        latents.append(torch.from_numpy(np.load(path)))
        start = TRAIN_SEED + int(path.stem.removeprefix("part_")) * PART
        portraits += [portrait_of(start + i) for i in range(PART)]
    return torch.cat(latents), portraits


def load_vae(path: Path) -> Any:
    vae = SKETCH.build_vae()
    vae.load_state_dict(torch.load(path))
    return vae.eval().to(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=Path(".work/base/vae/vae.pt"))
    parser.add_argument("--folder", type=Path, default=Path(".work/base/latents"))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--parts", type=int, default=12)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    write_parts(load_vae(args.vae), args.folder, args.first, args.parts, args.workers)


if __name__ == "__main__":
    main()
