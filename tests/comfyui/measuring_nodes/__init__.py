"""A node that writes down what ComfyUI's own modules answer to fixed inputs, for the comparison with diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TIMES = (999, 500, 10)
SIDES = ((128, 128), (131, 135))
LATENT_SCALE = 0.13025


def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The same numbers in both processes: uniform 0..1."""
    return torch.rand(shape, generator=torch.Generator("cpu").manual_seed(seed))


class MeasureSketch:
    """Writes `file` (safetensors) and answers how other models are recognised."""

    RETURN_TYPES = ()
    FUNCTION = "measure"
    OUTPUT_NODE = True
    CATEGORY = "Measuring"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"model": ("MODEL",), "clip": ("CLIP",), "vae": ("VAE",)}
            | {"texts": ("STRING", {"default": "[]"}), "file": ("STRING", {"default": ""})}
        }

    def measure(self, model: Any, clip: Any, vae: Any, texts: str, file: str) -> dict[str, Any]:
        tensors: dict[str, torch.Tensor] = {}
        for number, text in enumerate(json.loads(texts)):
            tokens = clip.tokenize(text)
            hidden, extra = clip.encode_from_tokens_scheduled(tokens)[0]
            tensors[f"tokens_1.{number}"] = torch.tensor([[entry[0] for entry in row] for row in tokens["l"]])
            tensors[f"tokens_2.{number}"] = torch.tensor([[entry[0] for entry in row] for row in tokens["g"]])
            tensors[f"hidden.{number}"], tensors[f"pooled.{number}"] = hidden, extra["pooled_output"]
        tensors |= _unet(model, tensors["hidden.0"], tensors["pooled.0"]) | _vae(vae)
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, Path(file))
        return {"ui": {"recognised": [_recognised(model)]}}


def _unet(model: Any, hidden: torch.Tensor, pooled: torch.Tensor) -> dict[str, torch.Tensor]:
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    added = model.model.encode_adm(pooled_output=pooled, width=128, height=128, device="cpu")
    answers = {}
    for time in TIMES:
        step = torch.tensor([float(time)])
        answers[f"unet.{time}"] = model.model.diffusion_model(noise((1, 16, 16, 16), time), step, hidden, y=added)
    return answers


def _vae(vae: Any) -> dict[str, torch.Tensor]:
    answers = {"decoded": vae.decode((noise((1, 16, 16, 16), 1) * 4 - 2) / LATENT_SCALE)}
    for height, width in SIDES:
        answers[f"encoded.{height}"] = vae.encode(noise((1, height, width, 3), 2)) * LATENT_SCALE
    return answers


def _recognised(model: Any) -> dict[str, Any]:
    """How ComfyUI sees this checkpoint, how many of its own models ours would take, and what it makes of SDXL's."""
    import comfy.model_detection
    import comfy.supported_models

    models = comfy.supported_models.models
    ours = next(known for known in models if known.__name__ == "TroupeSketch")
    others = [known for known in models if known is not ours]
    sdxl = dict(comfy.supported_models.SDXL.unet_config, in_channels=4)
    return {
        "this": type(model.model.model_config).__name__,
        "registered": sum(known.__name__ == "TroupeSketch" for known in models),
        "taken_from_others": [known.__name__ for known in others if ours.matches(known.unet_config)],
        "sdxl": type(comfy.model_detection.model_config_from_unet_config(sdxl, {})).__name__,
        "latent_channels": model.model.latent_format.latent_channels,
        "preview_rows": len(model.model.latent_format.latent_rgb_factors),
        "prediction": model.model.model_type.name,
    }


NODE_CLASS_MAPPINGS = {"MeasureSketch": MeasureSketch}
