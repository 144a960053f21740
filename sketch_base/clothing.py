"""Body, clothes and accessories."""

from __future__ import annotations

from .canvas import Canvas, darker, lighter, ring
from .portrait import Anchors

_WHITE = (246, 246, 248)
_DARK = (34, 32, 40)
_GOLD = (244, 200, 60)


def paint_body(canvas: Canvas, noun: str, a: Anchors, broad: bool) -> None:
    """Neck, shoulders and the clothes on them, down to the lower edge."""
    x, y = a.cx, a.shoulder_y
    half = 46 if broad else 40
    canvas.box(x - 9, a.cy + a.ry * 0.7, x + 9, y + 6, darker(a.skin, 0.14))
    torso = [
        (x - 11, y - 3),
        (x + 11, y - 3),
        (x + half - 10, y + 4),
        (x + half, y + 16),
        (x + half + 2, 134),
        (x - half - 2, 134),
        (x - half, y + 16),
        (x - half + 10, y + 4),
    ]
    canvas.polygon(torso, _WHITE if noun == "overalls" else a.clothes)
    {"shirt": _shirt, "hoodie": _hoodie, "suit": _suit, "sweater": _sweater, "overalls": _overalls, "armour": _armour}[
        noun
    ](canvas, a, half)


def _shirt(canvas: Canvas, a: Anchors, half: float) -> None:
    x, y = a.cx, a.shoulder_y
    canvas.polygon([(x - 8, y - 4), (x + 8, y - 4), (x, y + 9)], darker(a.skin, 0.14), 0)
    for side in (-1, 1):
        canvas.polygon(
            [(x + side * 9, y - 7), (x + side * 15, y + 1), (x + side * 8, y + 12), (x, y + 8)],
            lighter(a.clothes, 0.25),
            max(0.8, canvas.outline),
        )
    for k in range(3):
        canvas.ellipse(x, y + 15 + 8 * k, 1.7, 1.7, darker(a.clothes, 0.6), 0)


def _hoodie(canvas: Canvas, a: Anchors, half: float) -> None:
    x, y = a.cx, a.shoulder_y
    hood = [
        (x - 13, y - 10),
        (x - 24, y - 2),
        (x - 20, y + 10),
        (x, y + 15),
        (x + 20, y + 10),
        (x + 24, y - 2),
        (x + 13, y - 10),
    ]
    canvas.blob(hood, darker(a.clothes, 0.18))
    canvas.blob(
        [(x - 10, y - 8), (x - 12, y + 3), (x, y + 8), (x + 12, y + 3), (x + 10, y - 8)], darker(a.clothes, 0.5), 0
    )
    canvas.box(x - 8, a.cy + a.ry * 0.8, x + 8, y + 1, darker(a.skin, 0.14), 0)
    for side in (-1, 1):
        canvas.line([(x + side * 6, y + 10), (x + side * 7, y + 25)], _WHITE, 2.2)


def _suit(canvas: Canvas, a: Anchors, half: float) -> None:
    x, y = a.cx, a.shoulder_y
    canvas.polygon([(x - 11, y - 5), (x + 11, y - 5), (x + 2, 130), (x - 2, 130)], _WHITE, 0)
    canvas.polygon([(x - 3, y - 2), (x + 3, y - 2), (x + 4.5, y + 20), (x, y + 28), (x - 4.5, y + 20)], _DARK, 0)
    for side in (-1, 1):
        canvas.polygon(
            [(x + side * 10, y - 6), (x + side * 20, y + 6), (x + side * 15, y + 13), (x + side * 3, 132)],
            darker(a.clothes, 0.28),
            max(0.8, canvas.outline),
        )


def _sweater(canvas: Canvas, a: Anchors, half: float) -> None:
    x, y = a.cx, a.shoulder_y
    stripe = lighter(a.clothes, 0.6) if sum(a.clothes) < 560 else darker(a.clothes, 0.3)
    for k in (11, 22):
        canvas.box(x - half, y + k, x + half, y + k + 5, stripe, 0)
    canvas.box(x - 13, y - 10, x + 13, y + 3, a.clothes, max(0.8, canvas.outline))


def _overalls(canvas: Canvas, a: Anchors, half: float) -> None:
    x, y = a.cx, a.shoulder_y
    canvas.blob([(x - 9, y - 4), (x, y + 4), (x + 9, y - 4), (x, y - 6)], darker(a.skin, 0.14), 0)
    for side in (-1, 1):
        canvas.polygon(
            [(x + side * 14, y - 1), (x + side * 25, y + 2), (x + side * 24, y + 18), (x + side * 14, y + 18)],
            a.clothes,
        )
    canvas.polygon([(x - 26, y + 14), (x + 26, y + 14), (x + 32, 134), (x - 32, 134)], a.clothes)
    for side in (-1, 1):
        canvas.ellipse(x + side * 19, y + 18, 3, 3, _GOLD, 0)


def _armour(canvas: Canvas, a: Anchors, half: float) -> None:
    x, y = a.cx, a.shoulder_y
    edge = lighter(a.clothes, 0.5) if sum(a.clothes) < 560 else darker(a.clothes, 0.35)
    canvas.box(x - 13, y - 9, x + 13, y + 2, darker(a.clothes, 0.3))
    canvas.line([(x, y + 2), (x, 130)], edge, 2.5)
    canvas.line([(x - 26, y + 20), (x, y + 27), (x + 26, y + 20)], edge, 2.5)
    for side in (-1, 1):
        canvas.ellipse(x + side * (half - 8), y + 11, 15, 12, lighter(a.clothes, 0.22), max(1.0, canvas.outline))
        canvas.ellipse(x + side * (half - 8), y + 11, 3.4, 3.4, _GOLD, 0)


def paint_accessory_behind(canvas: Canvas, accessory: str, a: Anchors) -> None:
    """What lies between body and head."""
    if accessory == "scarf":
        x, y = a.cx, a.shoulder_y
        canvas.blob(
            [(x - 20, y - 7), (x, y - 3), (x + 20, y - 7), (x + 22, y + 4), (x, y + 10), (x - 22, y + 4)], a.extra
        )
        canvas.polygon([(x + 6, y + 4), (x + 17, y + 2), (x + 19, y + 26), (x + 8, y + 27)], a.extra)


def paint_accessory_over(canvas: Canvas, accessory: str, a: Anchors) -> None:
    """What is worn on the face or the head."""
    painter = {
        "glasses": _glasses,
        "sunglasses": _sunglasses,
        "earrings": _earrings,
        "headphones": _headphones,
        "hat": _hat,
        "beard": _beard,
        "crown": _crown,
        "flower": _flower,
    }.get(accessory)
    if painter is not None:
        painter(canvas, a)


def _glasses(canvas: Canvas, a: Anchors) -> None:
    for side in (-1, 1):
        points = ring(a.face_x + side * a.eye_dx, a.eye_y, a.eye_r + 3, a.eye_r + 2.6, 24)
        canvas.line([*points, points[0], points[1]], _DARK, 1.9)
        canvas.line(
            [(a.face_x + side * (a.eye_dx + a.eye_r + 3), a.eye_y), (a.cx + side * a.rx, a.eye_y - 2)], _DARK, 1.9
        )
    canvas.line([(a.face_x - 2.5, a.eye_y - 1), (a.face_x + 2.5, a.eye_y - 1)], _DARK, 1.9)


def _sunglasses(canvas: Canvas, a: Anchors) -> None:
    canvas.line([(a.cx - a.rx, a.eye_y - 3), (a.cx + a.rx, a.eye_y - 3)], _DARK, 2.4)
    for side in (-1, 1):
        x, r = a.face_x + side * a.eye_dx, a.eye_r + 2.6
        canvas.blob(
            [
                (x - r, a.eye_y - r * 0.8),
                (x + r, a.eye_y - r * 0.8),
                (x + r * 0.8, a.eye_y + r * 0.8),
                (x - r * 0.8, a.eye_y + r * 0.8),
            ],
            _DARK,
            0,
        )
        canvas.line([(x - 3, a.eye_y + 1), (x + 1, a.eye_y - 3)], (150, 160, 180), 1.5)


def _earrings(canvas: Canvas, a: Anchors) -> None:
    for side in (-1, 1):
        canvas.ellipse(a.cx + side * (a.rx + 2), a.cy + 12, 3.4, 3.4, _GOLD, 0.8)


def _headphones(canvas: Canvas, a: Anchors) -> None:
    canvas.bow(a.cx - a.rx - 4, a.cy - 4, a.cx + a.rx + 4, a.cy - 4, -a.ry * 1.12, a.extra, 5)
    for side in (-1, 1):
        canvas.ellipse(a.cx + side * (a.rx + 3), a.cy + 1, 6.5, 9.5, a.extra, max(0.8, canvas.outline))


def _hat(canvas: Canvas, a: Anchors) -> None:
    y = a.cy - a.ry * 0.56
    canvas.box(a.cx - a.rx * 0.8, y - 24, a.cx + a.rx * 0.8, y, a.extra)
    canvas.box(a.cx - a.rx * 0.8, y - 8, a.cx + a.rx * 0.8, y - 2, darker(a.extra, 0.45), 0)
    canvas.ellipse(a.cx, y, a.rx * 1.4, 5, a.extra)


def _beard(canvas: Canvas, a: Anchors) -> None:
    x, y = a.face_x, a.mouth_y
    colour = darker(a.hair, 0.12)
    for side in (-1, 1):
        canvas.blob(
            [
                (a.cx + side * a.rx * 0.95, a.cy + 5),
                (x + side * 11, y - 1),
                (x + side * 9, y + 7),
                (x, y + 9),
                (x, y + a.ry * 0.62),
                (a.cx + side * a.rx * 0.6, a.cy + a.ry * 0.95),
                (a.cx + side * a.rx * 0.95, a.cy + a.ry * 0.5),
            ],
            colour,
            0,
        )


def _crown(canvas: Canvas, a: Anchors) -> None:
    y, half = a.cy - a.ry * 0.72, a.rx * 0.78
    points = [
        (a.cx - half, y),
        (a.cx - half - 2, y - 17),
        (a.cx - half * 0.5, y - 9),
        (a.cx, y - 20),
        (a.cx + half * 0.5, y - 9),
        (a.cx + half + 2, y - 17),
        (a.cx + half, y),
    ]
    canvas.polygon(points, _GOLD)
    canvas.ellipse(a.cx, y - 6, 2.6, 2.6, (210, 40, 60), 0)


def _flower(canvas: Canvas, a: Anchors) -> None:
    x, y = a.cx + a.rx * 0.72, a.cy - a.ry * 0.66
    for px, py in ring(x, y, 5, 5, 5, 0.3):
        canvas.ellipse(px, py, 4, 4, a.extra, 0.6)
    canvas.ellipse(x, y, 3, 3, _GOLD, 0)
