"""Nodes that work on prompts and latents: encode, sample, decode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import painting
from ..host import pod_host
from ..models import Clip, Model, Vae

if TYPE_CHECKING:
    from torch import Tensor

MAX_RESOLUTION = 16384


class CLIPTextEncode:
    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "conditioning"
    DESCRIPTION = "Encodes a text prompt for the model."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {"multiline": True, "dynamicPrompts": True}), "clip": ("CLIP",)}}

    def encode(self, clip: Clip, text: str) -> tuple[painting.Conditioning]:
        return (painting.encode_text(clip, text),)


class EmptyLatentImage:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "generate"
    CATEGORY = "latent"
    DESCRIPTION = "A blank latent to paint on."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 16, "max": MAX_RESOLUTION, "step": 8}
        return {
            "required": {
                "width": ("INT", side),
                "height": ("INT", side),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def generate(self, width: int, height: int, batch_size: int = 1) -> tuple[painting.Latent]:
        return ({"samples": painting.blank(width, height, batch_size)},)


class KSampler:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"
    CATEGORY = "sampling"
    DESCRIPTION = "Removes noise from a latent, guided by the prompts."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}),
                "sampler_name": (["euler"],),
                "scheduler": (["normal"],),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def sample(
        self,
        model: Model,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: painting.Conditioning,
        negative: painting.Conditioning,
        latent_image: painting.Latent,
        denoise: float = 1.0,
    ) -> tuple[painting.Latent]:
        host = pod_host()

        def told(done: int, total: int, samples: Tensor) -> None:
            preview = painting.rough_preview(model, samples) if host.watched() else None
            host.progress(done, total, preview)

        return (painting.sample(model, seed, steps, cfg, positive, negative, latent_image, denoise, told),)


class VAEDecode:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "decode"
    CATEGORY = "latent"
    DESCRIPTION = "Turns a latent into pictures."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",), "vae": ("VAE",)}}

    def decode(self, vae: Vae, samples: painting.Latent) -> tuple[Tensor]:
        return (painting.decode(vae, samples),)


class VAEEncode:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"
    CATEGORY = "latent"
    DESCRIPTION = "Turns pictures into a latent; sides are cut to multiples of 8."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",)}}

    def encode(self, vae: Vae, pixels: Tensor) -> tuple[painting.Latent]:
        return (painting.encode(vae, pixels),)


class RepeatLatentBatch:
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "repeat"
    CATEGORY = "latent/batch"
    DESCRIPTION = "Repeats a latent batch."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",), "amount": ("INT", {"default": 1, "min": 1, "max": 64})}}

    def repeat(self, samples: painting.Latent, amount: int) -> tuple[painting.Latent]:
        return ({**samples, "samples": samples["samples"].repeat((amount, 1, 1, 1))},)


NODES = {
    "CLIPTextEncode": CLIPTextEncode,
    "EmptyLatentImage": EmptyLatentImage,
    "KSampler": KSampler,
    "VAEDecode": VAEDecode,
    "VAEEncode": VAEEncode,
    "RepeatLatentBatch": RepeatLatentBatch,
}
