"""LoRA files of the sketch base for these tests: every layer in kohya's layout, random but the same for one seed."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from safetensors.torch import save

from comfy_nodes.sketch.architecture import SKETCH
from comfy_nodes.sketch.lora import layers_by_name

RANK = 2
SIZE = 0.05


@functools.cache
def layer_shapes() -> Mapping[str, torch.Size]:
    """The weight's shape of every layer a LoRA may change, by kohya name."""
    with torch.device("meta"):
        modules = SKETCH.build()
    return {
        name: getattr(modules, layer.part).get_submodule(layer.path).weight.shape
        for name, layer in sorted(layers_by_name(modules).items())
    }


def lora(seed: int, layers: int | None = None, alien: int = 0, base: str = "troupe_sketch") -> bytes:
    """A whole file: the first `layers` of the base (None: all), and `alien` ones that it does not have."""
    generator = torch.Generator().manual_seed(seed)
    shapes = dict(list(layer_shapes().items())[:layers])
    shapes |= {f"lora_unet_no_such_layer_{number}": torch.Size((8, 4)) for number in range(alien)}
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        tail = [1] * (len(shape) - 2)
        tensors[f"{name}.lora_down.weight"] = torch.randn(RANK, *shape[1:], generator=generator) * SIZE
        tensors[f"{name}.lora_up.weight"] = torch.randn(shape[0], RANK, *tail, generator=generator) * SIZE
        tensors[f"{name}.alpha"] = torch.tensor(float(RANK))
    return save(tensors, {"modelspec.trigger_phrase": "nellq captain", "ss_base_model_version": base})
