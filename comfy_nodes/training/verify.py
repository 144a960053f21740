"""Judging a trained LoRA before anybody may use it: whole, finite, not empty, and made for its base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..lora_file import Header, LoraFileError, read_header
from .failure import TrainerError

_DOWN, _UP = ".lora_down.weight", ".lora_up.weight"


@dataclass(frozen=True)
class Verified:
    """A LoRA that passed: its most common rank, its modules that the base has, all its modules, its metadata."""

    rank: int
    matched: int
    total: int
    metadata: Mapping[str, str]


def verify_lora(path: Path, known_modules: frozenset[str], trigger: str = "") -> Verified:
    """Check the header, then every tensor by itself; `trigger` is the phrase that the file has to carry.

    Raises TrainerError `bad_lora`, `wrong_base`, `not_finite` or `untrained`.
    """
    try:
        header = read_header(path)
    except LoraFileError as error:
        raise TrainerError("bad_lora", f"the trainer wrote a file that is no LoRA: {error}") from error
    modules = frozenset(name.removesuffix(_DOWN) for name in header.tensors if name.endswith(_DOWN))
    if not modules:
        raise TrainerError("bad_lora", "the trainer wrote a file without any LoRA module")
    for name in sorted(modules):
        if name + _UP not in header.tensors:
            raise TrainerError("bad_lora", f"module {name} has a lora_down and no lora_up")
    matched = len(modules & known_modules)
    if not matched:
        raise TrainerError("wrong_base", f"none of the LoRA's {len(modules)} modules exists in the base")
    if trigger and header.trigger != trigger:
        raise TrainerError("bad_lora", f"the LoRA carries the trigger {header.trigger!r} instead of {trigger!r}")
    _check_values(path, header)
    ranks = Counter(header.tensors[name + _DOWN].shape[0] for name in modules)
    return Verified(ranks.most_common(1)[0][0], matched, len(modules), header.metadata)


def _check_values(path: Path, header: Header) -> None:
    """One tensor in memory at a time: a LoRA may be as large as the memory that the trainer left free."""
    import torch
    from safetensors import safe_open

    changed = False
    with safe_open(path, framework="pt") as file:
        for name in header.tensors:
            tensor = file.get_tensor(name)
            if not bool(torch.isfinite(tensor.float()).all()):
                raise TrainerError("not_finite", f"the LoRA holds values that are no numbers, first in {name}")
            changed = changed or (name.endswith(_UP) and bool(tensor.any()))
    if not changed:
        raise TrainerError("untrained", "every lora_up of the LoRA is zero: the training changed nothing")
