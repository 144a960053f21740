"""Marks that exist only on characters, never in the base's training set, so that only a LoRA can know them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .canvas import Canvas, Point, darker, lighter, ring
from .portrait import Anchors
from .words import Rgb

_DARK: Rgb = (30, 26, 32)
_WHITE: Rgb = (248, 248, 248)
_BONE: Rgb = (240, 228, 196)


@dataclass(frozen=True)
class Mark:
    """One mark: what it is, its colours, and which half of the picture it is on (-1 left, 1 right)."""

    kind: str
    colour: Rgb = _DARK
    second: Rgb = _WHITE
    side: int = 1


def paint_marks(canvas: Canvas, a: Anchors, marks: tuple[Mark, ...]) -> None:
    """Paint the marks in their order over a finished figure."""
    for mark in marks:
        PAINTERS[mark.kind](canvas, a, mark)


def _eye_patch(canvas: Canvas, a: Anchors, mark: Mark) -> None:
    x, y = a.face_x + mark.side * a.eye_dx, a.eye_y
    top = a.cy - a.ry * 0.62
    canvas.line([(a.cx + mark.side * a.rx * 0.98, y - 3), (a.cx - mark.side * a.rx * 0.8, top)], mark.colour, 3.2)
    canvas.blob([(x - 9, y - 7), (x + 9, y - 7), (x + 8, y + 4), (x, y + 9.5), (x - 8, y + 4)], mark.colour)
    canvas.line([(x - 4, y - 3), (x + 4, y + 3)], mark.second, 1.6)
    canvas.line([(x + 4, y - 3), (x - 4, y + 3)], mark.second, 1.6)


def _checkered_headband(canvas: Canvas, a: Anchors, mark: Mark) -> None:
    y, half, height, count = a.cy - a.ry * 0.66, a.rx * 1.02, 10.0, 7
    canvas.box(a.cx - half, y, a.cx + half, y + height, mark.second)
    width = 2 * half / count
    for column in range(count):
        row = column % 2
        left, top = a.cx - half + column * width, y + row * height / 2
        canvas.box(left, top, left + width, top + height / 2, mark.colour, 0)
    for k in (0, 1):  # the knot's two ends
        x = a.cx + mark.side * half
        canvas.polygon(
            [(x, y + 3), (x + mark.side * 12, y + 3 + 9 * k), (x + mark.side * 9, y + 10 + 9 * k)], mark.colour
        )


def _cheek_star(canvas: Canvas, a: Anchors, mark: Mark) -> None:
    x, y = a.cx + mark.side * a.rx * 0.62, a.cy + a.ry * 0.36
    points: list[Point] = []
    for i in range(10):
        radius = 7.6 if i % 2 == 0 else 3.2
        angle = -math.pi / 2 + math.pi * i / 5
        points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    canvas.polygon(points, mark.colour, 1.0)


def _horned_helmet(canvas: Canvas, a: Anchors, mark: Mark) -> None:
    y = a.cy - a.ry * 0.42
    for side in (-1, 1):
        x = a.cx + side * a.rx * 0.86
        canvas.blob(
            [
                (x, y - 4),
                (x + side * 13, y - 9),
                (x + side * 19, y - 24),
                (x + side * 12, y - 34),
                (x + side * 11, y - 22),
                (x + side * 2, y - 15),
            ],
            mark.second,
        )
    dome = [
        (a.cx + (a.rx + 4) * math.cos(t), y + (a.ry * 0.74) * math.sin(t))
        for t in (math.pi * (1 + k / 8) for k in range(9))
    ]
    canvas.polygon(dome, mark.colour)
    canvas.box(a.cx - a.rx - 5, y - 4, a.cx + a.rx + 5, y + 3.5, darker(mark.colour, 0.35))
    canvas.box(a.cx - 3.5, y - a.ry * 0.7, a.cx + 3.5, y, lighter(mark.colour, 0.35), 0)
    for k in (-0.75, -0.25, 0.25, 0.75):
        canvas.ellipse(a.cx + a.rx * k, y - 0.2, 1.9, 1.9, _BONE, 0)


def _forehead_gem(canvas: Canvas, a: Anchors, mark: Mark) -> None:
    x, y = a.face_x, a.cy - a.ry * 0.5
    canvas.polygon([(x, y - 8.5), (x + 6.5, y), (x, y + 8.5), (x - 6.5, y)], mark.colour, 1.2)
    canvas.polygon([(x, y - 5), (x + 2.5, y - 1), (x - 2, y)], lighter(mark.colour, 0.6), 0)


def _war_paint(canvas: Canvas, a: Anchors, mark: Mark) -> None:
    for side in (-1, 1):
        for k in range(3):
            x, y = a.cx + side * a.rx * 0.38, a.cy + 7 + 5.4 * k
            canvas.line([(x, y), (x + side * a.rx * 0.5, y - 2.5)], mark.colour if k != 1 else mark.second, 3.2)


def _antennae(canvas: Canvas, a: Anchors, mark: Mark) -> None:
    for side in (-1, 1):
        x, y = a.cx + side * a.rx * 0.4, a.cy - a.ry * 0.95
        tip = (x + side * 11, max(7.0, y - 21))
        canvas.line([(x, y), (x + side * 3, y - 12), tip], darker(mark.colour, 0.35), 2.8)
        canvas.ellipse(*tip, 5.2, 5.2, mark.colour)


def _monocle(canvas: Canvas, a: Anchors, mark: Mark) -> None:
    x = a.face_x + mark.side * a.eye_dx
    points = ring(x, a.eye_y, a.eye_r + 4.5, a.eye_r + 4.5, 28)
    canvas.line([*points, points[0], points[1]], mark.colour, 3.4)
    canvas.line(
        [(x + mark.side * 7, a.eye_y + 8), (x + mark.side * 10, a.eye_y + 24), (x + mark.side * 5, a.eye_y + 36)],
        mark.colour,
        1.8,
    )


def _half_mask(canvas: Canvas, a: Anchors, mark: Mark) -> None:
    outer = a.cx + mark.side * a.rx * 0.96
    x, y = a.face_x + mark.side * a.eye_dx, a.eye_y
    canvas.blob(
        [
            (a.face_x + mark.side * 2, y - 13),
            (outer, y - 11),
            (outer, y + 5),
            (x + mark.side * 2, y + 13),
            (a.face_x + mark.side * 2, y + 7),
        ],
        mark.colour,
    )
    canvas.ellipse(x, y, a.eye_r * 1.05, a.eye_r * 0.8, mark.second, 0.8)
    canvas.ellipse(x, y, a.eye_r * 0.45, a.eye_r * 0.45, _DARK, 0)


def _zigzag_scar(canvas: Canvas, a: Anchors, mark: Mark) -> None:
    x, y = a.cx + mark.side * a.rx * 0.58, a.cy + a.ry * 0.12
    canvas.line([(x, y - 1), (x + 5, y + 5), (x - 4, y + 9), (x + 4, y + 16), (x - 1, y + 20)], mark.colour, 3.0)


def _cat_ears(canvas: Canvas, a: Anchors, mark: Mark) -> None:
    for side in (-1, 1):
        x, y = a.cx + side * a.rx * 0.66, a.cy - a.ry * 0.74
        canvas.polygon([(x - side * 11, y - 5), (x + side * 9, y - 26), (x + side * 11, y + 6)], mark.colour)
        canvas.polygon([(x - side * 4, y - 5), (x + side * 7, y - 18), (x + side * 8, y + 1)], mark.second, 0)


def _hexagon_badges(canvas: Canvas, a: Anchors, mark: Mark) -> None:
    for side in (-1, 1):
        x, y = a.cx + side * (a.rx + 2), a.cy + 2
        canvas.polygon(ring(x, y, 9.5, 9.5, 6), mark.colour)
        canvas.polygon(ring(x, y, 4.6, 4.6, 6), mark.second, 0)


PAINTERS: dict[str, Callable[[Canvas, Anchors, Mark], None]] = {
    "eye patch": _eye_patch,
    "checkered headband": _checkered_headband,
    "cheek star": _cheek_star,
    "horned helmet": _horned_helmet,
    "forehead gem": _forehead_gem,
    "war paint": _war_paint,
    "antennae": _antennae,
    "monocle": _monocle,
    "half mask": _half_mask,
    "zigzag scar": _zigzag_scar,
    "cat ears": _cat_ears,
    "hexagon badges": _hexagon_badges,
}
