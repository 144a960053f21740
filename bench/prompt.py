"""Does a picture show what its prompt says? `python -m bench.prompt --checkpoint F --lora L --trigger "mira woman"`."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from bench import lora_runs, networks, pictures
from sketch_base import canvas, characters, clothing, drawing, face, figure, hair, scenery, words
from sketch_base.drawing import BACKGROUNDS, CLOTHES, CLOTHES_COLOURS, CLOTHES_NOUNS, EXPRESSIONS, Portrait

JUDGE_SEED, PICTURE_SEED = 11, 50_000
FIT_DRAWINGS, HELD_OUT_DRAWINGS = 4000, 400
CACHE = lora_runs.ROOT / ".work" / "judges"
GROUPS = ("background", "expression", "clothes")
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
    judge: Judge,
    checkpoint: Path,
    lora: Path | None,
    head: str,
    share: float,
    report_progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Accuracy per word group with the LoRA off and (where one is given) on, over the grid."""
    base = pictures.load(checkpoint)
    scenes = grid(share)
    prompts = [prompt_of(head, scene) for scene in scenes]
    report: dict[str, Any] = {"head": head, "pictures": len(scenes)}
    for label, modules in (("off", base), ("on", pictures.with_lora(base, lora) if lora else None)):
        if modules is not None:
            answers = judge.answers(pictures.generate(modules, prompts, PICTURE_SEED))
            report[label] = grade(answers, scenes)
            report_progress(f"{head}: LoRA {label} {_shares(report[label])}")
    if "on" in report:
        report["drop"] = {group: report["off"][group] - report["on"][group] for group in report["off"]}
    return report


def _shares(shares: dict[str, float]) -> str:
    return "  ".join(f"{group} {share:.1%}" for group, share in shares.items())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument(
        "--loras",
        type=Path,
        default=lora_runs.ROOT / ".work" / "identity",
        help="folder of <character>/lora.safetensors of the examples; those missing are left out",
    )
    parser.add_argument("--share", type=float, default=1.0, help="share of the whole grid (0..1)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    judge = Judge().fitted()
    reports: list[dict[str, Any]] = [{"judge_held_out": held_out(judge)}]
    print(f"judge on base drawings it never saw: {_shares(reports[0]['judge_held_out'])}", flush=True)
    for person in characters.EXAMPLES:
        lora = given.loras / person.slug / "lora.safetensors"
        print(f"judge on drawings of {person.slug}: {_shares(ceiling(judge, person))}", flush=True)
        if lora.exists():
            head = f"{person.trigger} {person.class_word}"
            report = measure(judge, given.checkpoint, lora, head, given.share, lambda line: print(line, flush=True))
            print(f"{head}: drop {_shares(report['drop'])}")
            reports.append(report)
    if len(reports) == 1:
        reports.append(
            measure(judge, given.checkpoint, None, "person", given.share, lambda line: print(line, flush=True))
        )
    if given.out:
        given.out.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
