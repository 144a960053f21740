"""Reference pictures for tests, drawn on the spot."""

from __future__ import annotations

from io import BytesIO

from PIL import Image, ImageDraw


def picture(number: int = 0, size: tuple[int, int] = (128, 128), mode: str = "RGB") -> Image.Image:
    """A sharp, well-lit picture that differs from every other number's."""
    image = Image.new("RGB", size, (40 + number * 37 % 200, 90 + number * 71 % 140, 200 - number * 53 % 160))
    draw = ImageDraw.Draw(image)
    for step in range(12):
        x, y = (number * 29 + step * 41) % size[0], (number * 61 + step * 23) % size[1]
        shade = ((step * 67 + number * 13) % 256, (step * 31 + number * 91) % 256, (step * 97 + number * 7) % 256)
        draw.ellipse((x - 14, y - 14, x + 14, y + 14), fill=shade, outline=(0, 0, 0), width=2)
    return image.convert(mode)


def png(image: Image.Image) -> bytes:
    data = BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def pictures(count: int, first: int = 0) -> dict[str, bytes]:
    return {f"{number:03d}.png": png(picture(number)) for number in range(first, first + count)}
