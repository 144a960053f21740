"""Is a generated picture recognised as its character? `python -m bench.identity --checkpoint F --out report.json`."""

from __future__ import annotations

import argparse
import json
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

from bench import lora_runs, networks, pictures
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


# --- copies --------------------------------------------------------------------------------------------------------


def copy_threshold(references: Tensor) -> tuple[float, float, float]:
    """(threshold, near, far): distances at which a picture counts as a copy of a reference.

    near: the largest distance of a reference from its own blurred, slightly moved, slightly tinted twin; far: the
    smallest distance of two different references of one character. The threshold is their geometric mean.
    """
    generator = torch.Generator().manual_seed(JUDGE_SEED)
    twins = networks.disturbed(networks.moved(references, generator, 0.008, 0.01), generator)
    near = float((references - twins).square().mean(dim=(1, 2, 3)).sqrt().max())
    pairs = torch.cdist(references.flatten(1), references.flatten(1)) / references[0].numel() ** 0.5
    far = float(pairs[~torch.eye(len(references), dtype=torch.bool)].min())
    return (near * far) ** 0.5, near, far


def count_copies(images: Tensor, references: Tensor, threshold: float) -> tuple[int, float]:
    """How many pictures lie nearer than the threshold to a reference, and the smallest distance."""
    distances = torch.cdist(images.flatten(1), references.flatten(1)) / images[0].numel() ** 0.5
    nearest = distances.min(dim=1).values
    return int((nearest < threshold).sum()), float(nearest.min())


# --- the measure ---------------------------------------------------------------------------------------------------


def held_out_accuracy(judge: Judge, each: int = 20) -> float:
    """Share of newly drawn pictures of the cast that the judge names rightly."""
    right = total = 0
    for index, person in enumerate(judge.cast.people):
        rng = random.Random(5000 + index)
        images = [judge.cast.hand.draw(person, characters.random_scene(rng), 128) for _ in range(each)]
        right += sum(answer == index for answer in judge.answers(images))
        total += each
    return right / total


def measure(
    cast: Cast, checkpoint: Path, folder: Path, recipe: str, threads: int, sheets: bool = True
) -> dict[str, Any]:
    """Train (where `folder` holds no LoRA yet), generate with the LoRA on and off, and judge."""
    judge = Judge(cast).fitted()
    base = pictures.load(checkpoint)
    report: dict[str, Any] = {
        "hand": cast.hand.name,
        "recipe": recipe,
        "people": [p.slug for p in cast.people],
        "chance": 1 / len(cast.people),
        "judge_held_out": held_out_accuracy(judge),
        "characters": {},
    }
    rows: list[list[Image.Image]] = []
    for index in range(cast.tested):
        person = cast.people[index]
        references = cast.references(index)
        run = lora_runs.train(
            folder / person.slug,
            checkpoint,
            references,
            person.trigger,
            person.class_word,
            lora_runs.recipe_params(recipe),
            threads,
        )
        prompts = [characters.caption(person, scene) for scene in gate_scenes(index)]
        seed = PICTURE_SEED + 100 * index
        on = pictures.generate(pictures.with_lora(base, run.path), prompts, seed)
        off = pictures.generate(base, prompts, seed)
        rows += [[image for image, _ in references[:PICTURES_EACH]], on, off]
        report["characters"][person.slug] = _row(judge, index, on, off, references) | {"train_seconds": run.seconds}
    if sheets:
        pictures.sheet(rows).save(folder / f"identity-{cast.hand.name}.png")
    return report


def _row(
    judge: Judge, index: int, on: list[Image.Image], off: list[Image.Image], references: list[tuple[Image.Image, str]]
) -> dict[str, Any]:
    answers_on, answers_off = judge.answers(on), judge.answers(off)
    known = networks.as_tensor([image for image, _ in references], SIZE)
    threshold, near, far = copy_threshold(known)
    copies, nearest = count_copies(networks.as_tensor(on, SIZE), known, threshold)
    return {
        "recall": sum(a == index for a in answers_on) / len(on),
        "recall_off": sum(a == index for a in answers_off) / len(off),
        "answers": answers_on,
        "answers_off": answers_off,
        "copies": copies,
        "nearest_reference": nearest,
        "copy_threshold": threshold,
        "distance_to_own_twin": near,
        "distance_of_two_references": far,
    }


def print_report(report: dict[str, Any]) -> None:
    people = report["people"]
    print(
        f"\nidentity, hand '{report['hand']}', recipe {report['recipe']}: chance {report['chance']:.0%}, "
        f"judge on newly drawn pictures {report['judge_held_out']:.1%}"
    )
    for slug, row in report["characters"].items():
        print(
            f"  {slug:14} recall {row['recall']:.0%}  LoRA off {row['recall_off']:.0%}  copies {row['copies']} "
            f"(nearest {row['nearest_reference']:.2f}, threshold {row['copy_threshold']:.2f})"
        )
    print("  confusion (rows: asked for, columns: recognised as)")
    print(" " * 17 + " ".join(f"{slug[:9]:>9}" for slug in people))
    for slug, row in report["characters"].items():
        for label, answers in (("on", row["answers"]), ("off", row["answers_off"])):
            counts = " ".join(f"{answers.count(index):9d}" for index in range(len(people)))
            print(f"  {slug[:11]:11} {label:3}{counts}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument(
        "--loras", type=Path, default=lora_runs.ROOT / ".work" / "identity", help="trained LoRAs, made where missing"
    )
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--hand", choices=("ours", "other", "both"), default="both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    casts = [cast() for name, cast in (("ours", our_cast), ("other", other_cast)) if given.hand in (name, "both")]
    given.loras.mkdir(parents=True, exist_ok=True)
    reports = [measure(cast, given.checkpoint, given.loras, given.recipe, given.threads) for cast in casts]
    for report in reports:
        print_report(report)
    if given.out:
        given.out.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
