"""Drawing primitives in portrait units (0..128 on both sides), scaled to any pixel size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from .words import Rgb

Point = tuple[float, float]


def mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    """Colour at `share` (0..1) of the way from a to b."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


def darker(colour: Rgb, share: float) -> Rgb:
    return mix(colour, (0, 0, 0), share)


def lighter(colour: Rgb, share: float) -> Rgb:
    return mix(colour, (255, 255, 255), share)


def smooth(points: Sequence[Point], steps: int = 6) -> list[Point]:
    """Closed Catmull-Rom curve through the points."""
    count = len(points)
    curve: list[Point] = []
    for i in range(count):
        p0, p1, p2, p3 = (points[(i + k - 1) % count] for k in range(4))
        for step in range(steps):
            t = step / steps
            curve.append((_spline(p0[0], p1[0], p2[0], p3[0], t), _spline(p0[1], p1[1], p2[1], p3[1], t)))
    return curve


def _spline(a: float, b: float, c: float, d: float, t: float) -> float:
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t * t + (3 * b - a - 3 * c + d) * t**3)


def ring(cx: float, cy: float, rx: float, ry: float, count: int, turn: float = 0.0) -> list[Point]:
    """`count` points on an ellipse, angles in radians from `turn`, clockwise on screen."""
    angles = (turn + 2 * math.pi * i / count for i in range(count))
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


class Canvas:
    """One RGBA layer; every shape gets an outline when the drawing hand uses one.

    outline: width in portrait units (0 = none). ink: a fixed outline colour, or None for a darker shade of the fill.
    angular: curves become polygons with few corners (a hand of its own).
    """

    def __init__(self, pixels: int, outline: float = 0.0, ink: Rgb | None = None, angular: bool = False) -> None:
        self.image = Image.new("RGBA", (pixels, pixels), (0, 0, 0, 0))
        self.pixels = pixels
        self.scale = pixels / 128
        self.outline = outline
        self.ink = ink
        self.angular = angular
        self._pen = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[Point], fill: Rgb, outline: float | None = None) -> None:
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self._pen.polygon(scaled, fill=(*fill, 255))
        self._contour(scaled, fill, self.outline if outline is None else outline)

    def blob(self, points: Sequence[Point], fill: Rgb, outline: float | None = None) -> None:
        """A smooth closed shape through the points."""
        self.polygon(points if self.angular else smooth(points), fill, outline)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, fill: Rgb, outline: float | None = None) -> None:
        corners = 8 if self.angular else max(12, min(40, int(max(rx, ry) * 2.5)))
        self.polygon(ring(cx, cy, rx, ry, corners, math.pi / corners), fill, outline)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb, outline: float | None = None) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, outline)

    def line(self, points: Sequence[Point], colour: Rgb, width: float) -> None:
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self._pen.line(scaled, fill=(*colour, 255), width=max(1, round(width * self.scale)), joint="curve")

    def bow(self, x0: float, y0: float, x1: float, y1: float, bend: float, colour: Rgb, width: float) -> None:
        """A curved line from one end to the other whose middle is `bend` units lower."""
        steps = 3 if self.angular else 10
        curve = [
            (x0 + (x1 - x0) * t, y0 + (y1 - y0) * t + 4 * bend * t * (1 - t))
            for t in (i / steps for i in range(steps + 1))
        ]
        self.line(curve, colour, width)

    def _contour(self, scaled: list[Point], fill: Rgb, width: float) -> None:
        if width <= 0:
            return
        colour = self.ink if self.ink is not None else darker(fill, 0.45)
        closed = [*scaled, scaled[0], scaled[1]]
        self._pen.line(closed, fill=(*colour, 255), width=max(1, round(width * self.scale)), joint="curve")
