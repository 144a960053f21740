"""LoRA files of random weights with kohya's names: SDXL's 722 U-Net layers, SD1.5's 264, or any layers by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.comfyui.random_checkpoint import tensors

Layers = Mapping[str, tuple[int, int]]
"""Outputs and inputs of linear layers by kohya's name."""
RANK = 8
_UNET = "model.diffusion_model."


def sdxl_layers() -> dict[str, tuple[int, int]]:
    """Every linear layer of SDXL's transformers, as ``networks.lora`` names them there: by the file's own names."""
    found = {}
    for name, shape in tensors("sdxl"):
        path = name.removeprefix(_UNET).removesuffix(".weight")
        inside = ".transformer_blocks." in path or path.endswith((".proj_in", ".proj_out"))
        if name.startswith(_UNET) and name.endswith(".weight") and inside and len(shape) == 2:
            found["lora_unet_" + path.replace(".", "_")] = (shape[0], shape[1])
    return found


def sd15_layers() -> dict[str, tuple[int, int]]:
    """SD1.5's U-Net by the names of diffusers, which kohya uses for it, and its one text encoder."""
    found: dict[str, tuple[int, int]] = {}
    for place, width in _sd15_attentions():
        found |= {f"lora_unet_{place}_{end}": (width, width) for end in ("proj_in", "proj_out")}
        block = f"lora_unet_{place}_transformer_blocks_0"
        for attention, context in (("attn1", width), ("attn2", 768)):
            found |= {f"{block}_{attention}_{end}": (width, width) for end in ("to_q", "to_out_0")}
            found |= {f"{block}_{attention}_{end}": (width, context) for end in ("to_k", "to_v")}
        found |= {f"{block}_ff_net_0_proj": (8 * width, width), f"{block}_ff_net_2": (width, 4 * width)}
    for number in range(12):
        layer = f"lora_te_text_model_encoder_layers_{number}"
        found |= {f"{layer}_self_attn_{end}": (768, 768) for end in ("k_proj", "q_proj", "v_proj", "out_proj")}
        found |= {f"{layer}_mlp_fc1": (3072, 768), f"{layer}_mlp_fc2": (768, 3072)}
    return found


def write_lora(layers: Layers, path: Path, base: str, size: float = 0.5) -> None:
    """Write the file; ``size`` is about how large its change of a weight is beside the weight itself."""
    draw = torch.Generator().manual_seed(3)
    content: dict[str, torch.Tensor] = {}
    for name, (outputs, inputs) in layers.items():
        # A layer's weights are about 1/sqrt(inputs); rank 8 adds the squares of eight products.
        down = torch.randn(RANK, inputs, generator=draw) * (size / (RANK * inputs)) ** 0.5
        up = torch.randn(outputs, RANK, generator=draw)
        content[f"{name}.lora_down.weight"], content[f"{name}.lora_up.weight"] = down.half(), up.half()
        content[f"{name}.alpha"] = torch.tensor(float(RANK)).half()
    save_file(content, path, {"ss_base_model_version": base, "modelspec.trigger_phrase": "mirax woman"})


def _sd15_attentions() -> Iterator[tuple[str, int]]:
    for level, width in enumerate((320, 640, 1280)):
        yield from ((f"down_blocks_{level}_attentions_{number}", width) for number in range(2))
    yield "mid_block_attentions_0", 1280
    for level, width in enumerate((1280, 640, 320), start=1):
        yield from ((f"up_blocks_{level}_attentions_{number}", width) for number in range(3))
