"""Reading and writing safetensors so that the same tensors and metadata always give the same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_MAX_HEADER_BYTES = 16 * 1024 * 1024
_DTYPE_NAMES = {"torch.float16": "F16", "torch.float32": "F32", "torch.bfloat16": "BF16"}


def write_tensors(path: Path | str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> int:
    """Write a whole safetensors file or nothing; tensors in name order. Returns its size in bytes.

    The safetensors library writes metadata in an order that differs from run to run; a file known by its digest
    cannot have that.
    """
    target = Path(path)
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    bodies: list[bytes] = []
    offset = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        body = _raw_bytes(tensor)
        header[name] = {
            "dtype": _DTYPE_NAMES[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(body)],
        }
        bodies.append(body)
        offset += len(body)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    with temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.writelines(bodies)
    os.replace(temporary, target)
    return 8 + len(text) + offset


def read_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """All tensors of the file at `path`. FileNotFoundError, or ValueError for a file that cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(str(path)))
    except SafetensorError as error:
        raise ValueError(f"{Path(path).name} is not a readable safetensors file: {error}") from error


def read_metadata(path: Path | str) -> dict[str, str]:
    """The string metadata of the header, without reading any tensor; {} where there is none."""
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _MAX_HEADER_BYTES:
            raise ValueError(f"{Path(path).name} is not a safetensors file")
        header: dict[str, Any] = json.loads(file.read(length))
    return dict(header.get("__metadata__") or {})


def _raw_bytes(tensor: torch.Tensor) -> bytes:
    import torch

    return bytes(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()) if tensor.numel() else b""
