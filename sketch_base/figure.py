"""The painted person of a portrait: body, head, hair, face and accessory, in portrait units."""

from __future__ import annotations

from .canvas import Canvas, darker
from .clothing import paint_accessory_behind, paint_accessory_over, paint_body
from .face import paint_face
from .hair import paint_hair_back, paint_hair_front
from .portrait import Anchors, Portrait
from .words import CLOTHES_COLOURS, EYE_COLOURS, HAIR_COLOURS, SKINS, Rgb


def paint_figure(canvas: Canvas, portrait: Portrait) -> Anchors:
    """Paint the whole figure and tell where its parts are."""
    a = measure(portrait)
    paint_hair_back(canvas, portrait.hair_style, a)
    paint_body(canvas, portrait.clothes_noun, a, broad=portrait.class_word in ("man", "robot"))
    paint_accessory_behind(canvas, portrait.accessory, a)
    _head(canvas, portrait, a)
    paint_face(canvas, portrait, a)
    paint_hair_front(canvas, portrait.hair_style, a)
    paint_accessory_over(canvas, portrait.accessory, a)
    return a


def measure(portrait: Portrait) -> Anchors:
    """Anchors of a portrait without drawing it."""
    style = portrait.style
    cx, cy = 64 + portrait.dx, 55 + portrait.dy
    rx, ry = style.head_width, style.head_height
    grow = 1.22 if portrait.expression == "surprised" else 1.0
    return Anchors(
        cx=cx,
        cy=cy,
        rx=rx,
        ry=ry,
        face_x=cx + portrait.tilt,
        eye_y=cy - 0.02 * ry,
        eye_dx=0.44 * rx,
        eye_r=5.0 * style.eye_scale * grow,
        mouth_y=cy + 0.56 * ry,
        shoulder_y=cy + ry + 9,
        skin=_tint(SKINS[portrait.skin], portrait.jitter, 1),
        hair=_tint(HAIR_COLOURS[portrait.hair_colour], portrait.jitter, 2),
        eye=EYE_COLOURS[portrait.eye_colour],
        clothes=_tint(CLOTHES_COLOURS[portrait.clothes_colour], portrait.jitter, 3),
        extra=CLOTHES_COLOURS[portrait.accessory_colour],
    )


def _tint(colour: Rgb, jitter: int, part: int) -> Rgb:
    """The colour moved a little, the same way for the same jitter."""
    noise = [((jitter >> (part * 4 + k * 2)) % 7 - 3) * 3 for k in range(3)]
    r, g, b = (max(0, min(255, c + n)) for c, n in zip(colour, noise, strict=True))
    return (r, g, b)


def _head(canvas: Canvas, portrait: Portrait, a: Anchors) -> None:
    ear = darker(a.skin, 0.06)
    if portrait.class_word == "robot":
        canvas.box(a.cx - a.rx - 5, a.cy - 5, a.cx + a.rx + 5, a.cy + 7, darker(a.skin, 0.3))
        top, bottom = a.cy - a.ry * 0.92, a.cy + a.ry * 0.98
        canvas.box(a.cx - a.rx, top, a.cx + a.rx, bottom, a.skin)
        for x in (a.cx - a.rx + 3.5, a.cx + a.rx - 3.5):
            canvas.ellipse(x, bottom - 4, 1.5, 1.5, darker(a.skin, 0.4), 0)
        return
    for side in (-1, 1):
        x = a.cx + side * a.rx
        if portrait.class_word == "creature":
            canvas.polygon([(x - side * 3, a.cy - 9), (x + side * 15, a.cy - 17), (x - side * 2, a.cy + 7)], ear)
        else:
            canvas.ellipse(x, a.cy + 2, 4.5, 6.5, ear)
    jaw = a.rx * portrait.style.jaw * (1.0 if portrait.class_word == "man" else 0.9)
    canvas.blob(
        [
            (a.cx, a.cy - a.ry),
            (a.cx + a.rx * 0.78, a.cy - a.ry * 0.68),
            (a.cx + a.rx, a.cy),
            (a.cx + jaw * 0.86, a.cy + a.ry * 0.62),
            (a.cx + jaw * 0.4, a.cy + a.ry * 0.96),
            (a.cx - jaw * 0.4, a.cy + a.ry * 0.96),
            (a.cx - jaw * 0.86, a.cy + a.ry * 0.62),
            (a.cx - a.rx, a.cy),
            (a.cx - a.rx * 0.78, a.cy - a.ry * 0.68),
        ],
        a.skin,
    )
