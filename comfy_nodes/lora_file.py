"""Reading LoRA files with suspicion: the safetensors header is checked before a single tensor is loaded."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# safetensors itself refuses longer headers.
MAX_HEADER_BYTES = 100_000_000
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


class LoraFileError(ValueError):
    """The file is no safetensors file, or not a whole one; the message says which and why."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the header: its type, its shape, and its bytes counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    @property
    def trigger(self) -> str:
        """The trigger phrase that the trainer wrote into the file, or nothing."""
        return self.metadata.get("modelspec.trigger_phrase", "")

    @property
    def modules(self) -> frozenset[str]:
        """The names of the modules that a kohya LoRA changes (`lora_unet_...`)."""
        return frozenset(name.partition(".")[0] for name in self.tensors)


def read_header(path: Path) -> Header:
    """Check and parse the header of a safetensors file; reads nothing else. Raises LoraFileError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        _refuse_pickle(path, start)
        if len(start) < 9:
            raise LoraFileError(f"{path.name} is truncated: {size} bytes")
        (length,) = struct.unpack("<Q", start[:8])
        if length > MAX_HEADER_BYTES:
            raise LoraFileError(f"{path.name} is not a safetensors file")
        if 8 + length > size:
            raise LoraFileError(f"{path.name} is truncated within its header")
        file.seek(8)
        header = file.read(length)
    document = _json_object(path, header)
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise LoraFileError(f"{path.name} has a damaged header: its metadata is no object")
    tensors = {name: _entry(path, name, value) for name, value in document.items()}
    _check_extent(path, tensors, size - 8 - length)
    return Header(tensors, {str(key): str(value) for key, value in metadata.items()})


def _refuse_pickle(path: Path, start: bytes) -> None:
    # A zip archive is what torch.save writes today, 0x80 + protocol what it wrote before: both can run code. The
    # ninth byte tells a header that happens to have such a length.
    pickled = start[:4] == b"PK\x03\x04" or start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    if pickled and start[8:9] != b"{":
        raise LoraFileError(f"{path.name} is a pickle, not a safetensors file: refused, it could run code when loaded")


def _json_object(path: Path, header: bytes) -> dict[str, Any]:
    try:
        document = json.loads(header)
    except ValueError as error:
        raise LoraFileError(f"{path.name} is not a safetensors file") from error
    if not isinstance(document, dict):
        raise LoraFileError(f"{path.name} is not a safetensors file")
    return document


def _entry(path: Path, name: str, value: Any) -> TensorEntry:
    try:
        start, end = value["data_offsets"]
        entry = TensorEntry(value["dtype"], tuple(value["shape"]), start, end)
        bits = _BITS[entry.dtype]
        if entry.end - entry.start != math.prod(entry.shape) * bits // 8 or entry.start < 0:
            raise ValueError("its bytes do not fit its shape")
    except (KeyError, TypeError, ValueError) as error:
        raise LoraFileError(f"{path.name} has a damaged header: tensor {name}: {error}") from error
    return entry


def _check_extent(path: Path, tensors: Mapping[str, TensorEntry], data_bytes: int) -> None:
    position = 0
    for entry in sorted(tensors.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != position:
            raise LoraFileError(f"{path.name} has a damaged header: its tensors overlap or leave gaps")
        position = entry.end
    if position > data_bytes:
        raise LoraFileError(f"{path.name} is truncated: {data_bytes} of {position} data bytes are there")
    if position < data_bytes:
        raise LoraFileError(f"{path.name} has {data_bytes - position} bytes behind its last tensor")
