"""LoRA on the sketch base: kohya's names for its layers, and adding a LoRA to a copy without touching the base."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import keys
from .architecture import SKETCH

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .architecture import SketchArchitecture, SketchModules

# kohya's prefix for each part, and the path prefix that its names always carry (transformers dropped it for CLIP-L).
_PREFIXES = {
    keys.UNET: ("lora_unet_", ""),
    keys.TEXT_1: ("lora_te1_", "text_model."),
    keys.TEXT_2: ("lora_te2_", ""),
}
# Weights of norms and tables: no linear or convolution layer.
_NO_LAYER = re.compile(r"norm\w*\.weight$|embeddings\.")
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"


@dataclass(frozen=True)
class Layer:
    """One linear or convolution layer: the part of the modules it is in and its path there."""

    part: str
    path: str


@dataclass(frozen=True)
class Applied:
    """Modules with a LoRA added, and how many of its layers found their place.

    `modules` shares every untouched tensor with the modules it was made from; dropping it is an exact undo. With no
    match or strength 0 it is the very object that was given.
    """

    modules: SketchModules
    matched: int
    total: int


def kohya_name(layer: Layer) -> str:
    """`lora_unet_down_blocks_0_attentions_0_...`, `lora_te1_text_model_encoder_layers_0_...`."""
    prefix, nested = _PREFIXES[layer.part]
    path = layer.path if layer.path.startswith(nested) else nested + layer.path
    return prefix + path.replace(".", "_")


def layers_by_name(modules: SketchModules) -> dict[str, Layer]:
    """Every layer of U-Net and text encoders that a LoRA may change, by its kohya name."""
    from torch import nn

    found = {}
    for part in _PREFIXES:
        for path, module in getattr(modules, part).named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                layer = Layer(part, path)
                found[kohya_name(layer)] = layer
    return found


def known_names(architecture: SketchArchitecture = SKETCH) -> frozenset[str]:
    """The kohya names a LoRA of this base may hold; needs no weights, and no library to hold them."""
    layers = (
        Layer(entry.part, name.removesuffix(".weight"))
        for entry in keys.key_table(keys.layout_for(architecture))
        for name in entry.names
        if entry.part in _PREFIXES and name.endswith(".weight") and not _NO_LAYER.search(name)
    )
    return frozenset(map(kohya_name, layers))


def layer_names(state: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """Names of the layers in a LoRA file, whichever of them the base knows."""
    return frozenset(key.split(".", 1)[0] for key in state)


def apply(
    modules: SketchModules, state: Mapping[str, torch.Tensor], strength: float, clip_strength: float | None = None
) -> Applied:
    """Add `strength` times the LoRA's change to a copy of the layers it names.

    clip_strength is for the text encoders and is `strength` when None. A layer counts as matched when the base has
    its name and the shapes fit; a LoRA of another model therefore ends with matched == 0.
    """
    deltas = _deltas(modules, state)
    strengths = {keys.UNET: strength, keys.TEXT_1: strength, keys.TEXT_2: strength}
    if clip_strength is not None:
        strengths |= {keys.TEXT_1: clip_strength, keys.TEXT_2: clip_strength}
    changed = {part for part, share in strengths.items() if share and any(layer.part == part for layer in deltas)}
    patched: dict[str, Any] = {
        part: _patched(getattr(modules, part), part, deltas, strengths[part]) for part in changed
    }
    return Applied(replace(modules, **patched) if patched else modules, len(deltas), len(layer_names(state)))


def _deltas(modules: SketchModules, state: Mapping[str, torch.Tensor]) -> dict[Layer, torch.Tensor]:
    known = layers_by_name(modules)
    deltas = {}
    for name in sorted(layer_names(state)):
        if name not in known or name + DOWN not in state or name + UP not in state:
            continue
        layer = known[name]
        weight = getattr(modules, layer.part).get_submodule(layer.path).weight
        delta = layer_delta(state[name + DOWN], state[name + UP], state.get(name + ALPHA))
        if delta.numel() == weight.numel() and delta.shape[:2] == weight.shape[:2]:
            deltas[layer] = delta.reshape(weight.shape)
    return deltas


def layer_delta(down: torch.Tensor, up: torch.Tensor, alpha: torch.Tensor | None) -> torch.Tensor:
    """The change of one weight in fp32: up times down, scaled by alpha / rank; shape (out, in, *kernel)."""
    rank = down.shape[0]
    scale = 1.0 if alpha is None else float(alpha) / rank
    product = up.float().reshape(up.shape[0], -1) @ down.float().reshape(rank, -1)
    return product.reshape(up.shape[0], *down.shape[1:]) * scale


def _patched(module: nn.Module, part: str, deltas: Mapping[Layer, torch.Tensor], strength: float) -> nn.Module:
    import torch

    shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    twin = copy.deepcopy(module, shared)
    for layer, delta in deltas.items():
        if layer.part == part:
            target = twin.get_submodule(layer.path)
            weight = target.weight
            assert isinstance(weight, torch.Tensor)  # narrows for the type checker
            moved = (weight.detach().float() + strength * delta.to(weight.device)).to(weight.dtype)
            target.weight = torch.nn.Parameter(moved, requires_grad=False)
    return twin
