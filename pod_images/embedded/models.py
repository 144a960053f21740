"""MODEL, CLIP and VAE of this pod: views of the sketch base, and the store that keeps what is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comfy_nodes.sketch.architecture import SketchArchitecture, SketchModules


@dataclass(frozen=True, eq=False)
class Model:
    """The U-Net of a checkpoint, possibly with LoRAs in it."""

    modules: SketchModules


@dataclass(frozen=True, eq=False)
class Clip:
    """The text encoders of a checkpoint, possibly with LoRAs in them."""

    modules: SketchModules


@dataclass(frozen=True, eq=False)
class Vae:
    modules: SketchModules


def tiny_architecture() -> SketchArchitecture:
    """The sketch architecture at the smallest sizes that still have every kind of layer."""
    from comfy_nodes.sketch.architecture import SKETCH

    return dataclasses.replace(
        SKETCH, vae_width=16, vae_encoder_blocks=(1, 1, 1, 1), vae_decoder_blocks=(1, 1, 1, 1),
        unet_channels=(32, 64), unet_layers=1, unet_transformers=(0, 1), head_channels=16,
    )  # fmt: skip


class CheckpointStore:
    """Loaded checkpoints by path; a model is loaded once however many prompts use it."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[Path, int], SketchModules] = {}

    def load(self, path: Path) -> tuple[Model, Clip, Vae]:
        """Views of one checkpoint file. Raises ValueError for a file that is no sketch checkpoint."""
        from comfy_nodes.sketch import checkpoint

        key = (path, path.stat().st_mtime_ns)
        if key not in self._loaded:
            self._loaded[key] = checkpoint.load(path)
        modules = self._loaded[key]
        return Model(modules), Clip(modules), Vae(modules)

    def clear(self) -> None:
        self._loaded.clear()


def write_tiny_checkpoint(path: Path) -> None:
    """A checkpoint of the tiny architecture with random weights; the same bytes for everybody."""
    import torch

    from comfy_nodes.sketch import checkpoint

    architecture = tiny_architecture()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        modules = architecture.build()
    _enliven(modules)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(modules, path, {"modelspec.title": "Troupe tiny test base"}, architecture=architecture)


def _enliven(modules: SketchModules) -> None:
    """Makes random weights answer: fresh ones paint black whatever the prompt, which no test could tell apart."""
    import torch

    with torch.no_grad():
        for encoder in (modules.text_encoder_1, modules.text_encoder_2):
            encoder.get_input_embeddings().weight.mul_(50)
        for name, weight in modules.unet.named_parameters():
            if ".attn2." in name and name.endswith("weight"):
                weight.mul_(4)
        last = [layer for layer in modules.vae.decoder.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
        last.weight.mul_(20)
        assert last.bias is not None  # narrows for the type checker
        last.bias.fill_(0.4)


def apply_lora(
    model: Model, clip: Clip, state_dict: Mapping[str, Any], model_strength: float, clip_strength: float
) -> tuple[Model, Clip, int, int]:
    """(patched model, patched clip, layers matched, layers in the file).

    The given views stay as they are, byte for byte; where nothing changes, the very same view comes back.
    """
    from comfy_nodes.sketch import lora

    for_model = lora.apply(model.modules, state_dict, model_strength, clip_strength)
    same = clip.modules is model.modules
    for_clip = for_model if same else lora.apply(clip.modules, state_dict, model_strength, clip_strength)
    unchanged = for_model.matched == 0
    return (
        model if unchanged or model_strength == 0 else Model(for_model.modules),
        clip if unchanged or clip_strength == 0 else Clip(for_clip.modules),
        for_model.matched,
        for_model.total,
    )
