"""Nodes that bring pictures in, change their size, and write them out. IMAGE is float32 [N, H, W, 3] in 0..1."""

from __future__ import annotations

import hashlib
import json
import random
import re
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, ImageSequence
from PIL.PngImagePlugin import PngInfo

from ..folders import PathEscapeError
from ..host import pod_host

if TYPE_CHECKING:
    from torch import Tensor

MAX_RESOLUTION = 16384
_ANNOTATION = re.compile(r"^(?P<name>.*?)\s*\[(?P<type>input|output|temp)\]$")


def annotated_path(name: str) -> Path:
    """The file that LoadImage means by `sub/name.png` or `name.png [temp]`. Raises PathEscapeError."""
    found = _ANNOTATION.match(name)
    file_type = found["type"] if found else "input"
    return pod_host().folders.inside(file_type, "", found["name"] if found else name)


class EmptyImage:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "generate"
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 1, "max": MAX_RESOLUTION, "step": 1}
        return {
            "required": {
                "width": ("INT", side),
                "height": ("INT", side),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
                "color": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"}),
            }
        }

    def generate(self, width: int, height: int, batch_size: int = 1, color: int = 0) -> tuple[Tensor]:
        import torch

        channels = [(color >> shift & 0xFF) / 255 for shift in (16, 8, 0)]
        return (torch.tensor(channels, dtype=torch.float32).expand(batch_size, height, width, 3).clone(),)


class LoadImage:
    """Every frame of a picture file, turned upright; the mask is 1 where the picture is transparent."""

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        folder = pod_host().folders.directory("input")
        files = sorted(path.name for path in folder.iterdir() if path.is_file())
        return {"required": {"image": (files, {"image_upload": True})}}

    def load_image(self, image: str) -> tuple[Tensor, Tensor]:
        import torch

        pictures: list[Tensor] = []
        masks: list[Tensor] = []
        with Image.open(annotated_path(image)) as opened:
            for frame in ImageSequence.Iterator(opened):
                picture, mask = _picture_and_mask(ImageOps.exif_transpose(frame))
                if pictures and picture.shape != pictures[0].shape:
                    continue
                pictures.append(torch.from_numpy(picture))
                masks.append(torch.from_numpy(mask))
        return torch.stack(pictures), torch.stack(masks)

    @classmethod
    def IS_CHANGED(cls, image: str) -> str:
        return hashlib.sha256(annotated_path(image).read_bytes()).hexdigest()

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        try:
            known = annotated_path(image).is_file()
        except PathEscapeError:
            known = False
        return True if known else f"Invalid image file: {image}"


def _picture_and_mask(frame: Image.Image) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if frame.mode == "I":
        frame = frame.point(lambda value: value * (1 / 255))
    if frame.mode == "P" and "transparency" in frame.info:
        frame = frame.convert("RGBA")
    pixels = np.asarray(frame.convert("RGB"), dtype=np.float32) / 255
    if "A" in frame.getbands():
        return pixels, 1 - np.asarray(frame.getchannel("A"), dtype=np.float32) / 255
    # ComfyUI's stand-in where a picture has no transparency
    return pixels, np.zeros((64, 64), dtype=np.float32)


class ImageScale:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"
    METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 0, "max": MAX_RESOLUTION, "step": 1}
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(cls.METHODS),),
                "width": ("INT", side),
                "height": ("INT", side),
                "crop": (["disabled", "center"],),
            }
        }

    def upscale(self, image: Tensor, upscale_method: str, width: int, height: int, crop: str) -> tuple[Tensor]:
        """Scales to width x height; a side of 0 follows the other one's proportion, both 0 leave the picture."""
        if width == 0 and height == 0:
            return (image,)
        old_height, old_width = image.shape[1:3]
        width = width or max(1, round(old_width * height / old_height))
        height = height or max(1, round(old_height * width / old_width))
        if crop == "center":
            image = _cropped_to_ratio(image, width / height)
        return (_resized(image, upscale_method, width, height),)


def _cropped_to_ratio(image: Tensor, ratio: float) -> Tensor:
    height, width = image.shape[1:3]
    x = max(0, round((width - height * ratio) / 2))
    y = max(0, round((height - width / ratio) / 2))
    return image[:, y : height - y, x : width - x]


def _resized(image: Tensor, method: str, width: int, height: int) -> Tensor:
    import torch

    if method == "lanczos":
        pictures = [Image.fromarray(array) for array in to_bytes(image)]
        scaled = [np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS)) for picture in pictures]
        return torch.from_numpy(np.stack(scaled).astype(np.float32) / 255)
    planes = image.movedim(-1, 1)
    return torch.nn.functional.interpolate(planes, size=(height, width), mode=method).movedim(1, -1).contiguous()


def to_bytes(image: Tensor) -> np.ndarray[Any, Any]:
    """IMAGE as uint8 [N, H, W, 3]."""
    scaled = image.detach().cpu().float().numpy() * 255
    pixels: np.ndarray[Any, Any] = np.clip(scaled, 0, 255).astype(np.uint8)
    return pixels


class SaveImage:
    """Writes PNG files with the graph in them, named prefix_00001_.png and so on."""

    RETURN_TYPES = ()
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    CATEGORY = "image"
    DESCRIPTION = "Saves the input images to the pod's output directory."
    FILE_TYPE = "output"
    COMPRESSION = 4

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The images to save."}),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "tooltip": "The prefix for the file to save."}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save_images(
        self,
        images: Tensor,
        filename_prefix: str = "ComfyUI",
        prompt: dict[str, Any] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        subfolder, _, stem = filename_prefix.rpartition("/")
        folder = pod_host().folders.inside(self.FILE_TYPE, subfolder, "")
        folder.mkdir(parents=True, exist_ok=True)
        saved = []
        counter = _highest_number(folder, stem)
        for index, pixels in enumerate(to_bytes(images)):
            counter += 1
            name = f"{stem.replace('%batch_num%', str(index))}_{counter:05}_.png"
            picture = Image.fromarray(pixels)
            picture.save(folder / name, pnginfo=_chunks(prompt, extra_pnginfo), compress_level=self.COMPRESSION)
            saved.append({"filename": name, "subfolder": subfolder, "type": self.FILE_TYPE})
        return {"ui": {"images": saved}}


def _chunks(prompt: dict[str, Any] | None, extra: dict[str, Any] | None) -> PngInfo:
    chunks = PngInfo()
    if prompt is not None:
        chunks.add_text("prompt", json.dumps(prompt))
    for name, value in (extra or {}).items():
        chunks.add_text(name, json.dumps(value))
    return chunks


def _highest_number(folder: Path, stem: str) -> int:
    pattern = re.compile(re.escape(stem).replace("%batch_num%", r"\d+") + r"_(\d+)_\.png")
    numbers = [int(found[1]) for path in folder.iterdir() if (found := pattern.fullmatch(path.name))]
    return max(numbers, default=0)


class PreviewImage(SaveImage):
    """Like SaveImage, into the temp folder under a name of its own."""

    DESCRIPTION = "Shows the input images without keeping them."
    FILE_TYPE = "temp"
    COMPRESSION = 1

    def __init__(self) -> None:
        self._stem = "ComfyUI_temp_" + "".join(random.choices(string.ascii_lowercase, k=5))

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"images": ("IMAGE",)},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save_images(
        self,
        images: Tensor,
        filename_prefix: str = "",
        prompt: dict[str, Any] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        return super().save_images(images, filename_prefix or self._stem, prompt, extra_pnginfo)


NODES = {
    "EmptyImage": EmptyImage,
    "LoadImage": LoadImage,
    "ImageScale": ImageScale,
    "SaveImage": SaveImage,
    "PreviewImage": PreviewImage,
}
