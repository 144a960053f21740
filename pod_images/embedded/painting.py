"""The sketch base's model work in ComfyUI's value shapes: CONDITIONING lists, LATENT dicts, IMAGE tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from PIL import Image

from . import prompting
from .models import Clip, Model, Vae

if TYPE_CHECKING:
    from torch import Tensor

# [[hidden [1, 77, C], {"pooled_output": [1, D]}], ...]; this pod reads the first entry.
Conditioning = list[list[Any]]
# {"samples": [N, C, H / 8, W / 8]}
Latent = dict[str, Any]
# (steps done, steps in all, the latents as the model sees the finished picture); raises to stop
StepCallback = Callable[[int, int, "Tensor"], None]

EMPTY_CHANNELS = 4
LATENT_SCALE = 8
_FIT_SAMPLES = 4
_FIT_SIDE = 8

_rgb_maps: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()


def encode_text(clip: Clip, text: str) -> Conditioning:
    """A prompt as ComfyUI reads it: weights in parentheses, and 77 tokens more for every chunk of a long one."""
    hidden, pooled = prompting.encode(clip.modules, text)
    return [[hidden, {"pooled_output": pooled}]]


def blend(first: Conditioning, second: Conditioning, weight: float) -> Conditioning:
    """`first` at weight 0, `second` at weight 1; as long as `second`: `first` is cut or filled with zeros."""
    from torch.nn.functional import pad

    whole = second[0][0]
    start = pad(first[0][0][:, : whole.shape[1]], (0, 0, 0, max(0, whole.shape[1] - first[0][0].shape[1])))
    hidden = start * (1 - weight) + whole * weight
    pooled = first[0][1]["pooled_output"] * (1 - weight) + second[0][1]["pooled_output"] * weight
    return [[hidden, {**first[0][1], "pooled_output": pooled}]]


def blank(width: int, height: int, count: int) -> Tensor:
    """A latent of zeros with ComfyUI's 4 channels; sampling widens it to what the model has."""
    import torch

    return torch.zeros(count, EMPTY_CHANNELS, height // LATENT_SCALE, width // LATENT_SCALE)


def sample(
    model: Model,
    seed: int,
    steps: int,
    cfg: float,
    positive: Conditioning,
    negative: Conditioning,
    latent: Latent,
    denoise: float,
    callback: StepCallback | None = None,
) -> Latent:
    """Euler over the normal schedule; the same arguments give the same latents on the same machine."""
    from comfy_nodes.sketch import sampling

    unet: Any = model.modules.unet  # diffusers gives `config` at run time only
    start = _with_channels(latent["samples"], unet.config.in_channels)
    # torch's generators take signed 64 bits; ComfyUI's seeds are unsigned
    signed = seed - (1 << 64) if seed >= 1 << 63 else seed
    painted = sampling.sample(
        model.modules, _read(positive), _read(negative), start, signed, steps, cfg, denoise, callback
    )
    return {**latent, "samples": painted}


def _read(conditioning: Conditioning) -> Any:
    from comfy_nodes.sketch import sampling

    hidden, extra = conditioning[0]
    return sampling.Conditioning(hidden, extra["pooled_output"])


def _with_channels(samples: Tensor, channels: int) -> Tensor:
    if samples.shape[1] == channels:
        return samples
    if samples.count_nonzero():
        raise ValueError(f"this latent has {samples.shape[1]} channels, the model wants {channels}")
    return samples[:, :1].repeat(1, channels, 1, 1)


def decode(vae: Vae, latent: Latent) -> Tensor:
    """IMAGE float32 [N, H, W, 3] in 0..1."""
    from comfy_nodes.sketch import sampling

    return sampling.decode(vae.modules, latent["samples"])


def encode(vae: Vae, pixels: Tensor) -> Latent:
    from comfy_nodes.sketch import sampling

    return {"samples": sampling.encode(vae.modules, pixels)}


def rough_preview(model: Model, samples: Tensor) -> Image.Image:
    """The first picture of a batch, one flat block per latent cell: good enough to see where a picture is going."""
    vae = model.modules.vae
    if vae not in _rgb_maps:
        _rgb_maps[vae] = _fit_rgb(vae)
    cells = samples[0].float()
    channels = cells.shape[0]
    matrix = _rgb_maps[vae]
    colours = cells.reshape(channels, -1).T @ matrix[:channels] + matrix[channels]
    pixels = (colours.clamp(0, 1) * 255).byte().reshape(*cells.shape[1:], 3).cpu().numpy()
    small = Image.fromarray(pixels)
    size = (small.width * LATENT_SCALE, small.height * LATENT_SCALE)
    return small.resize(size, Image.Resampling.BILINEAR)


def _fit_rgb(vae: Any) -> Tensor:
    """[channels + 1, 3]: the linear map (last row: offset) from a latent cell to its colour, from random latents."""
    import torch

    channels = vae.config.latent_channels
    latents = torch.randn(_FIT_SAMPLES, channels, _FIT_SIDE, _FIT_SIDE, generator=torch.Generator().manual_seed(0))
    pixels = (vae.decode(latents, return_dict=False)[0] + 1) / 2
    colours = torch.nn.functional.avg_pool2d(pixels, LATENT_SCALE).permute(0, 2, 3, 1).reshape(-1, 3)
    cells = latents.permute(0, 2, 3, 1).reshape(-1, channels)
    ones = torch.ones(cells.shape[0], 1)
    fitted: Tensor = torch.linalg.lstsq(torch.cat([cells, ones], 1), colours).solution
    return fitted
