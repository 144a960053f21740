"""Who is this? The casts of characters and the network that tells them apart; changing it changes the measure."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from bench import lora_runs, networks
from sketch_base import (
    canvas,
    characters,
    clothing,
    drawing,
    face,
    figure,
    hair,
    marks,
    other_hand,
    words,
)
from sketch_base.characters import Character, Scene

SIZE = 64
HEAD = 48  # rows of the 64 that hold head and collar: clothes below are left out
JUDGE_SEED, CAST_SEED, PICTURE_SEED = 7, 2026, 90_000
PICTURES_EACH = 8
BASE_DRAWINGS, MASK_STEPS, WHO_STEPS = 500, 350, 400
CACHE = lora_runs.ROOT / ".work" / "judges"


@dataclass(frozen=True)
class Hand:
    """A way of drawing characters: pictures and true masks of one person in one scene."""

    name: str
    draw: Any
    mask: Any


OURS = Hand("ours", characters.draw_character, characters.character_mask)
OTHER = Hand("other", other_hand.draw_character, other_hand.character_mask)


@dataclass(frozen=True)
class Cast:
    """The characters a judge tells apart, their reference scenes, and the hand they are drawn in."""

    hand: Hand
    people: tuple[Character, ...]
    scenes: tuple[tuple[Scene, ...], ...]
    tested: int  # so many of the first people get a LoRA

    def references(self, index: int) -> list[tuple[Image.Image, str]]:
        """The 20 pictures and captions that a LoRA of this person is trained on."""
        person = self.people[index]
        return [(self.hand.draw(person, scene, 256), characters.caption(person, scene)) for scene in self.scenes[index]]


def our_cast() -> Cast:
    """The three examples and seven people by chance: two of these share hair, skin and all clothes with each other,
    and one shares them with the first example."""
    rng = random.Random(CAST_SEED)
    people = [*characters.EXAMPLES, *(_haired(rng, index) for index in range(5))]
    people += [characters.alike(people[-1], rng, 5), characters.alike(people[0], rng, 6)]
    seeds = [characters.EXAMPLE_SEED + index for index in (*range(8), 7, 0)]
    return Cast(OURS, tuple(people), tuple(tuple(characters.reference_scenes(20, seed)) for seed in seeds), 3)


def other_cast() -> Cast:
    """Eight people by chance, none of them in the repository, drawn by another script in another style."""
    rng = random.Random(CAST_SEED + 1)
    people = [_haired(rng, index) for index in range(7)]
    people = [
        replace(person, slug=f"other-{index}")
        for index, person in enumerate([*people, characters.alike(people[-1], rng, 7)])
    ]
    seeds = [CAST_SEED + 10 + index for index in (*range(7), 6)]
    return Cast(OTHER, tuple(people), tuple(tuple(characters.reference_scenes(20, seed)) for seed in seeds), 2)


def _haired(rng: random.Random, index: int) -> Character:
    """Somebody by chance who is not bald: hair is half of what a judge could confuse."""
    while (person := characters.random_character(rng, index)).look.hair_style == "bald":
        pass
    return person


def gate_scenes(index: int) -> list[Scene]:
    """Eight scenes for one character, all with different words, none of which is a reference scene."""
    rng = random.Random(PICTURE_SEED + index)
    expressions = [*drawing.EXPRESSIONS, *rng.sample(drawing.EXPRESSIONS, PICTURES_EACH - len(drawing.EXPRESSIONS))]
    clothes = rng.sample(drawing.CLOTHES, PICTURES_EACH)
    backgrounds = rng.sample(drawing.BACKGROUNDS, PICTURES_EACH)
    return [Scene(e, c[0], c[1], b) for e, c, b in zip(expressions, clothes, backgrounds, strict=True)]


class Judge:
    """Tells the people of a cast apart by head and shoulders on masked pictures; fitted on their references alone."""

    def __init__(self, cast: Cast) -> None:
        self.cast = cast
        self._mask = networks.MaskNet()
        self._who = networks.Classifier({"who": len(cast.people)})

    def fitted(self, cache: Path = CACHE) -> Judge:
        """This judge after fitting, or as fitted before with the same code and cast."""
        path = cache / f"identity-{self._digest()}.pt"
        if path.exists():
            saved = torch.load(path, weights_only=True)
            self._mask.load_state_dict(saved["mask"])
            self._who.load_state_dict(saved["who"])
            self._mask.eval()
            self._who.eval()
            return self
        torch.manual_seed(JUDGE_SEED)
        images, masks, labels = self._reference_tensors()
        self._fit_mask(images, masks)
        self._fit_who(images, labels)
        cache.mkdir(parents=True, exist_ok=True)
        torch.save({"mask": self._mask.state_dict(), "who": self._who.state_dict()}, path)
        return self

    def answers(self, images: Sequence[Image.Image]) -> list[int]:
        """Index of the recognised person for each picture."""
        found: list[int] = self._who.answers(self._seen(networks.as_tensor(images, SIZE)))["who"].tolist()
        return found

    @torch.inference_mode()
    def _seen(self, images: Tensor) -> Tensor:
        mask = torch.sigmoid(self._mask(images))
        return (images * mask)[:, :, :HEAD]

    def _reference_tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        hand, images, masks, labels = self.cast.hand, [], [], []
        for index, person in enumerate(self.cast.people):
            for scene in self.cast.scenes[index]:
                images.append(hand.draw(person, scene, 128))
                masks.append(hand.mask(person, scene, 128))
                labels.append(index)
        return networks.as_tensor(images, SIZE), _mask_tensor(masks), torch.tensor(labels)

    def _fit_mask(self, images: Tensor, masks: Tensor) -> None:
        """On base drawings of every style and on the references, each figure also before other backgrounds."""
        rng = random.Random(JUDGE_SEED)
        people = [drawing.random_portrait(rng) for _ in range(BASE_DRAWINGS)]
        base = networks.as_tensor([drawing.draw(person, SIZE) for person in people], SIZE)
        shapes = _mask_tensor([drawing.draw_mask(person, SIZE) for person in people])
        scenery, figures = torch.cat([base, images]), torch.cat([images, base[:200]])
        covers = torch.cat([masks, shapes[:200]])
        everyone, everywhere = torch.cat([base, images]), torch.cat([shapes, masks])

        def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            chosen = networks.pick(len(everyone), 16, generator)
            pasted, behind = networks.pick(len(figures), 16, generator), networks.pick(len(scenery), 16, generator)
            cover = covers[pasted]
            composed = figures[pasted] * cover + scenery[behind].flip(3) * (1 - cover)
            both = torch.cat([torch.cat([everyone[chosen], composed]), torch.cat([everywhere[chosen], cover])], 1)
            both = networks.moved(both, generator, 0.05, 0.1)
            return networks.disturbed(both[:, :3], generator), both[:, 3:].clamp(0, 1)

        networks.fit(self._mask, batch, _mask_loss, MASK_STEPS, 4e-3, JUDGE_SEED)

    def _fit_who(self, images: Tensor, labels: Tensor) -> None:
        """On the references as the mask shows them, four disturbed versions of each, moved anew at every step."""
        generator = torch.Generator().manual_seed(JUDGE_SEED + 1)
        seen = torch.cat([self._seen(networks.disturbed(images, generator)).clone() for _ in range(4)])
        who = labels.repeat(4)

        def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            chosen = networks.pick(len(seen), 32, generator)
            shown = networks.moved(seen[chosen], generator, 0.05, 0.1, fill="zeros")
            return networks.erased(shown, generator, 0.3), who[chosen]

        networks.fit(self._who, batch, _who_loss, WHO_STEPS, 4e-3, JUDGE_SEED + 1)

    def _digest(self) -> str:
        drawn_by = (networks, characters, marks, other_hand, canvas, clothing, drawing, face, figure, hair, words)
        return networks.code_digest((*drawn_by, sys.modules[__name__]), self.cast.people)


def _mask_loss(logits: object, wanted: Tensor) -> Tensor:
    assert isinstance(logits, Tensor)  # narrows for the type checker
    return functional.binary_cross_entropy_with_logits(logits, wanted)


def _who_loss(logits: object, wanted: Tensor) -> Tensor:
    assert isinstance(logits, dict)  # narrows for the type checker
    return functional.cross_entropy(logits["who"], wanted, label_smoothing=0.05)


def _mask_tensor(masks: Sequence[Image.Image]) -> Tensor:
    return (networks.as_tensor(masks, SIZE)[:, :1] + 1) / 2


def held_out_accuracy(judge: Judge, each: int = 20) -> float:
    """Share of newly drawn pictures of the cast that the judge names rightly."""
    right = total = 0
    for index, person in enumerate(judge.cast.people):
        rng = random.Random(5000 + index)
        images = [judge.cast.hand.draw(person, characters.random_scene(rng), 128) for _ in range(each)]
        right += sum(answer == index for answer in judge.answers(images))
        total += each
    return right / total
