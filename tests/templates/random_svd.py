"""A checkpoint of Stable Video Diffusion XT's shape and random weights: 4.5 GB, written as a stream.

Run with ComfyUI's interpreter in this repository's root, COMFYUI_DIR set:
``python -m tests.templates.random_svd FILE``.
Names and shapes are asked of ComfyUI's own modules, made without memory ("meta"), so that it knows the file as SVD.
"""
# ruff: noqa: T201 (a script that says what it wrote)

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.comfyui.random_checkpoint import write_tensors

UNET = {
    "in_channels": 8, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 1024, "adm_in_channels": 768,
    "num_classes": "sequential", "use_spatial_transformer": True, "use_linear_in_transformer": True,
    "num_heads": -1, "num_head_channels": 64, "image_size": 32, "legacy": False, "extra_ff_mix_layer": True,
    "use_spatial_context": True, "merge_strategy": "learned_with_images", "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1], "use_temporal_resblock": True, "use_temporal_attention": True,
    "disable_temporal_crossattention": False,
}  # fmt: skip
ENCODER = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip
DECODER = {**ENCODER, "video_kernel_size": [3, 1, 1], "alpha": 0.0}
VISION_WIDTH, VISION_LAYERS = 1280, 32

Shapes = dict[str, tuple[int, ...]]


def shapes() -> Shapes:
    """Name and shape of every tensor: U-Net, the image encoder as OpenCLIP names it, and the VAE with its time."""
    return {
        **_named("model.diffusion_model.", _unet()),
        **{f"conditioner.embedders.0.open_clip.model.visual.{name}": shape for name, shape in _vision()},
        **_named("first_stage_model.", _vae()),
    }


def _comfy(name: str) -> Any:
    return importlib.import_module(f"comfy.{name}")


def _unet() -> Any:
    ops = _comfy("ops").disable_weight_init
    return _comfy("ldm.modules.diffusionmodules.openaimodel").UNetModel(**UNET, device="meta", operations=ops)


def _vae() -> Any:
    import torch

    with torch.device("meta"):
        return _comfy("ldm.models.autoencoder").AutoencodingEngine(
            regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
            encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": ENCODER},
            decoder_config={"target": "comfy.ldm.modules.temporal_ae.VideoDecoder", "params": DECODER},
        )


def _named(prefix: str, module: Any) -> Shapes:
    return {prefix + name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _vision() -> Iterator[tuple[str, tuple[int, ...]]]:
    width = VISION_WIDTH
    yield "class_embedding", (width,)
    yield "positional_embedding", (257, width)
    yield "conv1.weight", (width, 3, 14, 14)
    yield "proj", (width, 1024)
    yield from _layer("ln_pre", width)
    yield from _layer("ln_post", width)
    for number in range(VISION_LAYERS):
        block = f"transformer.resblocks.{number}"
        yield from _layer(f"{block}.ln_1", width)
        yield from _layer(f"{block}.ln_2", width)
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from _layer(f"{block}.attn.out_proj", width, width)
        yield from _layer(f"{block}.mlp.c_fc", 4 * width, width)
        yield from _layer(f"{block}.mlp.c_proj", width, 4 * width)


def _layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def main(target: Path) -> None:
    """Write the file."""
    # At the end: ComfyUI has a folder ``tests`` of its own.
    sys.path.append(os.environ["COMFYUI_DIR"])
    importlib.import_module("comfy.cli_args").args.cpu = True
    found = shapes()
    write_tensors(iter(found.items()), "fp16", target)
    print(f"{len(found)} tensors, {target.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
