"""The judges' small networks: a classifier, a foreground mask, how they are fitted and what disturbs their training."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

Batch = Callable[[torch.Generator], tuple[Tensor, Tensor]]


def as_tensor(images: Sequence[Image.Image], size: int) -> Tensor:
    """Pictures as (N, 3, size, size) with values -1..1."""
    return plain_tensor([image.convert("RGB").resize((size, size), Image.Resampling.BOX) for image in images])


def plain_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size, as they are, as (N, 3, h, w) with values -1..1."""
    stacked = np.stack([np.asarray(image, dtype=np.uint8) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1


class Classifier(nn.Module):
    """Pictures (N, 3, h, w) in -1..1 to one row of logits per head."""

    def __init__(self, heads: Mapping[str, int], widths: Sequence[int] = (16, 32, 48, 64)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for index, width in enumerate(widths):
            layers += [nn.Conv2d(before, width, 3, 2 if index else 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.2))
        self.heads = nn.ModuleDict({name: nn.Linear(before * 16, count) for name, count in heads.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        found = self.trunk(pictures)
        return {name: head(found) for name, head in self.heads.items()}

    @torch.inference_mode()
    def answers(self, pictures: Tensor) -> dict[str, Tensor]:
        """Index of the likeliest class per picture and head."""
        self.eval()
        return {name: logits.argmax(1) for name, logits in self(pictures).items()}


class MaskNet(nn.Module):
    """Pictures (N, 3, h, w) in -1..1 to foreground logits (N, 1, h, w); found at half the size."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.fine = _block(3, width, 2)
        self.middle = _block(width, width * 2, 2)
        self.coarse = nn.Sequential(
            _block(width * 2, width * 3, 2), _block(width * 3, width * 3, 2), _block(width * 3, width * 2)
        )
        self.join = _block(width * 4, width * 2)
        self.out = nn.Sequential(_block(width * 3, width), nn.Conv2d(width, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        fine = self.fine(pictures)
        middle = self.middle(fine)
        coarse = functional.interpolate(self.coarse(middle), size=middle.shape[-2:])
        joined = functional.interpolate(self.join(torch.cat([middle, coarse], 1)), size=fine.shape[-2:])
        found: Tensor = self.out(torch.cat([fine, joined], 1))
        return functional.interpolate(found, size=pictures.shape[-2:], mode="bilinear")


def _block(before: int, width: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def fit(
    net: nn.Module, batch: Batch, loss_of: Callable[[object, Tensor], Tensor], steps: int, rate: float, seed: int
) -> None:
    """AdamW with a one-cycle rate on `batch(generator)`; leaves the net in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.02)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.15)
    net.train()
    for _ in range(steps):
        pictures, wanted = batch(generator)
        loss = loss_of(net(pictures), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        rates.step()
    net.eval()


def pick(count: int, size: int, generator: torch.Generator) -> Tensor:
    """`size` indices below `count` by chance."""
    return torch.randint(count, (size,), generator=generator)


def moved(pictures: Tensor, generator: torch.Generator, shift: float, zoom: float, fill: str = "border") -> Tensor:
    """Each picture moved by up to `shift` of its side and scaled by up to 1 +- zoom; never mirrored."""
    count = len(pictures)
    scale = 1 + (torch.rand(count, generator=generator) * 2 - 1) * zoom
    offset = (torch.rand(count, 2, generator=generator) * 2 - 1) * shift * 2
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = offset
    grid = functional.affine_grid(theta, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, padding_mode=fill, align_corners=False)


def disturbed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """What a generated picture may differ in: softness, grain, brightness, contrast and tint, per picture."""
    count = len(pictures)

    def chance(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    soft = functional.avg_pool2d(functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = chance(count, 1, 1, 1) * 0.9
    mixed = pictures * (1 - share) + soft * share
    contrast = 1 + (chance(count, 1, 1, 1) - 0.5) * 0.36
    tint = (chance(count, 3, 1, 1) - 0.5) * 0.2
    grain = torch.randn(pictures.shape, generator=generator) * chance(count, 1, 1, 1) * 0.12
    return (mixed * contrast + tint + grain).clamp(-1, 1)


def erased(pictures: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """A box of chance colour over `share` of the pictures, so that one covered spot decides nothing."""
    result = pictures.clone()
    height, width = pictures.shape[-2:]
    for index in range(len(pictures)):
        if float(torch.rand(1, generator=generator)) < share:
            tall, wide = (
                int(torch.randint(side // 8, side // 3, (1,), generator=generator)) for side in (height, width)
            )
            top = int(torch.randint(0, height - tall, (1,), generator=generator))
            left = int(torch.randint(0, width - wide, (1,), generator=generator))
            colour = torch.rand(3, 1, 1, generator=generator) * 2 - 1
            result[index, :, top : top + tall, left : left + wide] = colour
    return result


def code_digest(modules: Sequence[ModuleType], *more: object) -> str:
    """16 hex digits of what the modules compute (their syntax trees, so that layout and comments do not count)."""
    trees = [ast.dump(ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))) for module in modules]
    return hashlib.sha256("".join([*trees, *map(repr, more)]).encode()).hexdigest()[:16]
