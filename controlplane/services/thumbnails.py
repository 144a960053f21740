"""Thumbnails: the small WebP of a picture, or of a video's first frame where a decoder is installed."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from controlplane.domain.assets import THUMBNAIL_SIDE
from controlplane.services.pictures import UnreadablePicture, as_webp, open_upright

MAX_OUTPUT_PIXELS = 200_000_000


@dataclass(frozen=True)
class Look:
    """What a stored file turned out to be: its true size in pixels, and its thumbnail (WebP bytes).

    A picture that is no larger than a thumbnail has none: it is its own.
    """

    width: int
    height: int
    thumbnail: bytes | None


def look_at(data: bytes, media_type: str) -> Look | None:
    """Decode a picture or a video's first frame. Raises UnreadablePicture where it is neither.

    None for a video where PyAV, which is not part of the light core, is not installed.
    """
    if media_type.startswith("video/"):
        frame = _first_frame(data)
        return _look(frame) if frame is not None else None
    image = open_upright(data, max_bytes=len(data), max_pixels=MAX_OUTPUT_PIXELS)
    return Look(*image.size, None) if is_its_own(*image.size) else _look(image)


def _look(image: Image.Image) -> Look:
    return Look(image.width, image.height, as_webp(image, THUMBNAIL_SIDE))


def is_its_own(width: int, height: int) -> bool:
    """Whether a picture of this size is small enough to be its own thumbnail."""
    return max(width, height) <= THUMBNAIL_SIDE


def _first_frame(data: bytes) -> Image.Image | None:
    try:
        import av
    except ImportError:
        return None
    try:
        with av.open(BytesIO(data), mode="r") as container:
            for frame in container.decode(video=0):
                return Image.fromarray(frame.to_ndarray(format="rgb24"))
    except Exception as error:  # FFmpeg's errors have no common ancestor below Exception
        raise UnreadablePicture("the video cannot be decoded") from error
    raise UnreadablePicture("the video has no frames")
