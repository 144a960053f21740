"""Full-size checkpoints of random weights, written as a stream: SD1.5 and SDXL in shape, and nothing more.

    python random_checkpoint.py sd15|sdxl fp16|bf16 FILE

Needs numpy only and about 200 MB of memory, whatever the size of the file (SD1.5 2.1 GB, SDXL 6.9 GB).
"""
# ruff: noqa: T201 (a script that says what it wrote)

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Tensors = Iterator[tuple[str, tuple[int, ...]]]
_POOL = 1 << 23  # random numbers drawn once; every tensor takes them from another place
_DTYPES = {"fp16": "F16", "bf16": "BF16"}


@dataclass(frozen=True)
class Unet:
    """A latent diffusion U-Net: channel multiples, transformer blocks by level and in the middle, context width."""

    multiples: tuple[int, ...]
    depths: tuple[int, ...]
    middle_depth: int
    context: int
    linear_projections: bool
    vector: int  # width of the size conditioning, 0 = none
    channels: int = 320


UNETS = {
    "sd15": Unet((1, 2, 4, 4), (1, 1, 1, 0), 1, 768, linear_projections=False, vector=0),
    "sdxl": Unet((1, 2, 4), (0, 2, 10), 10, 2048, linear_projections=True, vector=2816),
}


def tensors(architecture: str) -> Tensors:
    """Name and shape of every tensor of a checkpoint file, in no particular order."""
    yield from _prefixed("model.diffusion_model.", _unet(UNETS[architecture]))
    yield from _prefixed("first_stage_model.", _vae())
    if architecture == "sd15":
        yield from _prefixed("cond_stage_model.transformer.text_model.", _clip_l())
    else:
        yield from _prefixed("conditioner.embedders.0.transformer.text_model.", _clip_l())
        yield from _prefixed("conditioner.embedders.1.model.", _clip_g())


def write(architecture: str, precision: str, path: Path, values: bool = True) -> None:
    """Write the file; without `values` only its header, the rest being a hole of the right size."""
    write_tensors(tensors(architecture), precision, path, values)


def write_tensors(named: Tensors, precision: str, path: Path, values: bool = True) -> None:
    """Write a file of any tensors by name and shape, as `write` does for the two architectures that it knows."""
    entries = list(named)
    header: dict[str, object] = {}
    position = 0
    for name, shape in entries:
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": _DTYPES[precision], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if not values:
            file.truncate(8 + len(text) + position)
            return
        draw = np.random.default_rng(0)
        pool = draw.standard_normal(_POOL, dtype=np.float32)
        for name, shape in entries:
            for block in _blocks(pool, int(draw.integers(_POOL)), math.prod(shape)):
                file.write(_encoded(block * _scale(name, shape) + _mean(name, shape), precision))


def _blocks(pool: np.ndarray, start: int, count: int) -> Iterator[np.ndarray]:
    while count:
        block = pool[start : start + count]
        yield block
        count, start = count - len(block), 0


def _encoded(block: np.ndarray, precision: str) -> bytes:
    if precision == "fp16":
        return block.astype(np.float16).tobytes()
    return (block.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()


def _scale(name: str, shape: tuple[int, ...]) -> float:
    if len(shape) < 2:
        return 0.0
    if "embedding" in name:
        return 0.02
    return 1 / math.sqrt(math.prod(shape[1:]))


def _mean(name: str, shape: tuple[int, ...]) -> float:
    if name.endswith("logit_scale"):
        return 4.6
    return 1.0 if len(shape) == 1 and name.endswith(".weight") else 0.0


def _prefixed(prefix: str, entries: Tensors) -> Tensors:
    return ((prefix + name, shape) for name, shape in entries)


def _layer(name: str, *shape: int) -> Tensors:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _unet(unet: Unet) -> Tensors:
    base, wide = unet.channels, 4 * unet.channels
    yield from _layer("time_embed.0", wide, base)
    yield from _layer("time_embed.2", wide, wide)
    if unet.vector:
        yield from _layer("label_emb.0.0", wide, unet.vector)
        yield from _layer("label_emb.0.2", wide, wide)
    yield from _layer("input_blocks.0.0", base, 4, 3, 3)
    number, width, skips = 0, base, [base]
    for level, multiple in enumerate(unet.multiples):
        for _ in range(2):
            number += 1
            yield from _residual(f"input_blocks.{number}.0", width, multiple * base, wide)
            width = multiple * base
            yield from _attention(f"input_blocks.{number}.1", width, unet.depths[level], unet)
            skips.append(width)
        if level + 1 < len(unet.multiples):
            number += 1
            yield from _layer(f"input_blocks.{number}.0.op", width, width, 3, 3)
            skips.append(width)
    yield from _residual("middle_block.0", width, width, wide)
    yield from _attention("middle_block.1", width, unet.middle_depth, unet)
    yield from _residual("middle_block.2", width, width, wide)
    yield from _unet_outputs(unet, width, skips)
    yield from _layer("out.0", base)
    yield from _layer("out.2", 4, base, 3, 3)


def _unet_outputs(unet: Unet, width: int, skips: list[int]) -> Tensors:
    number = 0
    for level, multiple in reversed(list(enumerate(unet.multiples))):
        for position in range(3):
            yield from _residual(
                f"output_blocks.{number}.0", width + skips.pop(), multiple * unet.channels, 4 * unet.channels
            )
            width = multiple * unet.channels
            yield from _attention(f"output_blocks.{number}.1", width, unet.depths[level], unet)
            if level and position == 2:
                place = 2 if unet.depths[level] else 1
                yield from _layer(f"output_blocks.{number}.{place}.conv", width, width, 3, 3)
            number += 1


def _residual(name: str, width: int, out: int, embedding: int) -> Tensors:
    yield from _layer(f"{name}.in_layers.0", width)
    yield from _layer(f"{name}.in_layers.2", out, width, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", out, embedding)
    yield from _layer(f"{name}.out_layers.0", out)
    yield from _layer(f"{name}.out_layers.3", out, out, 3, 3)
    if width != out:
        yield from _layer(f"{name}.skip_connection", out, width, 1, 1)


def _attention(name: str, width: int, depth: int, unet: Unet) -> Tensors:
    if not depth:
        return
    pixel = () if unet.linear_projections else (1, 1)
    yield from _layer(f"{name}.norm", width)
    yield from _layer(f"{name}.proj_in", width, width, *pixel)
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for attention, context in (("attn1", width), ("attn2", unet.context)):
            yield f"{block}.{attention}.to_q.weight", (width, width)
            yield f"{block}.{attention}.to_k.weight", (width, context)
            yield f"{block}.{attention}.to_v.weight", (width, context)
            yield from _layer(f"{block}.{attention}.to_out.0", width, width)
        yield from _layer(f"{block}.ff.net.0.proj", 8 * width, width)
        yield from _layer(f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _layer(f"{block}.{norm}", width)
    yield from _layer(f"{name}.proj_out", width, width, *pixel)


def _vae() -> Tensors:
    widths = (128, 256, 512, 512)
    yield from _layer("encoder.conv_in", 128, 3, 3, 3)
    width = 128
    for level, out in enumerate(widths):
        for block in range(2):
            yield from _vae_residual(f"encoder.down.{level}.block.{block}", width, out)
            width = out
        if level < 3:
            yield from _layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    yield from _vae_middle("encoder", width)
    yield from _layer("encoder.norm_out", width)
    yield from _layer("encoder.conv_out", 8, width, 3, 3)
    yield from _layer("decoder.conv_in", width, 4, 3, 3)
    yield from _vae_middle("decoder", width)
    for level, out in reversed(list(enumerate(widths))):
        for block in range(3):
            yield from _vae_residual(f"decoder.up.{level}.block.{block}", width, out)
            width = out
        if level:
            yield from _layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    yield from _layer("decoder.norm_out", width)
    yield from _layer("decoder.conv_out", 3, width, 3, 3)
    yield from _layer("quant_conv", 8, 8, 1, 1)
    yield from _layer("post_quant_conv", 4, 4, 1, 1)


def _vae_middle(part: str, width: int) -> Tensors:
    yield from _vae_residual(f"{part}.mid.block_1", width, width)
    yield from _layer(f"{part}.mid.attn_1.norm", width)
    for name in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{part}.mid.attn_1.{name}", width, width, 1, 1)
    yield from _vae_residual(f"{part}.mid.block_2", width, width)


def _vae_residual(name: str, width: int, out: int) -> Tensors:
    yield from _layer(f"{name}.norm1", width)
    yield from _layer(f"{name}.conv1", out, width, 3, 3)
    yield from _layer(f"{name}.norm2", out)
    yield from _layer(f"{name}.conv2", out, out, 3, 3)
    if width != out:
        yield from _layer(f"{name}.nin_shortcut", out, width, 1, 1)


def _clip_l() -> Tensors:
    yield "embeddings.token_embedding.weight", (49408, 768)
    yield "embeddings.position_embedding.weight", (77, 768)
    for number in range(12):
        layer = f"encoder.layers.{number}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _layer(f"{layer}.self_attn.{name}", 768, 768)
        yield from _layer(f"{layer}.mlp.fc1", 3072, 768)
        yield from _layer(f"{layer}.mlp.fc2", 768, 3072)
        yield from _layer(f"{layer}.layer_norm1", 768)
        yield from _layer(f"{layer}.layer_norm2", 768)
    yield from _layer("final_layer_norm", 768)


def _clip_g() -> Tensors:
    yield "token_embedding.weight", (49408, 1280)
    yield "positional_embedding", (77, 1280)
    yield "text_projection", (1280, 1280)
    yield "logit_scale", ()
    for number in range(32):
        layer = f"transformer.resblocks.{number}"
        yield f"{layer}.attn.in_proj_weight", (3840, 1280)
        yield f"{layer}.attn.in_proj_bias", (3840,)
        yield from _layer(f"{layer}.attn.out_proj", 1280, 1280)
        yield from _layer(f"{layer}.mlp.c_fc", 5120, 1280)
        yield from _layer(f"{layer}.mlp.c_proj", 1280, 5120)
        yield from _layer(f"{layer}.ln_1", 1280)
        yield from _layer(f"{layer}.ln_2", 1280)
    yield from _layer("ln_final", 1280)


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    print(f"{sys.argv[3]}: {Path(sys.argv[3]).stat().st_size:,} bytes")
