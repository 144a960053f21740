"""Characters over the base's portraits: the three examples, characters drawn by chance, and their reference sets."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from .canvas import Canvas
from .drawing import draw, draw_mask, random_portrait, random_style
from .marks import PAINTERS, Mark, paint_marks
from .portrait import Anchors, Portrait, Style
from .words import BACKGROUNDS, CLOTHES_COLOURS, CLOTHES_NOUNS, EXPRESSIONS

REFERENCES = 20
EXAMPLE_SEED = 20261120
EXAMPLE_SIZE = 512
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Character:
    """Who somebody is, whatever they wear: a look (clothes, expression and background in it do not count) and marks."""

    slug: str
    name: str
    class_word: str
    trigger: str
    description: str
    look: Portrait
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Scene:
    """What stays changeable about a character: expression, clothes and background, and where the figure stands."""

    expression: str
    clothes_colour: str
    clothes_noun: str
    background: str
    dx: float = 0.0
    dy: float = 0.0
    tilt: float = 0.0
    jitter: int = 0

    @property
    def phrases(self) -> str:
        """The scene in words: what a LoRA caption says after its head."""
        return f"{self.expression}, {self.clothes_colour} {self.clothes_noun}, {self.background}"


def caption(character: Character, scene: Scene) -> str:
    """Trigger and class word, then only what should stay changeable."""
    return f"{character.trigger} {character.class_word}, {scene.phrases}"


def draw_character(character: Character, scene: Scene, size: int = 128) -> Image.Image:
    """RGB picture of the character in the scene."""
    return draw(_portrait(character, scene), size, _painter(character))


def character_mask(character: Character, scene: Scene, size: int = 128) -> Image.Image:
    """L picture, 255 where the character covers the background."""
    return draw_mask(_portrait(character, scene), size, _painter(character))


def random_scene(rng: random.Random) -> Scene:
    """A scene from the base's words with the figure a little off centre."""
    return Scene(
        expression=rng.choice(EXPRESSIONS),
        clothes_colour=rng.choice(tuple(CLOTHES_COLOURS)),
        clothes_noun=rng.choice(CLOTHES_NOUNS),
        background=rng.choice(BACKGROUNDS),
        dx=rng.uniform(-3.5, 3.5),
        dy=rng.uniform(-2, 3),
        tilt=rng.uniform(-2.5, 2.5),
        jitter=rng.randrange(1 << 30),
    )


def reference_scenes(count: int, seed: int) -> list[Scene]:
    """`count` scenes in which every expression, noun, colour and background comes up about equally often."""
    rng = random.Random(seed)
    expressions, nouns = _even(EXPRESSIONS, count, rng), _even(CLOTHES_NOUNS, count, rng)
    colours, backgrounds = _even(tuple(CLOTHES_COLOURS), count, rng), _even(BACKGROUNDS, count, rng)
    return [
        replace(random_scene(rng), expression=e, clothes_noun=n, clothes_colour=c, background=b)
        for e, n, c, b in zip(expressions, nouns, colours, backgrounds, strict=True)
    ]


def random_character(rng: random.Random, index: int) -> Character:
    """A character by chance: a random look without accessory and one or two marks."""
    look = replace(random_portrait(rng), accessory="", style=random_style(rng))
    kinds = rng.sample(sorted(PAINTERS), rng.choice((1, 2, 2)))
    marks = tuple(Mark(kind, _bright(rng), _bright(rng), rng.choice((-1, 1))) for kind in kinds)
    trigger = "".join(rng.choice(_LETTERS) for _ in range(6))
    return Character(f"random-{index}", f"Random {index}", look.class_word, trigger, " and ".join(kinds), look, marks)


def alike(character: Character, rng: random.Random, index: int) -> Character:
    """Somebody else with the same hair and the same kind of skin: told apart only by face and marks."""
    other = random_character(rng, index)
    look = replace(
        other.look,
        class_word=character.class_word,
        hair_colour=character.look.hair_colour,
        hair_style=character.look.hair_style,
        skin=character.look.skin,
    )
    kinds = rng.sample(sorted(set(PAINTERS) - {mark.kind for mark in character.marks}), 2)
    marks = tuple(Mark(kind, _bright(rng), _bright(rng), rng.choice((-1, 1))) for kind in kinds)
    return replace(other, look=look, marks=marks, class_word=character.class_word, description=" and ".join(kinds))


def write_examples(folder: Path) -> None:
    """The three examples as folders: 20 pictures, captions.json (without trigger) and character.json each."""
    for number, character in enumerate(EXAMPLES):
        target = folder / character.slug
        target.mkdir(parents=True, exist_ok=True)
        captions = {}
        for index, scene in enumerate(reference_scenes(REFERENCES, EXAMPLE_SEED + number), start=1):
            name = f"{index:03d}.png"
            draw_character(character, scene, EXAMPLE_SIZE).save(target / name, optimize=True)
            captions[name] = scene.phrases
        about = {
            "name": character.name,
            "class_word": character.class_word,
            "trigger_word": character.trigger,
            "description": character.description,
            "subject": "fictional",
        }
        _write_json(target / "captions.json", captions)
        _write_json(target / "character.json", about)


def _portrait(character: Character, scene: Scene) -> Portrait:
    return replace(
        character.look,
        expression=scene.expression,
        clothes_colour=scene.clothes_colour,
        clothes_noun=scene.clothes_noun,
        background=scene.background,
        dx=scene.dx,
        dy=scene.dy,
        tilt=scene.tilt,
        jitter=scene.jitter,
    )


def _painter(character: Character) -> partial[None]:
    return partial(_paint, marks=character.marks)


def _paint(canvas: Canvas, anchors: Anchors, marks: tuple[Mark, ...]) -> None:
    paint_marks(canvas, anchors, marks)


def _even(words: Sequence[str], count: int, rng: random.Random) -> list[str]:
    chosen: list[str] = []
    while len(chosen) < count:
        chosen += rng.sample(words, len(words))
    return chosen[:count]


def _bright(rng: random.Random) -> tuple[int, int, int]:
    return rng.choice(
        (
            (220, 40, 50),
            (250, 200, 40),
            (40, 170, 90),
            (40, 110, 230),
            (240, 240, 240),
            (30, 28, 34),
            (240, 120, 200),
            (120, 60, 190),
            (70, 210, 220),
        )
    )


def _write_json(path: Path, data: dict[str, str]) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


_INK = (28, 22, 28)
EXAMPLES = (
    Character(
        slug="captain-nell",
        name="Captain Nell",
        class_word="woman",
        trigger="nellvo",
        description="A ship's captain with long red hair, a black eye patch and a zigzag scar on her cheek.",
        look=Portrait(
            "woman",
            "red",
            "long",
            "pale",
            "green",
            style=Style(outline=1.4, ink=_INK, head_width=23.5, head_height=28.5, jaw=0.78),
        ),
        marks=(Mark("eye patch", (28, 26, 34), (214, 214, 220), 1), Mark("zigzag scar", (196, 30, 70), side=-1)),
    ),
    Character(
        slug="juno",
        name="Juno",
        class_word="person",
        trigger="junqa",
        description="A skater with blue curly hair, a checkered headband and a yellow star on the cheek.",
        look=Portrait(
            "person",
            "blue",
            "curly",
            "brown",
            "amber",
            style=Style(outline=1.0, ink=None, shading="cel", eyes="big", head_width=25, head_height=27),
        ),
        marks=(
            Mark("checkered headband", (24, 24, 28), (250, 250, 250), 1),
            Mark("cheek star", (255, 214, 40), side=-1),
        ),
    ),
    Character(
        slug="bram",
        name="Bram",
        class_word="man",
        trigger="brumok",
        description="A bearded northerner who never takes off his horned iron helmet.",
        look=Portrait(
            "man",
            "orange",
            "short",
            "tan",
            "blue",
            accessory="beard",
            style=Style(outline=2.0, ink=_INK, head_width=26, head_height=27, jaw=1.0),
        ),
        marks=(Mark("horned helmet", (128, 138, 152), (244, 232, 200)),),
    ),
)


if __name__ == "__main__":
    write_examples(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/characters"))
