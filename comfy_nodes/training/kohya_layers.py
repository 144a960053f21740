"""kohya's names for the layers of SDXL and SD1.5, computed from the tensor names of a checkpoint file's header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..lora_file import LoraFileError, read_header
from .failure import TrainerError

_UNET = "model.diffusion_model."
_SD15_TEXT = "cond_stage_model.transformer."
_SDXL_TEXT_1 = "conditioner.embedders.0.transformer."
_SDXL_TEXT_2 = "conditioner.embedders.1.model."
# open_clip's names of the second text encoder, and those of transformers, which kohya uses.
_OPEN_CLIP = {"attn.out_proj": "self_attn_out_proj", "mlp.c_fc": "mlp_fc1", "mlp.c_proj": "mlp_fc2"}
_RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)$")
# A LoRA may change the layers of transformers only: blocks x.1 and, in text encoders, attention and MLP.
_UNET_BLOCK = re.compile(
    r"(?:(input|output)_blocks\.(\d+)|middle_block)\.1\.(proj_in|proj_out|transformer_blocks\..+)$"
)
_TEXT_LAYER = re.compile(r"text_model\.encoder\.layers\.\d+\.(?:self_attn|mlp)\.\w+$")


def layer_names(checkpoint: Path) -> frozenset[str]:
    """Every layer of transformers in U-Net and text encoders. Raises TrainerError `bad_checkpoint`."""
    try:
        tensors = read_header(checkpoint).tensors
    except LoraFileError as error:
        raise TrainerError("bad_checkpoint", f"the base cannot be read: {error}") from error
    is_sdxl = any(name.startswith(_SDXL_TEXT_2) for name in tensors)
    found: set[str] = set()
    for name, entry in tensors.items():
        if len(entry.shape) >= 2:
            found.update(_kohya_names(name.removesuffix(".weight"), is_sdxl))
    if not found:
        raise TrainerError("bad_checkpoint", f"{checkpoint.name} is no checkpoint of SDXL or SD1.5")
    return frozenset(found)


def _kohya_names(name: str, is_sdxl: bool) -> Iterator[str]:
    if name.startswith(_UNET) and (block := _UNET_BLOCK.match(name.removeprefix(_UNET))):
        path = name.removeprefix(_UNET) if is_sdxl else _diffusers_path(block)
        yield "lora_unet_" + path.replace(".", "_")
    for prefix, kohya in ((_SD15_TEXT, "lora_te_"), (_SDXL_TEXT_1, "lora_te1_")):
        if name.startswith(prefix) and _TEXT_LAYER.match(name.removeprefix(prefix)):
            yield kohya + name.removeprefix(prefix).replace(".", "_")
    if name.startswith(_SDXL_TEXT_2) and (layer := _RESBLOCK.match(name.removeprefix(_SDXL_TEXT_2))):
        for part in _second_encoder_parts(layer[2]):
            yield f"lora_te2_text_model_encoder_layers_{layer[1]}_{part}"


def _second_encoder_parts(path: str) -> tuple[str, ...]:
    if path == "attn.in_proj_weight":
        return ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj")
    return (_OPEN_CLIP[path],) if path in _OPEN_CLIP else ()


def _diffusers_path(block: re.Match[str]) -> str:
    """SD1.5's blocks are numbered as diffusers does: three input blocks for each level, the first being the input."""
    side, number, rest = block[1], block[2], block[3]
    if side is None:
        return f"mid_block.attentions.0.{rest}"
    if side == "input":
        level, place = divmod(int(number) - 1, 3)
        return f"down_blocks.{level}.attentions.{place}.{rest}"
    level, place = divmod(int(number), 3)
    return f"up_blocks.{level}.attentions.{place}.{rest}"
