"""Turning IMAGE tensors into files and back out of arrays: PNG, WebP, JPEG with Pillow, MP4 and WebM with PyAV."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from .provenance import SOFTWARE, Recipe, xmp

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]

IMAGE_FORMATS = ("png", "webp", "jpeg")
VIDEO_FORMATS = ("mp4", "webm")
MEDIA_TYPES: Mapping[str, str] = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
    "mp4": "video/mp4",
    "webm": "video/webm",
}
EXTENSIONS: Mapping[str, str] = {"jpeg": "jpg"}
# Tried in this order; hardware encoders exist by name on machines that lack the hardware, so only opening one tells.
MP4_CODECS = (
    "libx264", "h264_videotoolbox", "h264_nvenc", "h264_qsv", "h264_amf", "libopenh264", "libvpx-vp9",
)  # fmt: skip
WEBM_CODECS = ("libvpx-vp9", "libvpx")
# Encoders' output depends on their number of threads: fixed, so that equal frames give equal bytes on every machine.
ENCODER_THREADS = 4
_EXIF_SOFTWARE, _EXIF_MODEL, _EXIF_DESCRIPTION = 0x0131, 0x0110, 0x010E
# A JPEG segment holds 64 kB.
_MAX_EXIF_BYTES = 65_000


class EncodingError(RuntimeError):
    """No encoder of this machine could write the file; the message names what was tried."""


@dataclass(frozen=True)
class Measures:
    """What can be said of a file: width and height in px as they are in the file, duration in seconds."""

    media_type: str
    extension: str
    width: int
    height: int
    duration: float | None = None
    fps: float | None = None
    frames: int | None = None


def pixels_of(images: Tensor) -> list[Pixels]:
    """IMAGE [N, H, W, 3 or 4] float 0..1 -> N arrays [H, W, 3] of 0..255; raises ValueError for another shape."""
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or 0 in images.shape:
        raise ValueError(f"not a batch of images: shape {tuple(images.shape)}, wanted [N, H, W, 3]")
    # Where the tensor lies: bytes travel from a GPU in a quarter of the time. What is no number becomes black.
    scaled = images[..., :3].detach().float().mul(255.0).add_(0.5)
    rounded = scaled.nan_to_num_(nan=0.0, posinf=255.0, neginf=0.0).clamp_(0, 255).byte().cpu().numpy()
    return [np.ascontiguousarray(frame) for frame in rounded]


def measures_of(frames: list[Pixels], form: str, fps: float) -> Measures:
    """What a file of these frames will be like, before it is made. Raises ValueError for a form or fps there is not."""
    height, width = frames[0].shape[:2]
    if form in IMAGE_FORMATS:
        return Measures(MEDIA_TYPES[form], EXTENSIONS.get(form, form), width, height)
    if form not in VIDEO_FORMATS:
        raise ValueError(f"not an image or video format: {form!r}")
    if not 0 < fps <= 240:
        raise ValueError(f"fps must be above 0 and at most 240, not {fps}")
    even, duration = (width + width % 2, height + height % 2), round(len(frames) / fps, 4)
    return Measures(MEDIA_TYPES[form], form, *even, duration, fps, len(frames))


def encode_image(pixels: Pixels, form: str, quality: int, recipe: Recipe, extra: Mapping[str, str]) -> bytes:
    """One picture as png, webp (lossless at quality 100) or jpeg; `extra` becomes more text chunks of a PNG."""
    image = Image.fromarray(pixels)
    body = io.BytesIO()
    if form == "png":
        image.save(body, "PNG", pnginfo=_png_texts(recipe, extra), compress_level=6)
    elif form == "webp":
        lossless = quality >= 100
        image.save(body, "WEBP", quality=quality, lossless=lossless, method=4, exif=_exif(recipe), xmp=xmp())
    elif form == "jpeg":
        image.save(body, "JPEG", quality=min(quality, 100), subsampling=0, exif=_exif(recipe), xmp=xmp())
    else:
        raise ValueError(f"not an image format: {form!r}")
    return body.getvalue()


def encode_video(frames: list[Pixels], form: str, fps: float, quality: int, recipe: Recipe) -> bytes:
    """All frames as one mp4 or webm: yuv420p, even sides, index first. Raises EncodingError with what was tried."""
    even = [_with_even_sides(frame) for frame in frames]
    return _encoded_by_first_codec(even, form, Fraction(fps).limit_denominator(1001), quality, recipe)


def _png_texts(recipe: Recipe, extra: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", recipe.prompt)
    for name, text in extra.items():
        texts.add_text(name, text)
    texts.add_text("troupe", recipe.troupe)
    texts.add_text("Software", SOFTWARE)
    texts.add_itxt("XML:com.adobe.xmp", xmp().decode())
    return texts


def _exif(recipe: Recipe) -> bytes:
    """Software, and the recipe where ComfyUI looks for it (`prompt:` in Model); one too long for EXIF is left out."""
    exif = Image.Exif()
    exif[_EXIF_SOFTWARE] = SOFTWARE
    exif[_EXIF_DESCRIPTION] = f"troupe:{recipe.troupe}"
    exif[_EXIF_MODEL] = f"prompt:{recipe.prompt}"
    if len(exif.tobytes()) > _MAX_EXIF_BYTES:
        del exif[_EXIF_MODEL]
    return exif.tobytes()


def _with_even_sides(frame: Pixels) -> Pixels:
    """Repeat the last row or column where a side is odd: yuv420p halves both, and cropping would lose picture."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _encoded_by_first_codec(frames: list[Pixels], form: str, rate: Fraction, quality: int, recipe: Recipe) -> bytes:
    import av

    failures = []
    for codec in MP4_CODECS if form == "mp4" else WEBM_CODECS:
        try:
            return _mux(frames, form, codec, rate, quality, recipe)
        except (av.error.FFmpegError, av.codec.codec.UnknownCodecError, ValueError) as error:
            failures.append(f"{codec}: {error}")
    raise EncodingError(f"no {form} encoder works here ({'; '.join(failures)})")


def _mux(frames: list[Pixels], form: str, codec: str, rate: Fraction, quality: int, recipe: Recipe) -> bytes:
    import av

    # faststart puts the index first, so that browsers play while they load: FFmpeg reads its own file again for that,
    # hence no BytesIO. bitexact leaves out ids and versions.
    container_options = {"fflags": "+bitexact"}
    if form == "mp4":
        container_options["movflags"] = "+faststart+use_metadata_tags"
    with tempfile.TemporaryDirectory(prefix="troupe-video-") as folder:
        path = Path(folder) / f"video.{form}"
        with av.open(str(path), "w", format=form, options=container_options) as container:
            _write_stream(container, frames, codec, rate, quality, recipe)
        return path.read_bytes()


def _write_stream(
    container: Any, frames: list[Pixels], codec: str, rate: Fraction, quality: int, recipe: Recipe
) -> None:
    container.metadata.update({"comment": recipe.troupe, "title": SOFTWARE, "prompt": recipe.prompt})
    stream: Any = container.add_stream(codec, rate=rate, options=_quality_options(codec, quality))
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = ENCODER_THREADS
    # BT.709, limited range: what players assume when nothing is said, said aloud.
    stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = 1
    stream.codec_context.color_range = 1
    for frame in _video_frames(frames):
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _video_frames(frames: list[Pixels]) -> Iterator[Any]:
    import av

    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
        )
        frame.pts = number
        yield frame


def _quality_options(codec: str, quality: int) -> dict[str, str]:
    """Quality 1..100 on the scale of each encoder; 90 is x264's crf 18, visually lossless."""
    loss = (100 - max(1, min(100, quality))) / 100
    if codec == "libx264":
        return {"crf": str(round(14 + 37 * loss)), "preset": "medium"}
    if codec.startswith("libvpx"):
        return {"crf": str(round(15 + 45 * loss)), "b:v": "0", "row-mt": "1", "deadline": "good", "cpu-used": "4"}
    # Bit rate driven encoders: generous, their files are small in any case.
    return {"b": str(round(8_000_000 * (1 - loss)) + 500_000)}
