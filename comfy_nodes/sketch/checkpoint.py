"""Reading and writing the sketch base as one safetensors file in SDXL's single-file layout."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import keys
from .architecture import SKETCH, SketchArchitecture, TextEncoderSizes
from .tensor_file import read_metadata, read_tensors, write_tensors

if TYPE_CHECKING:
    import torch

    from .architecture import SketchModules

__all__ = ["MAX_BYTES", "checkpoint_tensors", "load", "read_metadata", "save"]

MAX_BYTES = 30_000_000
# A file of other sizes than SKETCH (a miniature for tests) names them in its metadata.
SIZES_KEY = "troupe.architecture"


def load(path: Path | str, architecture: SketchArchitecture | None = None) -> SketchModules:
    """Modules in fp32 and eval mode from the file at `path`; None takes the sizes that the file itself names.

    Raises FileNotFoundError, and ValueError for a file that is not a sketch checkpoint of this architecture.
    """
    tensors = read_tensors(path)
    modules = (architecture or named_sizes(path)).build()
    states = keys.from_checkpoint(keys.layout_of(modules), tensors)
    for part in keys.PARTS:
        _fill(getattr(modules, part), states[part], part)
    return modules


def save(
    modules: SketchModules, path: Path | str, metadata: Mapping[str, str], architecture: SketchArchitecture = SKETCH
) -> int:
    """Write the modules in fp16 to `path` (whole file or nothing) and return its size in bytes."""
    sizes = {} if architecture == SKETCH else {SIZES_KEY: json.dumps(dataclasses.asdict(architecture))}
    return write_tensors(path, checkpoint_tensors(modules, architecture), {"format": "pt", **sizes, **metadata})


def named_sizes(path: Path | str) -> SketchArchitecture:
    """The architecture that a file names, SKETCH where it names none. Raises ValueError for sizes it cannot read."""
    text = read_metadata(path).get(SIZES_KEY)
    if text is None:
        return SKETCH
    given: dict[str, Any] = json.loads(text)
    values: dict[str, Any] = {}
    values |= {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    try:
        values |= {name: TextEncoderSizes(**given[name]) for name in ("text_1", "text_2")}
        return SketchArchitecture(**values)
    except (TypeError, KeyError) as reason:
        raise ValueError(f"this checkpoint names sizes that are not understood: {reason}") from reason


def checkpoint_tensors(modules: SketchModules, architecture: SketchArchitecture = SKETCH) -> dict[str, torch.Tensor]:
    """Every tensor of the file: fp16 weights by SDXL's names, and the bare keys ComfyUI reads."""
    import torch

    states = {part: getattr(modules, part).state_dict() for part in keys.PARTS}
    tensors = {
        key: tensor.detach().to(torch.float16)
        for key, tensor in keys.to_checkpoint(keys.layout_of(modules), states).items()
    }
    tensors[keys.VAE_SCALE] = torch.tensor(architecture.vae_scale)
    tensors[keys.VAE_SHIFT] = torch.tensor(architecture.vae_shift)
    if modules.scheduler_config["prediction_type"] == "v_prediction":
        tensors[keys.V_PREDICTION] = torch.zeros(1)
    if modules.scheduler_config.get("rescale_betas_zero_snr"):
        tensors[keys.ZERO_TERMINAL_SNR] = torch.zeros(1)
    return tensors


def _fill(module: torch.nn.Module, state: dict[str, torch.Tensor], part: str) -> None:
    expected = module.state_dict()
    wrong = [name for name, tensor in state.items() if tensor.shape != expected[name].shape]
    if wrong:
        raise ValueError(f"{part} of this checkpoint has other sizes: {wrong[:3]}")
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    module.eval()
    module.requires_grad_(False)
