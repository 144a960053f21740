"""Does a picture show what its prompt says? `python -m bench.prompt --checkpoint F --json report.json`."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import identity, lora_runs, pictures
from bench.prompt_judge import HELD_OUT_DRAWINGS, JUDGE_SEED, Judge, words_of
from sketch_base import characters, drawing
from sketch_base.drawing import BACKGROUNDS, CLOTHES, EXPRESSIONS

PICTURE_SEED = 50_000
GROUPS = ("background", "expression", "clothes")


def grade(answers: Sequence[dict[str, str]], wanted: Sequence[dict[str, str]]) -> dict[str, float]:
    """Share of right answers per word group; clothes are right when colour and noun both are."""
    rights: dict[str, list[bool]] = {group: [] for group in GROUPS}
    for answer, want in zip(answers, wanted, strict=True):
        rights["background"].append(answer["background"] == want["background"])
        rights["expression"].append(answer["expression"] == want["expression"])
        rights["clothes"].append(answer["colour"] == want["colour"] and answer["noun"] == want["noun"])
    shares = {group: sum(right) / len(right) for group, right in rights.items()}
    return shares | {"all": sum(shares.values()) / len(GROUPS)}


def held_out(judge: Judge) -> dict[str, float]:
    """The judge's own accuracy on base drawings it was not fitted on."""
    rng = random.Random(JUDGE_SEED + 1)
    people = [drawing.random_portrait(rng) for _ in range(HELD_OUT_DRAWINGS)]
    return grade(judge.answers([drawing.draw(person) for person in people]), [words_of(person) for person in people])


def ceiling(judge: Judge, character: characters.Character, count: int = 120) -> dict[str, float]:
    """The judge's accuracy on drawings of a character: what a perfect LoRA could reach."""
    rng = random.Random(JUDGE_SEED + 2)
    scenes = [characters.random_scene(rng) for _ in range(count)]
    images = [characters.draw_character(character, scene) for scene in scenes]
    return grade(
        judge.answers(images),
        [_scene_words(s.background, s.expression, s.clothes_colour, s.clothes_noun) for s in scenes],
    )


def grid(share: float, seed: int = PICTURE_SEED) -> list[dict[str, str]]:
    """All backgrounds x expressions x clothes, or an even `share` of them chosen by the seed."""
    full = [_scene_words(b, e, c, n) for b in BACKGROUNDS for e in EXPRESSIONS for c, n in CLOTHES]
    return full if share >= 1 else random.Random(seed).sample(full, max(1, round(len(full) * share)))


def _scene_words(background: str, expression: str, colour: str, noun: str) -> dict[str, str]:
    return {"background": background, "expression": expression, "colour": colour, "noun": noun}


def prompt_of(head: str, scene: dict[str, str]) -> str:
    return f"{head}, {scene['expression']}, {scene['colour']} {scene['noun']}, {scene['background']}"


def measure(
    judge: Judge, checkpoint: Path, loras: Mapping[str, Path], share: float, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Accuracy per word group with the LoRAs off and on; the grid's scenes go to the characters in turn.

    loras: LoRA file by the slug of an example; without any, only "off" is measured, for a nameless person.
    """
    base = pictures.load(checkpoint)
    people = [person for person in characters.EXAMPLES if person.slug in loras]
    heads = [f"{person.trigger} {person.class_word}" for person in people] or ["person"]
    rows = [(scene, index % len(heads)) for index, scene in enumerate(grid(share))]
    report: dict[str, Any] = {"pictures": len(rows), "characters": [person.slug for person in people]}
    for label in ("off", "on") if people else ("off",):
        right: list[tuple[dict[str, str], dict[str, str]]] = []
        for index, head in enumerate(heads):
            mine = [scene for scene, whose in rows if whose == index]
            modules = pictures.with_lora(base, loras[people[index].slug]) if label == "on" else base
            answers = judge.answers(
                pictures.generate(modules, [prompt_of(head, scene) for scene in mine], PICTURE_SEED)
            )
            tell(f"{head}, LoRA {label}: {_shares(grade(answers, mine))}")
            right += zip(answers, mine, strict=True)
        report[label] = grade([answer for answer, _ in right], [want for _, want in right])
    if people:
        report["drop"] = {group: report["off"][group] - report["on"][group] for group in report["off"]}
    return report


def _shares(shares: dict[str, float]) -> str:
    return "  ".join(f"{group} {share:.1%}" for group, share in shares.items())


def _tell(line: str) -> None:
    print(f"  {line}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--recipe", default="fast", help="recipe of the LoRAs (fast)")
    parser.add_argument("--loras", type=Path, help="folder of trained LoRAs, made where missing (.work/loras/...)")
    parser.add_argument("--base-only", action="store_true", help="measure the base without any LoRA")
    parser.add_argument("--share", type=float, default=1.0, help="share of the whole grid (0..1)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    judge = Judge().fitted()
    own = held_out(judge)
    print(f"judge on base drawings it never saw: {_shares(own)}", flush=True)
    ceilings = {person.slug: ceiling(judge, person) for person in characters.EXAMPLES}
    for slug, shares in ceilings.items():
        print(f"judge on drawings of {slug}: {_shares(shares)}", flush=True)
    folder = given.loras or lora_runs.folder_for(given.checkpoint, given.recipe)
    loras = {} if given.base_only else identity.example_loras(given.checkpoint, folder, given.recipe, given.threads)
    report = measure(judge, given.checkpoint, loras, given.share, _tell)
    for label in ("off", "on", "drop"):
        if label in report:
            print(f"LoRA {label:4} over {report['pictures']} pictures: {_shares(report[label])}", flush=True)
    if given.json:
        report |= {"judge_held_out": own, "judge_on_characters": ceilings}
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
