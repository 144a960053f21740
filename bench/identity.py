"""Is a generated picture recognised as its character? `python -m bench.identity --checkpoint F --json report.json`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bench import lora_runs, networks, pictures
from bench.identity_judge import (
    JUDGE_SEED,
    PICTURE_SEED,
    PICTURES_EACH,
    SIZE,
    Cast,
    Judge,
    gate_scenes,
    held_out_accuracy,
    other_cast,
    our_cast,
)
from sketch_base import characters

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


def trained(cast: Cast, index: int, checkpoint: Path, folder: Path, recipe: str, threads: int) -> lora_runs.Run:
    """The LoRA of one person of the cast, trained where `folder` does not hold it yet."""
    person = cast.people[index]
    params = lora_runs.recipe_params(recipe)
    references = cast.references(index)
    return lora_runs.train(
        folder / person.slug, checkpoint, references, person.trigger, person.class_word, params, threads
    )


def example_loras(checkpoint: Path, folder: Path, recipe: str, threads: int) -> dict[str, Path]:
    """LoRA files of the three examples by slug."""
    cast = our_cast()
    return {
        person.slug: trained(cast, index, checkpoint, folder, recipe, threads).path
        for index, person in enumerate(cast.people[: cast.tested])
    }


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
        run = trained(cast, index, checkpoint, folder, recipe, threads)
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
    parser.add_argument("--recipe", default="fast", help="recipe of the LoRAs (fast)")
    parser.add_argument("--loras", type=Path, help="folder of trained LoRAs, made where missing (.work/loras/...)")
    parser.add_argument("--hand", choices=("ours", "other", "both"), default="both", help="who draws the characters")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    folder = given.loras or lora_runs.folder_for(given.checkpoint, given.recipe)
    folder.mkdir(parents=True, exist_ok=True)
    casts = [cast for name, cast in (("ours", our_cast), ("other", other_cast)) if given.hand in (name, "both")]
    reports = []
    for cast in casts:
        reports.append(measure(cast(), given.checkpoint, folder, given.recipe, given.threads))
        print_report(reports[-1])
    if given.json:
        given.json.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
