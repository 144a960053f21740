"""One picture: opened safely from any bytes, made upright RGB, measured, saved and shrunk. No state, no database."""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
FORMAT_WORDS = "PNG, JPEG, WebP, GIF, BMP or AVIF"
# A JPEG with several pictures (MPO) is a photograph with a preview or a depth map: its first one is what was meant.
_MOVING = ("GIF", "PNG", "WEBP", "AVIF")
KEPT_SIDE = 1536
"""Longer side (pixels) of a kept reference: what the largest training bucket can use."""
_MEASURED_SIDE = 256
_PNG_LEVEL = 4


class UnreadablePicture(Exception):
    """The bytes are no picture that may be used; the text says why, for people."""


@dataclass(frozen=True)
class Measures:
    """What can be said of a picture without a model.

    ``sharpness`` is the variance of the Laplacian and ``contrast`` the standard deviation of the luminance (0..255) at
    256 px; ``brightness`` its mean; ``fingerprint`` 256 bits of brightness gradients; ``colours`` 16 x 16 x 3 means.
    """

    width: int
    height: int
    sharpness: float
    contrast: float
    brightness: float
    fingerprint: NDArray[np.bool_]
    colours: NDArray[np.float32]


def open_upright(source: Path | bytes, max_bytes: int, max_pixels: int) -> Image.Image:
    """Read a picture as RGB: limits checked on size and header first, turned by EXIF, transparency laid on white.

    Raises UnreadablePicture.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size > max_bytes:
        raise UnreadablePicture(f"the file has {size:,} bytes, at most {max_bytes:,} are taken")
    try:
        with _opened(source) as image:
            _check_header(image, max_pixels)
            if image.format == "PNG":
                # Decoding does not check the checksums of a PNG's chunks, and damage would be trained on.
                image.verify()
        with _opened(source) as image:
            image.load()
            return _flattened(ImageOps.exif_transpose(image))
    except UnreadablePicture:
        raise
    except Image.DecompressionBombError as error:
        declared = re.search(r"(\d+) pixels", str(error))
        pixels = f"{int(declared[1]):,}" if declared else "too many"
        raise UnreadablePicture(f"its header declares {pixels} pixels, at most {max_pixels:,} are taken") from error
    except UnidentifiedImageError as error:
        raise UnreadablePicture(f"this is no {FORMAT_WORDS} picture, whatever its name says") from error
    except Exception as error:  # decoders raise nearly anything on damaged or hostile bytes
        raise UnreadablePicture("the picture is damaged or cut off and cannot be read to its end") from error


def measure(image: Image.Image) -> Measures:
    """Measure an RGB picture."""
    small = image.copy()
    small.thumbnail((_MEASURED_SIDE, _MEASURED_SIDE), Image.Resampling.BOX)
    luminance = np.asarray(small.convert("L"), dtype=np.float32)
    steps = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX), dtype=np.float32)
    return Measures(
        width=image.width,
        height=image.height,
        sharpness=_laplacian_variance(luminance),
        contrast=float(luminance.std()),
        brightness=float(luminance.mean()),
        fingerprint=(steps[:, 1:] > steps[:, :-1]).ravel(),
        colours=np.asarray(image.resize((16, 16), Image.Resampling.BOX), dtype=np.float32),
    )


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side at most ``side`` pixels."""
    if max(image.size) <= side:
        return image
    return ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS)


def as_png(image: Image.Image) -> bytes:
    """PNG bytes without any metadata of the original (place, camera, time)."""
    buffer = BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def as_webp(image: Image.Image, side: int) -> bytes:
    """A small WebP picture, longer side at most ``side`` pixels; in half the time that the finest steps would take."""
    buffer, small = BytesIO(), image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    small.save(buffer, "WEBP", quality=80, method=1)
    return buffer.getvalue()


def _opened(source: Path | bytes) -> Image.Image:
    Image.init()
    readable = [format for format in FORMATS if format in Image.OPEN]
    return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=readable)


def _check_header(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise UnreadablePicture(
            f"its header declares {width:,} x {height:,} pixels, at most {max_pixels:,} in all are taken"
        )
    frames = getattr(image, "n_frames", 1)
    if image.format in _MOVING and frames > 1:
        raise UnreadablePicture(f"this is an animation of {frames} frames; send the frame you mean as a still picture")


def _flattened(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        # 16-bit grey: converting directly would clip everything above 255 to white.
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        paper = Image.new("RGBA", layers.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, layers).convert("RGB")
    return image.convert("RGB")


def _laplacian_variance(luminance: NDArray[np.float32]) -> float:
    if min(luminance.shape) < 3:
        return 0.0
    centre = luminance[1:-1, 1:-1]
    around = luminance[:-2, 1:-1] + luminance[2:, 1:-1] + luminance[1:-1, :-2] + luminance[1:-1, 2:]
    return float((around - 4 * centre).var())
