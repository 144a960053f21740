"""Hair styles: a part behind the body and a part over the forehead."""

from __future__ import annotations

import math

from .canvas import Canvas, Point, lighter
from .portrait import Anchors


def paint_hair_back(canvas: Canvas, style: str, a: Anchors) -> None:
    """The part of the hair that hangs or stands behind head and shoulders."""
    cx, cy, rx, ry = a.cx, a.cy, a.rx, a.ry
    if style == "long":
        canvas.blob(
            [
                (cx, cy - ry - 8),
                (cx + rx + 6, cy - ry * 0.5),
                (cx + rx + 9, cy + ry * 0.5),
                (cx + rx + 10, cy + ry + 20),
                (cx + 8, cy + ry + 24),
                (cx - 8, cy + ry + 24),
                (cx - rx - 10, cy + ry + 20),
                (cx - rx - 9, cy + ry * 0.5),
                (cx - rx - 6, cy - ry * 0.5),
            ],
            a.hair,
        )
    elif style == "bob":
        canvas.blob(
            [
                (cx, cy - ry - 7),
                (cx + rx + 6, cy - ry * 0.5),
                (cx + rx + 9, cy + ry * 0.4),
                (cx + rx + 6, cy + ry * 0.75),
                (cx - rx - 6, cy + ry * 0.75),
                (cx - rx - 9, cy + ry * 0.4),
                (cx - rx - 6, cy - ry * 0.5),
            ],
            a.hair,
        )
    elif style == "curly":
        for angle in range(150, 391, 24):
            t = math.radians(angle)
            canvas.ellipse(cx + (rx + 4) * math.cos(t), cy - 2 + (ry + 2) * math.sin(t), 9.5, 9.5, a.hair)
    elif style == "ponytail":
        canvas.blob(
            [
                (cx + rx - 2, cy - ry * 0.7),
                (cx + rx + 14, cy - ry * 0.5),
                (cx + rx + 17, cy + ry * 0.4),
                (cx + rx + 9, cy + ry + 6),
                (cx + rx + 5, cy + ry * 0.3),
            ],
            a.hair,
        )
    elif style == "bun":
        canvas.ellipse(cx, cy - ry - 8, 11, 10, a.hair)


def paint_hair_front(canvas: Canvas, style: str, a: Anchors) -> None:
    """The part of the hair that lies on the head, above the face."""
    if style in ("short", "bun", "ponytail"):
        _cap(canvas, a, side=0.28, fringe=0.62)
    elif style == "bob":
        _fringe(canvas, a)
    elif style == "long":
        _parted(canvas, a)
    elif style == "curly":
        for k in (-0.8, -0.4, 0.0, 0.4, 0.8):
            canvas.ellipse(a.cx + a.rx * k, a.cy - a.ry * (0.92 - 0.32 * k * k), 8, 7.5, a.hair)
    elif style == "spiky":
        _spikes(canvas, a)
    elif style == "mohawk":
        _crest(canvas, a)
    elif style == "bald":
        canvas.bow(a.cx - 9, a.cy - a.ry * 0.7, a.cx - 1, a.cy - a.ry * 0.84, -2, lighter(a.skin, 0.5), 2)


def _crown(a: Anchors, grow: float) -> list[Point]:
    """Points over the top of the head from the left temple to the right one."""
    steps = [math.radians(angle) for angle in (184, 212, 240, 270, 300, 328, 356)]
    return [(a.cx + (a.rx + grow) * math.cos(t), a.cy + (a.ry + grow) * math.sin(t)) for t in steps]


def _cap(canvas: Canvas, a: Anchors, side: float, fringe: float) -> None:
    line = [
        (a.cx + a.rx * 0.84, a.cy - a.ry * side),
        (a.cx + a.rx * 0.3, a.cy - a.ry * fringe),
        (a.cx - a.rx * 0.4, a.cy - a.ry * (fringe - 0.08)),
        (a.cx - a.rx * 0.84, a.cy - a.ry * side),
    ]
    canvas.blob([*_crown(a, 3.5), *line], a.hair)


def _fringe(canvas: Canvas, a: Anchors) -> None:
    y = a.cy - a.ry * 0.4
    canvas.polygon([*_crown(a, 4), (a.cx + a.rx * 0.9, y + 3), (a.cx - a.rx * 0.9, y + 3)], a.hair)
    canvas.line([(a.cx - a.rx * 0.7, y - 8), (a.cx - a.rx * 0.3, y - 11)], lighter(a.hair, 0.35), 2)


def _parted(canvas: Canvas, a: Anchors) -> None:
    for side in (-1, 1):
        canvas.blob(
            [
                (a.cx, a.cy - a.ry - 5),
                (a.cx + side * a.rx * 0.8, a.cy - a.ry * 0.85),
                (a.cx + side * (a.rx + 4), a.cy),
                (a.cx + side * (a.rx + 3), a.cy + a.ry * 0.6),
                (a.cx + side * a.rx * 0.84, a.cy - a.ry * 0.1),
                (a.cx + side * 2, a.cy - a.ry * 0.72),
            ],
            a.hair,
        )


def _spikes(canvas: Canvas, a: Anchors) -> None:
    points: list[Point] = [(a.cx - a.rx - 2, a.cy - a.ry * 0.1)]
    for k, angle in enumerate(range(190, 351, 16)):
        t = math.radians(angle)
        grow = 15 if k % 2 else 2
        points.append((a.cx + (a.rx + grow) * math.cos(t), a.cy + (a.ry + grow) * math.sin(t)))
    points.append((a.cx + a.rx + 2, a.cy - a.ry * 0.1))
    points += [
        (a.cx + a.rx * k, a.cy - a.ry * (0.42 if i % 2 else 0.68))
        for i, k in enumerate((0.75, 0.45, 0.15, -0.15, -0.45, -0.75))
    ]
    canvas.polygon(points, a.hair)


def _crest(canvas: Canvas, a: Anchors) -> None:
    points: list[Point] = [
        (a.cx - 8, a.cy - a.ry * 0.62),
        (a.cx - 11, a.cy - a.ry - 6),
        (a.cx - 6, a.cy - a.ry - 14),
        (a.cx - 2, a.cy - a.ry - 11),
        (a.cx + 1, a.cy - a.ry - 17),
        (a.cx + 5, a.cy - a.ry - 11),
        (a.cx + 10, a.cy - a.ry - 13),
        (a.cx + 10, a.cy - a.ry - 3),
        (a.cx + 8, a.cy - a.ry * 0.62),
    ]
    canvas.polygon(points, a.hair)
