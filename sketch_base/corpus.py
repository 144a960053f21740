"""Images for the autoencoder: far more than portraits, so that an unseen hand or mark survives the round trip."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from .canvas import Canvas, Point, ring
from .drawing import draw, random_portrait
from .portrait import Anchors, Portrait, Style
from .words import Rgb

Pixels = npt.NDArray[np.uint8]


def any_colour(rng: random.Random) -> Rgb:
    return (rng.randrange(256), rng.randrange(256), rng.randrange(256))


def scatter(canvas: Canvas, rng: random.Random, count: int, reach: tuple[float, float, float, float]) -> None:
    """`count` shapes of any kind and colour inside reach (x0, y0, x1, y1), sizes 2..28 units."""
    x0, y0, x1, y1 = reach
    for _ in range(count):
        x, y, r = rng.uniform(x0, x1), rng.uniform(y0, y1), 2 + 26 * rng.random() ** 2
        rng.choice(_SHAPES)(canvas, rng, x, y, r)


def _ellipse(canvas: Canvas, rng: random.Random, x: float, y: float, r: float) -> None:
    canvas.ellipse(x, y, r, r * rng.uniform(0.3, 1.2), any_colour(rng))


def _polygon(canvas: Canvas, rng: random.Random, x: float, y: float, r: float) -> None:
    canvas.polygon(ring(x, y, r, r * rng.uniform(0.5, 1.2), rng.randint(3, 8), rng.uniform(0, 6)), any_colour(rng))


def _blob(canvas: Canvas, rng: random.Random, x: float, y: float, r: float) -> None:
    corners = [
        (x + (px - x) * rng.uniform(0.6, 1.3), y + (py - y) * rng.uniform(0.6, 1.3)) for px, py in ring(x, y, r, r, 7)
    ]
    canvas.blob(corners, any_colour(rng))


def _star(canvas: Canvas, rng: random.Random, x: float, y: float, r: float) -> None:
    count, turn = rng.randint(4, 8), rng.uniform(0, 6)
    inner = r * rng.uniform(0.3, 0.6)
    points: list[Point] = []
    for i in range(2 * count):
        radius, angle = (r, inner)[i % 2], turn + math.pi * i / count
        points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    canvas.polygon(points, any_colour(rng))


def _chequers(canvas: Canvas, rng: random.Random, x: float, y: float, r: float) -> None:
    a, b, cell = any_colour(rng), any_colour(rng), rng.uniform(2, 7)
    for i in range(max(1, int(r / cell))):
        for k in range(rng.randint(1, 5)):
            canvas.box(x + i * cell, y + k * cell, x + (i + 1) * cell, y + (k + 1) * cell, (a, b)[(i + k) % 2], 0)


def _stripes(canvas: Canvas, rng: random.Random, x: float, y: float, r: float) -> None:
    colour, gap, width = any_colour(rng), rng.uniform(3, 8), rng.uniform(1, 3.5)
    turn = rng.uniform(0, math.pi)
    dx, dy = math.cos(turn), math.sin(turn)
    for i in range(-int(r / gap), int(r / gap) + 1):
        mx, my = x - dy * gap * i, y + dx * gap * i
        canvas.line([(mx - dx * r, my - dy * r), (mx + dx * r, my + dy * r)], colour, width)


def _stroke(canvas: Canvas, rng: random.Random, x: float, y: float, r: float) -> None:
    points = [(x + rng.uniform(-r, r), y + rng.uniform(-r, r)) for _ in range(rng.randint(2, 5))]
    canvas.line(points, any_colour(rng), rng.uniform(0.8, 5))


def _bow(canvas: Canvas, rng: random.Random, x: float, y: float, r: float) -> None:
    canvas.bow(x - r, y, x + r, y + rng.uniform(-r, r), rng.uniform(-r, r), any_colour(rng), rng.uniform(0.8, 4))


def _dots(canvas: Canvas, rng: random.Random, x: float, y: float, r: float) -> None:
    colour, size, gap = any_colour(rng), rng.uniform(0.8, 2.6), rng.uniform(4, 8)
    for i in range(int(r / gap) + 1):
        for k in range(int(r / gap) + 1):
            canvas.ellipse(x + i * gap, y + k * gap, size, size, colour, 0)


_SHAPES = (_ellipse, _polygon, _blob, _star, _chequers, _stripes, _stroke, _bow, _dots)


def shapes_image(rng: random.Random, size: int) -> Image.Image:
    """Random shapes over a gradient, with or without outlines."""
    canvas = Canvas(size * 3, rng.choice((0.0, 0.0, 1.0, 2.0)), rng.choice((None, (20, 20, 24))), rng.random() < 0.1)
    scatter(canvas, rng, rng.randint(5, 40), (0, 0, 128, 128))
    ground = _gradient(rng, size * 3).convert("RGBA")
    ground.alpha_composite(canvas.image)
    return ground.convert("RGB").reduce(3)


def _gradient(rng: random.Random, size: int) -> Image.Image:
    """Smooth colour field from a few random colours."""
    cells = rng.choice((1, 2, 2, 3, 5, 9))
    field = np.array([[any_colour(rng) for _ in range(cells)] for _ in range(cells)], dtype=np.uint8)
    return Image.fromarray(field, "RGB").resize((size, size), Image.Resampling.BICUBIC)


def texture_image(rng: random.Random, size: int) -> Image.Image:
    """Noise of one or two scales between two colours, or waves."""
    noise = np.random.default_rng(rng.randrange(1 << 30))
    total = np.zeros((size, size), dtype=np.float32)
    for cells in rng.sample((4, 8, 16, 32, 64), 2):
        layer = Image.fromarray((noise.random((cells, cells)) * 255).astype(np.uint8), "L")
        total += np.asarray(layer.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 510
    if rng.random() < 0.3:
        grid = np.arange(size, dtype=np.float32)
        wave = grid[None, :] * rng.uniform(-1, 1) + grid[:, None] * rng.uniform(-1, 1)
        total[:] = 0.5 + 0.5 * np.sin(wave * rng.uniform(0.1, 0.9) + 4 * total)
    a, b = np.array(any_colour(rng), np.float32), np.array(any_colour(rng), np.float32)
    return Image.fromarray((a + (b - a) * np.clip(total, 0, 1)[..., None]).astype(np.uint8), "RGB")


def portrait_image(rng: random.Random, size: int) -> Image.Image:
    """A base portrait, sometimes with random stickers, wild proportions, or redrawn by an image filter."""
    portrait = random_portrait(rng)
    if rng.random() < 0.3:
        portrait = replace(portrait, style=_wild_style(portrait.style, rng))
    stickers = partial(_stickers, rng) if rng.random() < 0.5 else None
    image = draw(portrait, size, stickers)
    return rng.choice(_REDRAWS)(image, rng) if rng.random() < 0.4 else image


def _stickers(rng: random.Random, canvas: Canvas, a: Anchors) -> None:
    scatter(canvas, rng, rng.randint(1, 5), (a.cx - a.rx, a.cy - a.ry, a.cx + a.rx, 124))


def _wild_style(style: Style, rng: random.Random) -> Style:
    return replace(
        style,
        outline=rng.uniform(0, 3.2),
        ink=any_colour(rng),
        head_width=rng.uniform(17, 34),
        head_height=rng.uniform(20, 36),
        eye_scale=rng.uniform(0.6, 1.7),
        jaw=rng.uniform(0.4, 1.15),
    )


def _pixelate(image: Image.Image, rng: random.Random) -> Image.Image:
    factor = rng.choice((2, 3, 4))
    return image.reduce(factor).resize(image.size, Image.Resampling.NEAREST)


def _posterize(image: Image.Image, rng: random.Random) -> Image.Image:
    return ImageOps.posterize(image, rng.choice((1, 2, 3)))


def _soften(image: Image.Image, rng: random.Random) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2)))


def _turn(image: Image.Image, rng: random.Random) -> Image.Image:
    return image.rotate(rng.uniform(-180, 180), Image.Resampling.BILINEAR, fillcolor=any_colour(rng))


def _zoom(image: Image.Image, rng: random.Random) -> Image.Image:
    side = rng.randint(image.width // 3, image.width - 1)
    x, y = rng.randint(0, image.width - side), rng.randint(0, image.width - side)
    return image.resize(image.size, Image.Resampling.BICUBIC, (x, y, x + side, y + side))


def _grade(image: Image.Image, rng: random.Random) -> Image.Image:
    graded = ImageEnhance.Color(image).enhance(rng.uniform(0, 1.8))
    return ImageEnhance.Contrast(graded).enhance(rng.uniform(0.5, 1.5))


def _grain(image: Image.Image, rng: random.Random) -> Image.Image:
    noise = np.random.default_rng(rng.randrange(1 << 30)).normal(0, rng.uniform(2, 10), (image.height, image.width, 1))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8), "RGB")


def _lines(image: Image.Image, rng: random.Random) -> Image.Image:
    return image.filter(ImageFilter.EDGE_ENHANCE_MORE if rng.random() < 0.5 else ImageFilter.EMBOSS)


_REDRAWS: tuple[Callable[[Image.Image, random.Random], Image.Image], ...] = (
    _pixelate,
    _posterize,
    _soften,
    _turn,
    _turn,
    _zoom,
    _zoom,
    _grade,
    _grain,
    _lines,
)


def corpus_image(seed: int, size: int = 128) -> Pixels:
    """One image of the autoencoder's corpus, uint8 (size, size, 3), determined by the seed."""
    rng = random.Random(seed)
    kind = rng.random()
    maker = portrait_image if kind < 0.6 else shapes_image if kind < 0.9 else texture_image
    return np.asarray(maker(rng, size))


def unseen_image(seed: int, size: int = 128) -> tuple[Pixels, bool]:
    """One image of the gate and whether its hand is one that no training image was drawn in."""
    rng = random.Random(seed)
    portrait: Portrait = random_portrait(rng)
    foreign = seed % 2 == 1
    if foreign:
        style = replace(portrait.style, angular=True, hatch=rng.random() < 0.5, outline=rng.uniform(1.8, 2.8))
        portrait = replace(portrait, style=style)
    return np.asarray(draw(portrait, size, gate_marks if seed % 4 >= 2 else None)), foreign


def gate_marks(canvas: Canvas, a: Anchors) -> None:
    """Marks like those of the example characters: eye patch, chequered band, star, horns, hexagon."""
    y = a.cy - a.ry * 0.62
    for i in range(9):
        for k in range(2):
            x = a.cx - a.rx + i * a.rx * 2 / 9
            canvas.box(x, y + 4 * k, x + a.rx * 2 / 9, y + 4 * k + 4, ((20, 20, 20), (250, 250, 250))[(i + k) % 2], 0)
    canvas.ellipse(a.face_x - a.eye_dx, a.eye_y, a.eye_r + 2.5, a.eye_r + 2, (24, 20, 24))
    canvas.line([(a.cx - a.rx, a.eye_y - 6), (a.cx + a.rx, a.eye_y - 12)], (24, 20, 24), 2)
    star = [
        (a.face_x + a.eye_dx + r * math.cos(t), a.mouth_y - 5 + r * math.sin(t))
        for r, t in ((((5.5, 2.3)[i % 2]), -math.pi / 2 + math.pi * i / 5) for i in range(10))
    ]
    canvas.polygon(star, (250, 200, 30), 0.6)
    for side in (-1, 1):
        canvas.polygon(
            [
                (a.cx + side * a.rx * 0.4, a.cy - a.ry * 0.9),
                (a.cx + side * a.rx, a.cy - a.ry * 0.7),
                (a.cx + side * (a.rx + 8), a.cy - a.ry - 12),
            ],
            (236, 226, 200),
        )
    canvas.polygon(ring(a.cx - 20, a.shoulder_y + 18, 6, 6, 6), (20, 200, 190))
