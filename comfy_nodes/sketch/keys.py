"""The one key table: the sketch checkpoint (SDXL's single-file layout) <-> the diffusers/transformers modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .architecture import SketchArchitecture, SketchModules

UNET, TEXT_1, TEXT_2, VAE = "unet", "text_encoder_1", "text_encoder_2", "vae"
PARTS = (UNET, TEXT_1, TEXT_2, VAE)

_UNET_ROOT = "model.diffusion_model."
_TEXT_1_ROOT = "conditioner.embedders.0.transformer.text_model."
_TEXT_2_ROOT = "conditioner.embedders.1.model."
_VAE_ROOT = "first_stage_model."
WEIGHT_BIAS = ("weight", "bias")

# Tensors that no module holds: ComfyUI reads the latent scale from the VAE and the prediction type from bare keys.
VAE_SCALE, VAE_SHIFT = f"{_VAE_ROOT}vae_scale", f"{_VAE_ROOT}vae_shift"
V_PREDICTION, ZERO_TERMINAL_SNR = "v_pred", "ztsnr"
CONSTANT_KEYS = (VAE_SCALE, VAE_SHIFT, V_PREDICTION, ZERO_TERMINAL_SNR)


@dataclass(frozen=True)
class Entry:
    """One tensor of the checkpoint and the module tensors it holds.

    rule: `same` (one module tensor), `transposed` (one, with its two axes swapped), `stacked` (several, one above
    the other along the first axis, in the order of `names`).
    """

    key: str
    part: str
    names: tuple[str, ...]
    rule: str = "same"


@dataclass(frozen=True)
class Layout:
    """The sizes that decide which keys exist; nothing in it is a channel count."""

    levels: int
    layers_per_block: int
    depths: tuple[int, ...]  # transformer blocks per attention on each level from the top, 0 = no attention there
    middle_depth: int
    widening: tuple[str, ...]  # U-Net resnets whose input and output widths differ
    text_layers: tuple[int, int]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    text_prefix: str = ""  # "text_model." where transformers' CLIPTextModel still nests itself


def layout_of(modules: SketchModules) -> Layout:
    """Read the layout from the configuration of built modules."""
    unet = modules.unet.config
    count = len(unet.block_out_channels)
    given = unet.transformer_layers_per_block
    per_level = (given,) * count if isinstance(given, int) else tuple(given)
    depths = tuple(d if "CrossAttn" in kind else 0 for d, kind in zip(per_level, unet.down_block_types, strict=True))
    resnets = [name for name, _ in modules.unet.named_modules() if name.endswith(".conv_shortcut")]
    first = next(iter(modules.text_encoder_1.state_dict()))
    return Layout(
        levels=count,
        layers_per_block=int(unet.layers_per_block),
        depths=depths,
        middle_depth=per_level[-1],
        widening=tuple(name.removesuffix(".conv_shortcut") for name in resnets),
        text_layers=(
            int(modules.text_encoder_1.config.num_hidden_layers),
            int(modules.text_encoder_2.config.num_hidden_layers),
        ),
        encoder_blocks=tuple(modules.vae.config.num_encoder_blocks),
        decoder_blocks=tuple(modules.vae.config.num_decoder_blocks),
        text_prefix="text_model." if first.startswith("text_model.") else "",
    )


def layout_for(architecture: SketchArchitecture) -> Layout:
    """The layout that modules of these sizes will have, without building any: diffusers may be absent here."""
    channels = architecture.unet_channels
    levels = range(len(channels))
    # The way up joins what the way down left, so each of its resnets takes in more than it gives out.
    narrowing = [
        f"up_blocks.{level}.resnets.{layer}" for level in levels for layer in range(architecture.unet_layers + 1)
    ]
    widening = [f"down_blocks.{level}.resnets.0" for level in levels[1:] if channels[level] != channels[level - 1]]
    return Layout(
        levels=len(channels),
        layers_per_block=architecture.unet_layers,
        depths=architecture.unet_transformers,
        middle_depth=max(1, architecture.unet_transformers[-1]),
        widening=(*widening, *narrowing),
        text_layers=(architecture.text_1.layers, architecture.text_2.layers),
        encoder_blocks=architecture.vae_encoder_blocks,
        decoder_blocks=architecture.vae_decoder_blocks,
    )


def key_table(layout: Layout) -> tuple[Entry, ...]:
    """Every checkpoint tensor that belongs to a module, in a fixed order."""
    return (
        *(_entry(UNET, _UNET_ROOT + old, new) for old, new in _unet_names(layout)),
        *_text_1_entries(layout),
        *_text_2_entries(layout),
        *(_entry(VAE, _VAE_ROOT + old, new) for old, new in _vae_names(layout)),
    )


def to_checkpoint(layout: Layout, states: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Module states (by part) as checkpoint tensors. A module tensor the table does not know is a ValueError."""
    import torch

    tensors: dict[str, torch.Tensor] = {}
    used: set[tuple[str, str]] = set()
    for entry in key_table(layout):
        pieces = [states[entry.part][name] for name in entry.names]
        used.update((entry.part, name) for name in entry.names)
        tensors[entry.key] = torch.cat(pieces) if entry.rule == "stacked" else _turned(pieces[0], entry.rule)
    left = [f"{part}.{name}" for part in PARTS for name in states[part] if (part, name) not in used]
    if left:
        raise ValueError(f"the key table does not know {len(left)} module tensors: {left[:5]}")
    return tensors


def from_checkpoint(layout: Layout, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Checkpoint tensors as module states by part. Missing or unknown checkpoint keys are a ValueError."""
    table = key_table(layout)
    known = {entry.key for entry in table} | set(CONSTANT_KEYS)
    missing = sorted({entry.key for entry in table} - set(tensors))
    alien = sorted(set(tensors) - known)
    if missing or alien:
        raise ValueError(f"not a sketch checkpoint of this architecture: missing {missing[:5]}, unknown {alien[:5]}")
    states: dict[str, dict[str, torch.Tensor]] = {part: {} for part in PARTS}
    for entry in table:
        tensor = tensors[entry.key]
        pieces = tensor.chunk(len(entry.names)) if entry.rule == "stacked" else (_turned(tensor, entry.rule),)
        states[entry.part].update(zip(entry.names, pieces, strict=True))
    return states


def _turned(tensor: torch.Tensor, rule: str) -> Any:
    return tensor.t().contiguous() if rule == "transposed" else tensor


def _entry(part: str, key: str, name: str) -> Entry:
    return Entry(key, part, (name,))


def _with(old: str, new: str, endings: Iterable[str] = WEIGHT_BIAS) -> Iterator[tuple[str, str]]:
    return ((f"{old}.{ending}", f"{new}.{ending}") for ending in endings)


# --- U-Net ---------------------------------------------------------------------------------------------------------


def _unet_names(layout: Layout) -> Iterator[tuple[str, str]]:
    yield from _with("time_embed.0", "time_embedding.linear_1")
    yield from _with("time_embed.2", "time_embedding.linear_2")
    yield from _with("label_emb.0.0", "add_embedding.linear_1")
    yield from _with("label_emb.0.2", "add_embedding.linear_2")
    yield from _with("input_blocks.0.0", "conv_in")
    yield from _down_names(layout)
    yield from _resnet(layout, "middle_block.0", "mid_block.resnets.0")
    yield from _attention("middle_block.1", "mid_block.attentions.0", layout.middle_depth)
    yield from _resnet(layout, "middle_block.2", "mid_block.resnets.1")
    yield from _up_names(layout)
    yield from _with("out.0", "conv_norm_out")
    yield from _with("out.2", "conv_out")


def _down_names(layout: Layout) -> Iterator[tuple[str, str]]:
    step = layout.layers_per_block + 1
    for level, depth in enumerate(layout.depths):
        for layer in range(layout.layers_per_block):
            old, new = f"input_blocks.{1 + level * step + layer}", f"down_blocks.{level}"
            yield from _resnet(layout, f"{old}.0", f"{new}.resnets.{layer}")
            if depth:
                yield from _attention(f"{old}.1", f"{new}.attentions.{layer}", depth)
        if level < layout.levels - 1:
            yield from _with(f"input_blocks.{(level + 1) * step}.0.op", f"down_blocks.{level}.downsamplers.0.conv")


def _up_names(layout: Layout) -> Iterator[tuple[str, str]]:
    step = layout.layers_per_block + 1
    for level, depth in enumerate(reversed(layout.depths)):
        for layer in range(step):
            old, new = f"output_blocks.{level * step + layer}", f"up_blocks.{level}"
            yield from _resnet(layout, f"{old}.0", f"{new}.resnets.{layer}")
            if depth:
                yield from _attention(f"{old}.1", f"{new}.attentions.{layer}", depth)
        if level < layout.levels - 1:
            place = 2 if depth else 1
            yield from _with(
                f"output_blocks.{level * step + step - 1}.{place}.conv", f"up_blocks.{level}.upsamplers.0.conv"
            )


def _resnet(layout: Layout, old: str, new: str) -> Iterator[tuple[str, str]]:
    pairs = [
        ("in_layers.0", "norm1"),
        ("in_layers.2", "conv1"),
        ("emb_layers.1", "time_emb_proj"),
        ("out_layers.0", "norm2"),
        ("out_layers.3", "conv2"),
    ]
    if new in layout.widening:
        pairs.append(("skip_connection", "conv_shortcut"))
    for a, b in pairs:
        yield from _with(f"{old}.{a}", f"{new}.{b}")


def _attention(old: str, new: str, depth: int) -> Iterator[tuple[str, str]]:
    for name in ("norm", "proj_in", "proj_out"):
        yield from _with(f"{old}.{name}", f"{new}.{name}")
    for block in range(depth):
        inner = f"transformer_blocks.{block}"
        for name in ("norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2"):
            yield from _with(f"{old}.{inner}.{name}", f"{new}.{inner}.{name}")
        for attention in ("attn1", "attn2"):
            for name in ("to_q", "to_k", "to_v"):
                yield from _with(f"{old}.{inner}.{attention}.{name}", f"{new}.{inner}.{attention}.{name}", ("weight",))


# --- text encoders -------------------------------------------------------------------------------------------------


def _text_1_entries(layout: Layout) -> Iterator[Entry]:
    """CLIP-L keeps transformers' own names."""
    names = ["embeddings.token_embedding.weight", "embeddings.position_embedding.weight"]
    for layer in range(layout.text_layers[0]):
        for name in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.out_proj",
            "layer_norm1",
            "layer_norm2",
            "mlp.fc1",
            "mlp.fc2",
        ):
            names += [f"encoder.layers.{layer}.{name}.{ending}" for ending in WEIGHT_BIAS]
    names += [f"final_layer_norm.{ending}" for ending in WEIGHT_BIAS]
    return (_entry(TEXT_1, _TEXT_1_ROOT + name, layout.text_prefix + name) for name in names)


def _text_2_entries(layout: Layout) -> Iterator[Entry]:
    """CLIP-G is stored as OpenCLIP names it: query, key and value in one tensor, the projection transposed."""
    yield _entry(TEXT_2, f"{_TEXT_2_ROOT}token_embedding.weight", "text_model.embeddings.token_embedding.weight")
    yield _entry(TEXT_2, f"{_TEXT_2_ROOT}positional_embedding", "text_model.embeddings.position_embedding.weight")
    renamed = (
        ("attn.out_proj", "self_attn.out_proj"),
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    )
    for layer in range(layout.text_layers[1]):
        old, new = f"{_TEXT_2_ROOT}transformer.resblocks.{layer}", f"text_model.encoder.layers.{layer}"
        for ending in WEIGHT_BIAS:
            packed = tuple(f"{new}.self_attn.{name}.{ending}" for name in ("q_proj", "k_proj", "v_proj"))
            yield Entry(f"{old}.attn.in_proj_{ending}", TEXT_2, packed, "stacked")
        for a, b in renamed:
            yield from (_entry(TEXT_2, key, name) for key, name in _with(f"{old}.{a}", f"{new}.{b}"))
    final = _with(f"{_TEXT_2_ROOT}ln_final", "text_model.final_layer_norm")
    yield from (_entry(TEXT_2, key, name) for key, name in final)
    yield Entry(f"{_TEXT_2_ROOT}text_projection", TEXT_2, ("text_projection.weight",), "transposed")


# --- VAE -----------------------------------------------------------------------------------------------------------


def _vae_names(layout: Layout) -> Iterator[tuple[str, str]]:
    yield from _vae_encoder(layout.encoder_blocks)
    yield from _vae_decoder(layout.decoder_blocks)


def _vae_encoder(stages: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    place = 0
    for stage, blocks in enumerate(stages):
        endings = WEIGHT_BIAS if stage == 0 else ("weight",)  # the halving convolutions have no bias
        yield from _with(f"taesd_encoder.{place}", f"encoder.layers.{place}", endings)
        for index in range(place + 1, place + 1 + blocks):
            yield from _vae_block(f"taesd_encoder.{index}", f"encoder.layers.{index}")
        place += 1 + blocks
    yield from _with(f"taesd_encoder.{place}", f"encoder.layers.{place}")


def _vae_decoder(stages: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """TAESD counts its input clamp as layer 0, diffusers applies it outside: every index is one higher."""
    yield from _with("taesd_decoder.1", "decoder.layers.0")
    place = 2  # after the first convolution and its activation
    for stage, blocks in enumerate(stages):
        for index in range(place, place + blocks):
            yield from _vae_block(f"taesd_decoder.{index + 1}", f"decoder.layers.{index}")
        last = stage == len(stages) - 1
        place += blocks if last else blocks + 1  # an upsampling layer without weights
        endings = WEIGHT_BIAS if last else ("weight",)
        yield from _with(f"taesd_decoder.{place + 1}", f"decoder.layers.{place}", endings)
        place += 1


def _vae_block(old: str, new: str) -> Iterator[tuple[str, str]]:
    for layer in (0, 2, 4):
        yield from _with(f"{old}.conv.{layer}", f"{new}.conv.{layer}")
