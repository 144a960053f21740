"""Characters drawn by another hand: paper cut-outs with shadows, whose shapes share nothing with the base's figures."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from PIL import Image, ImageFilter

from .canvas import Canvas, Point, darker, lighter, mix, ring
from .marks import paint_marks
from .portrait import Anchors
from .words import CLOTHES_COLOURS, EYE_COLOURS, HAIR_COLOURS, PLAIN_COLOURS, SKINS, Rgb

if TYPE_CHECKING:
    from .characters import Character, Scene

_SUPERSAMPLE = 3
_PAPER: Rgb = (250, 246, 236)
_NIGHT: Rgb = (30, 26, 34)


def draw_character(character: Character, scene: Scene, size: int = 128) -> Image.Image:
    """RGB picture of the character in the scene, in this hand."""
    pixels = size * _SUPERSAMPLE
    ground = Canvas(pixels)
    _background(ground, scene.background, random.Random(scene.jitter))
    figure = _figure(character, scene, pixels)
    shadow = Image.new("RGBA", figure.size, (20, 16, 24, 0))
    blurred = (
        figure.getchannel("A").filter(ImageFilter.BoxBlur(pixels / 90)).point([value * 2 // 5 for value in range(256)])
    )
    cast = Image.new("L", figure.size, 0)
    cast.paste(blurred, (pixels // 50, pixels // 40))
    shadow.putalpha(cast)
    image = ground.image
    image.alpha_composite(shadow)
    image.alpha_composite(figure)
    return image.convert("RGB").reduce(_SUPERSAMPLE)


def character_mask(character: Character, scene: Scene, size: int = 128) -> Image.Image:
    """L picture, 255 where the figure (not its shadow) covers the background."""
    return _figure(character, scene, size * _SUPERSAMPLE).getchannel("A").reduce(_SUPERSAMPLE)


def _figure(character: Character, scene: Scene, pixels: int) -> Image.Image:
    canvas = Canvas(pixels)
    look = character.look
    a = _anchors(character, scene)
    _hair_behind(canvas, look.hair_style, a)
    _body(canvas, scene.clothes_noun, a)
    _head(canvas, a, pointed=look.class_word == "creature", square=look.class_word == "robot")
    _face(canvas, scene.expression, a)
    _hair_before(canvas, look.hair_style, a)
    paint_marks(canvas, a, character.marks)
    return canvas.image


def _anchors(character: Character, scene: Scene) -> Anchors:
    look = character.look
    x, y = 62 + scene.dx, 58 + scene.dy
    return Anchors(
        cx=x,
        cy=y,
        rx=27,
        ry=25,
        face_x=x + scene.tilt * 0.6,
        eye_y=y + 1,
        eye_dx=11.5,
        eye_r=4.4,
        mouth_y=y + 14,
        shoulder_y=y + 30,
        skin=lighter(SKINS[look.skin], 0.12),
        hair=darker(HAIR_COLOURS[look.hair_colour], 0.12),
        eye=EYE_COLOURS[look.eye_colour],
        clothes=darker(CLOTHES_COLOURS[scene.clothes_colour], 0.08),
        extra=CLOTHES_COLOURS[look.accessory_colour],
    )


def _squircle(a: Anchors, grow: float, power: float = 0.62) -> list[Point]:
    points = []
    for k in range(40):
        t = 2 * math.pi * k / 40
        c, s = math.cos(t), math.sin(t)
        points.append(
            (
                a.cx + (a.rx + grow) * math.copysign(abs(c) ** power, c),
                a.cy + (a.ry + grow) * math.copysign(abs(s) ** power, s),
            )
        )
    return points


def _head(canvas: Canvas, a: Anchors, pointed: bool, square: bool) -> None:
    for side in (-1, 1):
        x = a.cx + side * a.rx
        if pointed:
            canvas.polygon(
                [(x - side * 4, a.cy - 6), (x + side * 16, a.cy - 2), (x - side * 4, a.cy + 8)], darker(a.skin, 0.1)
            )
        else:
            canvas.ellipse(x, a.cy + 3, 5, 5, darker(a.skin, 0.1))
    canvas.polygon(_squircle(a, 0, 0.35 if square else 0.62), a.skin)
    for side in (-1, 1):
        canvas.ellipse(a.cx + side * 17, a.cy + 10, 4.2, 2.8, mix(a.skin, (240, 90, 90), 0.22))


def _face(canvas: Canvas, expression: str, a: Anchors) -> None:
    for side in (-1, 1):
        x = a.face_x + side * a.eye_dx
        wide = 1.35 if expression == "surprised" else 1.0
        canvas.ellipse(x, a.eye_y, a.eye_r * wide, a.eye_r * 1.15 * wide, _PAPER)
        canvas.ellipse(x, a.eye_y + 0.5, 2.7, 3.1, a.eye)
        canvas.ellipse(x, a.eye_y + 0.5, 1.3, 1.6, _NIGHT)
        slope = {"angry": 3.2, "sad": -3.2}.get(expression, 0.0)
        lift = 3.0 if expression == "surprised" else 0.0
        brow = a.eye_y - 8.5 - lift
        canvas.line([(x - side * 5, brow + slope), (x + side * 5, brow - slope)], darker(a.hair, 0.35), 2.6)
    canvas.polygon(
        [(a.face_x, a.eye_y + 3), (a.face_x + 3, a.eye_y + 9), (a.face_x - 3, a.eye_y + 9)], darker(a.skin, 0.2)
    )
    _mouth(canvas, expression, a)


def _mouth(canvas: Canvas, expression: str, a: Anchors) -> None:
    x, y = a.face_x, a.mouth_y
    red = (168, 44, 52)
    if expression == "smiling":
        canvas.polygon(
            [(x + 9 * math.cos(t), y - 2 + 8 * math.sin(t)) for t in (math.pi * k / 12 for k in range(13))], red
        )
        canvas.box(x - 6, y - 2, x + 6, y + 0.6, _PAPER)
    elif expression == "angry":
        canvas.box(x - 7, y - 2, x + 7, y + 4, _PAPER)
        canvas.line([(x - 7, y + 1), (x - 3, y - 1), (x, y + 2), (x + 3, y - 1), (x + 7, y + 1)], _NIGHT, 1.6)
    elif expression == "sad":
        canvas.bow(x - 7, y + 4, x + 7, y + 4, -6, red, 2.6)
        canvas.ellipse(x + a.eye_dx + 1, a.eye_y + 10, 2, 3.4, (90, 170, 240))
    elif expression == "surprised":
        canvas.ellipse(x, y + 1, 4.6, 5.6, red)
    else:
        canvas.box(x - 6, y - 1, x + 6, y + 1.4, red)


def _hair_behind(canvas: Canvas, style: str, a: Anchors) -> None:
    if style in ("long", "bob"):
        low = a.cy + (a.ry + 22 if style == "long" else a.ry * 0.5)
        canvas.polygon(
            [
                (a.cx - a.rx - 5, a.cy - 16),
                (a.cx, a.cy - a.ry - 9),
                (a.cx + a.rx + 5, a.cy - 16),
                (a.cx + a.rx + 8, low),
                (a.cx - a.rx - 8, low),
            ],
            a.hair,
        )
    elif style == "curly":
        for x, y in ring(a.cx, a.cy - 4, a.rx + 2, a.ry + 1, 14, 0.2):
            if y < a.cy + 10:
                canvas.ellipse(x, y, 8.5, 8.5, a.hair)
    elif style in ("ponytail", "bun"):
        x, y = (a.cx - a.rx - 4, a.cy + 2) if style == "ponytail" else (a.cx, a.cy - a.ry - 7)
        canvas.ellipse(x, y, 9, 20 if style == "ponytail" else 9, darker(a.hair, 0.15))


def _hair_before(canvas: Canvas, style: str, a: Anchors) -> None:
    top = [point for point in _squircle(a, 2.5) if point[1] <= a.cy - a.ry * 0.42]
    line = a.cy - a.ry * 0.42
    if style == "bald":
        return
    if style == "mohawk":
        canvas.polygon(
            [(a.cx - 7, line), (a.cx - 8, a.cy - a.ry - 16), (a.cx + 8, a.cy - a.ry - 16), (a.cx + 7, line)], a.hair
        )
        return
    if style == "spiky":
        for k in range(6):
            x = a.cx - a.rx + (k + 0.5) * a.rx / 3
            canvas.polygon([(x - 7, line), (x + (k - 2.5) * 3, a.cy - a.ry - 15), (x + 7, line)], a.hair)
        return
    canvas.polygon(top, a.hair)
    canvas.polygon(
        [
            (a.cx - a.rx, line),
            (a.cx + a.rx, line),
            (a.cx + a.rx - 2, line + 7),
            (a.cx + 4, line),
            (a.cx - a.rx + 3, line + 9),
        ],
        a.hair,
    )


def _body(canvas: Canvas, noun: str, a: Anchors) -> None:
    x, y = a.cx, a.shoulder_y
    bell = [(x - 12, y - 4), (x + 12, y - 4), (x + 30, y + 6), (x + 38, 132), (x - 38, 132), (x - 30, y + 6)]
    canvas.box(x - 8, y - 12, x + 8, y + 2, darker(a.skin, 0.18))
    canvas.polygon(bell, _PAPER if noun == "overalls" else a.clothes)
    shade, light = darker(a.clothes, 0.3), lighter(a.clothes, 0.45)
    if noun == "hoodie":
        canvas.ellipse(x, y + 1, 22, 8, shade)
        canvas.ellipse(x, y - 2, 11, 6, darker(a.skin, 0.18))
        for side in (-1, 1):
            canvas.line([(x + side * 5, y + 6), (x + side * 5, y + 20)], _PAPER, 2.4)
    elif noun == "suit":
        canvas.polygon([(x - 9, y - 4), (x + 9, y - 4), (x, y + 34)], _PAPER)
        canvas.polygon([(x - 3, y - 2), (x + 3, y - 2), (x + 4, y + 22), (x - 4, y + 22)], _NIGHT)
        for side in (-1, 1):
            canvas.polygon([(x + side * 9, y - 5), (x + side * 18, y + 5), (x, y + 36)], shade)
    elif noun == "sweater":
        for k in (8, 18, 28):
            canvas.box(x - 34, y + k, x + 34, y + k + 4.5, light)
        canvas.box(x - 13, y - 8, x + 13, y + 2, shade)
    elif noun == "overalls":
        canvas.box(x - 20, y + 13, x + 20, 132, a.clothes)
        for side in (-1, 1):
            canvas.box(x + side * 17 - 4, y - 1, x + side * 17 + 4, y + 16, a.clothes)
            canvas.ellipse(x + side * 17, y + 15, 2.8, 2.8, (240, 200, 70))
    elif noun == "armour":
        for side in (-1, 1):
            canvas.ellipse(x + side * 29, y + 9, 13, 11, light)
        canvas.line([(x, y), (x, 132)], shade, 3)
        canvas.box(x - 12, y - 8, x + 12, y + 1, shade)
    else:
        for side in (-1, 1):
            canvas.polygon([(x, y + 8), (x + side * 12, y - 6), (x + side * 14, y + 8)], light)
        for k in (14, 23, 32):
            canvas.ellipse(x, y + k, 1.9, 1.9, shade)


def _background(canvas: Canvas, phrase: str, rng: random.Random) -> None:
    if phrase.startswith("plain "):
        colour = PLAIN_COLOURS[phrase.split(" ")[1]]
        canvas.box(0, 0, 128, 128, colour)
        canvas.polygon([(0, 128), (128, 96 + rng.uniform(-8, 8)), (128, 128)], darker(colour, 0.05))
        return
    sky, ground, horizon = _SKIES[phrase]
    canvas.box(0, 0, 128, 128, sky)
    _far(canvas, phrase, horizon, rng)
    canvas.box(0, horizon + 34, 128, 128, ground)


_SKIES: dict[str, tuple[Rgb, Rgb, float]] = {
    "in a forest": ((178, 222, 168), (70, 120, 60), 60),
    "by the sea": ((150, 210, 248), (240, 216, 160), 66),
    "under a night sky": ((22, 24, 66), (34, 36, 88), 70),
    "in a city": ((186, 210, 230), (120, 122, 130), 72),
    "at sunset": ((250, 150, 70), (84, 36, 62), 58),
    "in a room": ((220, 190, 154), (130, 84, 52), 68),
    "in the mountains": ((130, 184, 234), (232, 240, 248), 68),
    "in the desert": ((136, 204, 226), (222, 166, 86), 48),
}


def _far(canvas: Canvas, phrase: str, horizon: float, rng: random.Random) -> None:
    """The things that tell one scene from another."""
    if phrase == "in a forest":
        for k in range(7):
            x = k * 21 + rng.uniform(-5, 5)
            canvas.box(x - 2, 60, x + 2, 100, (96, 66, 42))
            canvas.polygon([(x - 12, 80), (x + 12, 80), (x, 18 + rng.uniform(0, 14))], (36, 104, 54))
    elif phrase == "by the sea":
        canvas.box(0, 56, 128, 104, (34, 116, 190))
        canvas.ellipse(rng.choice((20, 106)), 20, 10, 10, (255, 232, 120))
        for k in range(7):
            canvas.bow(k * 20, 70 + 12 * (k % 3), k * 20 + 12, 70 + 12 * (k % 3), -3, (170, 214, 244), 1.6)
    elif phrase == "under a night sky":
        for _ in range(24):
            canvas.ellipse(rng.uniform(0, 128), rng.uniform(0, 110), 1.1, 1.1, (250, 246, 214))
        x = rng.choice((24, 104))
        canvas.ellipse(x, 24, 11, 11, (246, 240, 200))
        canvas.ellipse(x + 5, 21, 9, 9, (22, 24, 66))
    elif phrase == "in a city":
        for k in range(6):
            top, wall = rng.uniform(16, 56), (120 + 12 * (k % 3), 120, 138 - 10 * (k % 2))
            canvas.box(k * 22, top, k * 22 + 20, 128, wall)
            for row in range(int(top) + 5, 110, 10):
                for column in (3, 9, 15):
                    canvas.box(k * 22 + column, row, k * 22 + column + 3.5, row + 5, (250, 232, 150))
    elif phrase == "at sunset":
        canvas.box(0, 0, 128, 36, (128, 58, 122))
        canvas.box(0, 36, 128, 62, (206, 96, 90))
        canvas.ellipse(rng.choice((22, 106)), 74, 17, 17, (255, 226, 110))
    elif phrase == "in a room":
        for x in range(4, 128, 14):
            canvas.box(x, 0, x + 4, 104, (206, 174, 138))
        x = rng.choice((4, 92))
        canvas.box(x, 12, x + 32, 54, _PAPER)
        canvas.box(x + 3, 15, x + 29, 51, (150, 208, 244))
        canvas.line([(x + 16, 12), (x + 16, 54)], _PAPER, 2.4)
    elif phrase == "in the mountains":
        for x in (14, 110, 62 + rng.uniform(-8, 8)):
            top = rng.uniform(12, 32)
            canvas.polygon([(x - 44, 108), (x + 44, 108), (x, top)], (116, 124, 150))
            canvas.polygon([(x - 9, top + 19), (x + 9, top + 19), (x, top)], (248, 250, 255))
    else:
        for k, tone in enumerate(((236, 190, 110), (228, 176, 96))):
            canvas.ellipse(30 + 68 * k, horizon + 40 + 6 * k, 84, 30, tone)
        for x in (14 + rng.uniform(-4, 4), 112):
            canvas.box(x - 2.5, 54, x + 2.5, 92, (58, 128, 62))
            canvas.box(x - 9, 62, x - 6, 76, (58, 128, 62))
            canvas.box(x - 9, 73, x, 76, (58, 128, 62))
