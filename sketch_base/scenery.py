"""Backgrounds of base portraits: plain colours and eight scenes, each drawn with a little chance."""

from __future__ import annotations

import random
from collections.abc import Callable

from .canvas import Canvas, Point, darker, lighter, mix
from .words import PLAIN_COLOURS, Rgb


def paint_background(canvas: Canvas, phrase: str, seed: int) -> None:
    """Fill the whole canvas with the background the phrase names (one of words.BACKGROUNDS)."""
    rng = random.Random(seed)
    if phrase.startswith("plain "):
        _plain(canvas, PLAIN_COLOURS[phrase.split(" ")[1]], rng)
        return
    _SCENES[phrase](canvas, rng)


def _shift(colour: Rgb, rng: random.Random, amount: int = 12) -> Rgb:
    r, g, b = (max(0, min(255, c + rng.randint(-amount, amount))) for c in colour)
    return (r, g, b)


def _sky(canvas: Canvas, top: Rgb, bottom: Rgb, y1: float = 128) -> None:
    bands = 24
    for i in range(bands):
        share = i / (bands - 1)
        canvas.box(0, y1 * i / bands, 128, y1 * (i + 1) / bands + 0.5, mix(top, bottom, share), 0)


def _plain(canvas: Canvas, colour: Rgb, rng: random.Random) -> None:
    shade = _shift(colour, rng, 6)
    if rng.random() < 0.4:
        _sky(canvas, lighter(shade, 0.12), darker(shade, 0.06))
    else:
        canvas.box(0, 0, 128, 128, shade, 0)


def _forest(canvas: Canvas, rng: random.Random) -> None:
    _sky(canvas, _shift((150, 210, 170), rng), _shift((190, 226, 160), rng), 80)
    canvas.box(0, 78, 128, 128, _shift((62, 118, 52), rng), 0)
    for _ in range(rng.randint(6, 9)):
        x, height = rng.uniform(-4, 132), rng.uniform(44, 84)
        base, green = rng.uniform(84, 100), _shift((30, 96, 48), rng, 18)
        canvas.box(x - 2.5, base - 14, x + 2.5, base, (92, 62, 38), 0)
        for k in range(3):
            top = base - 10 - height * (k + 1) / 3
            half = 15 - 3 * k
            canvas.polygon([(x - half, top + height / 3 + 6), (x + half, top + height / 3 + 6), (x, top)], green, 0)


def _sea(canvas: Canvas, rng: random.Random) -> None:
    horizon = rng.uniform(50, 62)
    _sky(canvas, _shift((120, 196, 246), rng), _shift((206, 236, 252), rng), horizon)
    canvas.box(0, horizon, 128, 128, _shift((28, 110, 186), rng), 0)
    canvas.ellipse(rng.choice((20, 108)), rng.uniform(14, 24), 9, 9, (255, 236, 130), 0)
    for _ in range(9):
        x, y = rng.uniform(-6, 120), rng.uniform(horizon + 4, 100)
        canvas.line([(x, y), (x + 7, y - 1.6), (x + 14, y)], (150, 206, 240), 1.6)
    canvas.box(0, 104, 128, 128, _shift((238, 212, 150), rng), 0)


def _night(canvas: Canvas, rng: random.Random) -> None:
    _sky(canvas, _shift((12, 14, 48), rng, 8), _shift((40, 44, 104), rng, 8))
    for _ in range(26):
        r = rng.uniform(0.7, 1.5)
        canvas.ellipse(rng.uniform(0, 128), rng.uniform(0, 110), r, r, (250, 246, 214), 0)
    x, y = rng.choice((22, 106)), rng.uniform(18, 28)
    canvas.ellipse(x, y, 12, 12, (246, 240, 200), 0)
    canvas.ellipse(x + 5, y - 3, 10, 10, (20, 22, 64), 0)


def _city(canvas: Canvas, rng: random.Random) -> None:
    _sky(canvas, _shift((160, 200, 232), rng), _shift((216, 226, 234), rng))
    x = -6.0
    while x < 128:
        width, top = rng.uniform(16, 26), rng.uniform(14, 58)
        wall = _shift(rng.choice(((120, 124, 140), (154, 116, 104), (96, 106, 128), (170, 160, 146))), rng)
        canvas.box(x, top, x + width, 128, wall, 0)
        for row in range(int(top) + 5, 116, 10):
            for k in range(3):
                left = x + 2.5 + k * (width - 2) / 3
                lit = (250, 232, 150) if rng.random() < 0.6 else darker(wall, 0.35)
                canvas.box(left, row, left + width / 3 - 3, row + 5, lit, 0)
        x += width + rng.uniform(0, 2)


def _sunset(canvas: Canvas, rng: random.Random) -> None:
    _sky(canvas, _shift((116, 50, 120), rng), _shift((255, 140, 50), rng), 88)
    canvas.ellipse(rng.choice((20, 108)) + rng.uniform(-6, 6), 72, 16, 16, (255, 226, 110), 0)
    hill: list[Point] = [(0, 128), (0, 86)]
    hill += [(x, 86 + rng.uniform(-4, 4)) for x in range(16, 128, 16)]
    canvas.polygon([*hill, (128, 86), (128, 128)], _shift((76, 30, 56), rng), 0)


def _room(canvas: Canvas, rng: random.Random) -> None:
    wall = _shift((214, 186, 152), rng)
    canvas.box(0, 0, 128, 128, wall, 0)
    for x in range(rng.randint(0, 8), 128, 14):
        canvas.box(x, 0, x + 4, 98, darker(wall, 0.07), 0)
    canvas.box(0, 98, 128, 128, _shift((126, 80, 48), rng), 0)
    left = rng.choice((4, 92))
    canvas.box(left, 12, left + 32, 54, (250, 250, 246), 0)
    for row in (14.5, 34.5):
        for col in (2.5, 17.5):
            canvas.box(left + col, row, left + col + 12, row + 17, (150, 208, 244), 0)
    right = 108 - left if left < 50 else 6
    canvas.box(right, 18, right + 20, 42, (120, 70, 40), 0)
    canvas.box(right + 3, 21, right + 17, 39, _shift((206, 90, 80), rng, 40), 0)


def _mountains(canvas: Canvas, rng: random.Random) -> None:
    _sky(canvas, _shift((96, 160, 224), rng), _shift((200, 226, 246), rng))
    for x in (rng.uniform(0, 24), rng.uniform(100, 128), rng.uniform(50, 78)):
        top, half, rock = rng.uniform(12, 34), rng.uniform(40, 52), _shift((112, 120, 146), rng)
        slope = half / (110 - top)
        canvas.polygon([(x - half, 110), (x + half, 110), (x, top)], rock, 0)
        cap = 20
        canvas.polygon(
            [
                (x, top),
                (x + cap * slope, top + cap),
                (x + 3, top + cap - 6),
                (x - 3, top + cap + 2),
                (x - cap * slope, top + cap),
            ],
            (246, 250, 255),
            0,
        )
    canvas.box(0, 104, 128, 128, _shift((226, 236, 246), rng, 6), 0)


def _desert(canvas: Canvas, rng: random.Random) -> None:
    _sky(canvas, _shift((110, 190, 220), rng), _shift((252, 234, 190), rng), 80)
    for y, tone in ((62, (236, 186, 104)), (80, (220, 162, 82)), (100, (202, 140, 66))):
        shift = rng.uniform(-8, 8)
        dune: list[Point] = [
            (-10, 132),
            (-10, y),
            (24 + shift, y - 9),
            (64, y + 4),
            (104 + shift, y - 7),
            (138, y + 3),
            (138, 132),
        ]
        canvas.polygon(dune, _shift(tone, rng), 0)
    for x in (rng.choice((12, 116)), rng.choice((20, 106))):
        foot = rng.uniform(64, 84)
        canvas.line([(x, foot), (x, foot - 26)], (58, 128, 62), 5)
        canvas.line([(x, foot - 10), (x + 7, foot - 10), (x + 7, foot - 19)], (58, 128, 62), 3.4)
        canvas.line([(x, foot - 6), (x - 7, foot - 6), (x - 7, foot - 14)], (58, 128, 62), 3.4)


_SCENES: dict[str, Callable[[Canvas, random.Random], None]] = {
    "in a forest": _forest,
    "by the sea": _sea,
    "under a night sky": _night,
    "in a city": _city,
    "at sunset": _sunset,
    "in a room": _room,
    "in the mountains": _mountains,
    "in the desert": _desert,
}
