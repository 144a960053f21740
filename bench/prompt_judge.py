"""What does a picture show? The networks that read its background, expression and clothes: the measure itself."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from bench import lora_runs, networks
from sketch_base import canvas, clothing, drawing, face, figure, hair, scenery, words
from sketch_base.drawing import BACKGROUNDS, CLOTHES_COLOURS, CLOTHES_NOUNS, EXPRESSIONS, Portrait

JUDGE_SEED = 11
FIT_DRAWINGS, HELD_OUT_DRAWINGS = 4000, 400
CACHE = lora_runs.ROOT / ".work" / "judges"
_COLOURS = tuple(CLOTHES_COLOURS)


@dataclass(frozen=True)
class Eye:
    """One network's view: the part of the 128-pixel picture it sees and the words it tells apart."""

    name: str
    box: tuple[int, int, int, int]
    size: tuple[int, int]  # width, height
    heads: dict[str, tuple[str, ...]]
    steps: int


EYES = (
    Eye("background", (0, 0, 128, 128), (48, 48), {"background": BACKGROUNDS}, 350),
    Eye("expression", (30, 20, 98, 98), (60, 64), {"expression": EXPRESSIONS}, 700),
    Eye("clothes", (8, 72, 120, 128), (64, 32), {"colour": _COLOURS, "noun": CLOTHES_NOUNS}, 450),
)


def words_of(portrait: Portrait) -> dict[str, str]:
    """What every head should answer for a drawing."""
    return {
        "background": portrait.background,
        "expression": portrait.expression,
        "colour": portrait.clothes_colour,
        "noun": portrait.clothes_noun,
    }


class Judge:
    """Reads background, expression and clothes off a picture; fitted on base drawings alone, before any LoRA."""

    def __init__(self) -> None:
        torch.manual_seed(JUDGE_SEED)
        self._nets = {
            eye.name: networks.Classifier({head: len(classes) for head, classes in eye.heads.items()}) for eye in EYES
        }

    def fitted(self, cache: Path = CACHE) -> Judge:
        """This judge after fitting, or as fitted before with the same code."""
        path = cache / f"prompt-{_digest()}.pt"
        if path.exists():
            for name, state in torch.load(path, weights_only=True).items():
                self._nets[name].load_state_dict(state)
                self._nets[name].eval()
            return self
        rng = random.Random(JUDGE_SEED)
        people = [drawing.random_portrait(rng) for _ in range(FIT_DRAWINGS)]
        images = [drawing.draw(person) for person in people]
        for eye in EYES:
            self._fit(eye, images, people)
        cache.mkdir(parents=True, exist_ok=True)
        torch.save({name: net.state_dict() for name, net in self._nets.items()}, path)
        return self

    def answers(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """The words read off each picture: background, expression, colour, noun."""
        found: list[dict[str, str]] = [{} for _ in images]
        for eye in EYES:
            for head, indices in self._nets[eye.name].answers(_view(eye, images)).items():
                for row, index in zip(found, indices.tolist(), strict=True):
                    row[head] = eye.heads[head][index]
        return found

    def _fit(self, eye: Eye, images: Sequence[Image.Image], people: Sequence[Portrait]) -> None:
        pixels = (_view(eye, images) * 127.5 + 127.5).to(torch.uint8)
        wanted = torch.tensor(
            [[classes.index(words_of(p)[head]) for head, classes in eye.heads.items()] for p in people]
        )

        def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            chosen = networks.pick(len(pixels), 32, generator)
            shown = pixels[chosen].float() / 127.5 - 1
            shown = networks.disturbed(networks.moved(shown, generator, 0.04, 0.08), generator)
            return networks.erased(shown, generator, 0.25), wanted[chosen]

        networks.fit(self._nets[eye.name], batch, _loss, eye.steps, 4e-3, JUDGE_SEED)


def _loss(logits: object, wanted: Tensor) -> Tensor:
    assert isinstance(logits, dict)  # narrows for the type checker
    losses = [functional.cross_entropy(row, wanted[:, index]) for index, row in enumerate(logits.values())]
    return torch.stack(losses).sum()


def _view(eye: Eye, images: Sequence[Image.Image]) -> Tensor:
    cut = [image.convert("RGB").resize((128, 128)).resize(eye.size, Image.Resampling.BOX, eye.box) for image in images]
    return networks.plain_tensor(cut)


def _digest() -> str:
    drawn_by = (networks, canvas, clothing, drawing, face, figure, hair, scenery, words)
    return networks.code_digest((*drawn_by, sys.modules[__name__]))
