"""Parametric portraits: what one is, how chance draws one, how it is put in words, how it becomes pixels."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from . import words
from .canvas import Canvas
from .figure import paint_figure
from .portrait import Anchors, Portrait, Style
from .scenery import paint_background
from .words import (
    ACCESSORIES,
    BACKGROUNDS,
    CLASS_WORDS,
    CLOTHES,
    CLOTHES_COLOURS,
    CLOTHES_NOUNS,
    COLOURED_ACCESSORIES,
    EXPRESSIONS,
    EYE_COLOURS,
    HAIR_COLOURS,
    HAIR_STYLES,
    PLAIN_BACKGROUNDS,
    SCENES,
    SYNONYMS,
    Rgb,
)

__all__ = [
    "ACCESSORIES",
    "BACKGROUNDS",
    "CLASS_WORDS",
    "CLOTHES",
    "CLOTHES_COLOURS",
    "CLOTHES_NOUNS",
    "EXPRESSIONS",
    "EYE_COLOURS",
    "HAIR_COLOURS",
    "HAIR_STYLES",
    "Anchors",
    "Canvas",
    "Marks",
    "Portrait",
    "Style",
    "caption",
    "draw",
    "draw_mask",
    "random_portrait",
    "random_style",
]

Marks = Callable[[Canvas, Anchors], None]
SUPERSAMPLE = 3


def random_style(rng: random.Random) -> Style:
    """A hand from the training distribution (never angular, never hatched)."""
    outline = rng.choice((0.0, 0.0, 1.0, 1.4, 2.0))
    ink: Rgb | None = rng.choice(((24, 20, 26), (24, 20, 26), (70, 44, 40), None))
    return Style(
        outline=outline,
        ink=ink,
        shading=rng.choice(("flat", "flat", "soft", "cel")),
        eyes=rng.choice(("iris", "iris", "big", "dot")),
        head_width=rng.uniform(21.5, 27),
        head_height=rng.uniform(25, 31),
        eye_scale=rng.uniform(0.9, 1.25),
        jaw=rng.uniform(0.62, 1.0),
    )


def random_portrait(rng: random.Random) -> Portrait:
    """One portrait from the base distribution: an adult of any class word, no character's mark."""
    class_word = rng.choices(CLASS_WORDS, (30, 30, 18, 12, 10))[0]
    skins = {"creature": words.CREATURE_SKINS, "robot": words.ROBOT_SKINS}.get(class_word, words.HUMAN_SKINS)
    human = class_word not in ("creature", "robot")
    background = rng.choice(SCENES) if rng.random() < 0.6 else rng.choice(PLAIN_BACKGROUNDS)
    return Portrait(
        class_word=class_word,
        hair_colour=rng.choice(tuple(HAIR_COLOURS)),
        hair_style=rng.choice(HAIR_STYLES),
        skin=rng.choice(tuple(skins)),
        eye_colour=rng.choice(words.HUMAN_EYES if human else tuple(EYE_COLOURS)),
        expression=rng.choice(EXPRESSIONS),
        clothes_colour=rng.choice(tuple(CLOTHES_COLOURS)),
        clothes_noun=rng.choice(CLOTHES_NOUNS),
        accessory=rng.choice(ACCESSORIES) if rng.random() < 0.4 else "",
        accessory_colour=rng.choice(tuple(CLOTHES_COLOURS)),
        background=background,
        style=random_style(rng),
        dx=rng.uniform(-4, 4),
        dy=rng.uniform(-3, 3),
        tilt=rng.uniform(-3, 3),
        jitter=rng.randrange(1 << 30),
    )


def phrases(portrait: Portrait) -> list[str]:
    """The changeable phrases of the caption in canonical order, without the head."""
    bald = portrait.hair_style == "bald"
    parts = [
        "bald head" if bald else f"{portrait.hair_colour} {portrait.hair_style} hair",
        f"{portrait.skin} skin",
        f"{portrait.eye_colour} eyes",
        portrait.expression,
        f"{portrait.clothes_colour} {portrait.clothes_noun}",
    ]
    if portrait.accessory:
        coloured = portrait.accessory in COLOURED_ACCESSORIES
        parts.append(f"{portrait.accessory_colour} {portrait.accessory}" if coloured else portrait.accessory)
    return [*parts, portrait.background]


def caption(portrait: Portrait, rng: random.Random | None = None, trigger: str = "") -> str:
    """The portrait in words: canonical without `rng`; with it phrases are shuffled, dropped and said otherwise."""
    head = f"{trigger} {portrait.class_word}".strip()
    parts = phrases(portrait)
    if rng is None:
        return ", ".join([head, *parts])
    if rng.random() < 0.5:
        parts = [part for part in parts if rng.random() > 0.18]
    if rng.random() < 0.5:
        rng.shuffle(parts)
    said = [rng.choice(SYNONYMS[p]) if p in SYNONYMS and rng.random() < 0.25 else p for p in parts]
    if not trigger and rng.random() < 0.15:
        head = f"portrait of a {portrait.class_word}"
    return ", ".join([head, *said])


def draw(portrait: Portrait, size: int = 128, marks: Marks | None = None) -> Image.Image:
    """RGB image of `size` pixels; `marks` paints over the finished figure in portrait units."""
    pixels = size * SUPERSAMPLE
    scene = Canvas(pixels)
    paint_background(scene, portrait.background, portrait.jitter)
    figure = _figure(portrait, pixels, marks)
    image = scene.image
    image.alpha_composite(figure)
    return image.convert("RGB").reduce(SUPERSAMPLE)


def draw_mask(portrait: Portrait, size: int = 128, marks: Marks | None = None) -> Image.Image:
    """L image, 255 where the figure (with its marks) covers the background."""
    return _figure(portrait, size * SUPERSAMPLE, marks).getchannel("A").reduce(SUPERSAMPLE)


def _figure(portrait: Portrait, pixels: int, marks: Marks | None) -> Image.Image:
    style = portrait.style
    canvas = Canvas(pixels, style.outline, style.ink, style.angular)
    anchors = paint_figure(canvas, portrait)
    if marks is not None:
        marks(canvas, anchors)
    if style.shading == "flat" and not style.hatch:
        return canvas.image
    return _shaded(canvas.image, style)


def _shaded(figure: Image.Image, style: Style) -> Image.Image:
    """Light from the upper left over the whole figure: soft, in two tones, or hatched."""
    pixels = figure.width
    axis = np.linspace(-1, 1, pixels, dtype=np.float32)
    slope = axis[None, :] * 0.8 + axis[:, None] * 0.35
    if style.hatch:
        grid = np.arange(pixels, dtype=np.int32)
        stripes = ((grid[None, :] + grid[:, None]) // (pixels // 64)) % 3 == 0
        factor = np.where(stripes & (slope > 0.05), 0.62, 1.0)
    elif style.shading == "cel":
        factor = np.where(slope > 0.18, 0.8, 1.0)
    else:
        factor = 1.06 - 0.34 * np.clip(slope + 0.35, 0, 1)
    pixels_rgba = np.asarray(figure).astype(np.float32)
    pixels_rgba[..., :3] *= factor[..., None].astype(np.float32)
    shaded = Image.fromarray(np.clip(pixels_rgba, 0, 255).astype(np.uint8), "RGBA")
    return shaded if style.shading != "soft" else shaded.filter(ImageFilter.BoxBlur(pixels / 800))
