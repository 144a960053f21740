"""Eyes, brows, nose and mouth: everything an expression changes."""

from __future__ import annotations

from .canvas import Canvas, darker, mix
from .portrait import Anchors, Portrait

_WHITE = (252, 252, 252)
_BLACK = (26, 20, 24)
_MOUTH = (140, 30, 40)


def paint_face(canvas: Canvas, portrait: Portrait, a: Anchors) -> None:
    """Paint the face of the portrait's expression on an already painted head."""
    for side in (-1, 1):
        _eye(canvas, portrait, a, side)
        _brow(canvas, portrait, a, side)
    if portrait.class_word == "robot":
        canvas.polygon(
            [(a.face_x, a.cy + 4), (a.face_x - 3, a.cy + 10), (a.face_x + 3, a.cy + 10)], darker(a.skin, 0.3), 0
        )
    else:
        canvas.bow(a.face_x - 2.5, a.cy + 8, a.face_x + 2.5, a.cy + 8, 2.2, darker(a.skin, 0.35), 1.5)
    _mouth(canvas, portrait, a)


def _eye(canvas: Canvas, portrait: Portrait, a: Anchors, side: int) -> None:
    x, y, r = a.face_x + side * a.eye_dx, a.eye_y, a.eye_r
    kind = portrait.style.eyes
    wide = portrait.expression == "surprised"
    if portrait.class_word == "robot":
        canvas.box(x - r * 1.15, y - r, x + r * 1.15, y + r, _BLACK, 0)
        canvas.ellipse(x, y, r * 0.68, r * 0.68, a.eye, 0)
        canvas.ellipse(x - 1, y - 1, 1.1, 1.1, _WHITE, 0)
        return
    if kind == "dot":
        if wide:
            canvas.ellipse(x, y, r * 1.05, r * 1.1, _WHITE, 0.8)
        canvas.ellipse(x, y, r * 0.72, r * 0.82, a.eye, 0)
        canvas.ellipse(x, y, r * 0.36, r * 0.44, _BLACK, 0)
    else:
        tall = 1.12 if kind == "big" else 0.9
        canvas.ellipse(x, y, r * 1.15, r * tall, _WHITE, max(0.8, canvas.outline * 0.7))
        iris = r * (0.55 if wide else 0.74)
        canvas.ellipse(x, y + 0.4, iris, iris, a.eye, 0)
        canvas.ellipse(x, y + 0.4, iris * 0.45, iris * 0.45, _BLACK, 0)
        canvas.ellipse(x - iris * 0.35, y - iris * 0.3, 1.0, 1.0, _WHITE, 0)
    if portrait.class_word == "woman":
        outer = x + side * r * 1.15
        canvas.line(
            [(x - side * r * 0.6, y - r * 0.95), (x + side * r * 0.5, y - r * 1.0), (outer + side * 2.4, y - r * 0.75)],
            _BLACK,
            1.7,
        )


def _brow(canvas: Canvas, portrait: Portrait, a: Anchors, side: int) -> None:
    inner, outer = a.face_x + side * (a.eye_dx - 6.0), a.face_x + side * (a.eye_dx + 6.5)
    y = a.eye_y - a.eye_r - 3.2
    colour = mix(a.hair, _BLACK, 0.45) if portrait.hair_style != "bald" else darker(a.skin, 0.6)
    width = 3.2 if portrait.class_word in ("man", "creature") else 2.4
    if portrait.expression == "angry":
        canvas.line([(inner, y + 3.4), (outer, y - 3.4)], colour, width + 0.6)
    elif portrait.expression == "sad":
        canvas.line([(inner, y - 3.4), (outer, y + 2.2)], colour, width)
    elif portrait.expression == "surprised":
        canvas.bow(inner, y - 2.5, outer, y - 2.5, -3.0, colour, width)
    elif portrait.expression == "smiling":
        canvas.bow(inner, y, outer, y, -2.4, colour, width)
    else:
        canvas.line([(inner, y), (outer, y)], colour, width)


def _mouth(canvas: Canvas, portrait: Portrait, a: Anchors) -> None:
    x, y = a.face_x, a.mouth_y
    lip = (176, 40, 56) if portrait.class_word == "woman" else mix(darker(a.skin, 0.55), _MOUTH, 0.3)
    half = min(10.0, a.rx * 0.42)
    if portrait.expression == "smiling":
        canvas.blob(
            [
                (x - half, y - 3),
                (x, y - 1.6),
                (x + half, y - 3),
                (x + half * 0.55, y + 4),
                (x, y + 5.6),
                (x - half * 0.55, y + 4),
            ],
            _MOUTH,
            1.0,
        )
        canvas.blob(
            [
                (x - half * 0.8, y - 2),
                (x, y - 0.8),
                (x + half * 0.8, y - 2),
                (x + half * 0.6, y + 0.8),
                (x, y + 1.6),
                (x - half * 0.6, y + 0.8),
            ],
            _WHITE,
            0,
        )
    elif portrait.expression == "angry":
        canvas.polygon(
            [(x - half * 0.9, y + 4), (x - half * 0.6, y - 2), (x + half * 0.6, y - 2), (x + half * 0.9, y + 4)],
            _WHITE,
            1.2,
        )
        canvas.line([(x - half * 0.75, y + 1), (x + half * 0.75, y + 1)], _BLACK, 1.2)
        for k in (-0.35, 0.0, 0.35):
            canvas.line([(x + half * k, y - 2), (x + half * k, y + 4)], _BLACK, 1.0)
    elif portrait.expression == "sad":
        canvas.bow(x - half * 0.8, y + 4, x + half * 0.8, y + 4, -5.5, lip, 2.4)
        tear_x, tear_y = x - a.eye_dx - 1.5, a.eye_y + a.eye_r + 4.5
        canvas.blob(
            [(tear_x, tear_y - 4), (tear_x + 2.2, tear_y + 1), (tear_x, tear_y + 3), (tear_x - 2.2, tear_y + 1)],
            (110, 190, 250),
            0,
        )
    elif portrait.expression == "surprised":
        canvas.ellipse(x, y + 1.5, half * 0.5, half * 0.68, _MOUTH, 1.2)
        canvas.ellipse(x, y + 3, half * 0.28, half * 0.3, (90, 14, 24), 0)
    else:
        canvas.line([(x - half * 0.75, y), (x + half * 0.75, y)], lip, 2.4)
