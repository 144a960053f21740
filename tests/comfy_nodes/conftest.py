"""What a node needs around it, for tests: a host with real folders, a control plane that speaks real HTTP, LoRAs."""

from __future__ import annotations

import json
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comfy_nodes import host as host_seam
from tests.comfy_nodes.control_plane_double import POD_KEY, ControlPlaneServer, serving


class FolderHost:
    """A host with folders and no model: LoRAs are only counted, latents only shifted."""

    class Interrupted(Exception):
        """What the host raises in a node when the prompt is interrupted."""

    def __init__(self, root: Path, prompt: str) -> None:
        self.root = root
        self.shown: list[tuple[int, int, bool]] = []
        self.interrupt = threading.Event()
        self.freed = 0
        self.known: frozenset[str] = frozenset()
        self.prompt = prompt
        self.vram = 0

    def prompt_id(self) -> str:
        return self.prompt

    def progress(self, value: int, total: int, preview: Any = None) -> None:
        self.raise_if_interrupted()
        self.shown.append((value, total, preview is not None))

    def interrupted(self) -> bool:
        return self.interrupt.is_set()

    def raise_if_interrupted(self) -> None:
        if self.interrupt.is_set():
            raise self.Interrupted

    def free_memory(self) -> None:
        self.freed += 1

    def vram_bytes(self) -> int:
        return self.vram

    def apply_lora(self, model: Any, clip: Any, state_dict: Any, strength: float) -> tuple[Any, Any, int, int]:
        modules = {key.partition(".")[0] for key in state_dict}
        return (model, "patched", strength), (clip, "patched", strength), len(modules & self.known), len(modules)

    def sample(self, model: Any, seed: int, steps: int, cfg: float, positive: Any, negative: Any, latent: Any,
               denoise: float, callback: Any = None) -> Any:  # fmt: skip
        for step in range(1, steps + 1):
            callback(step, steps)
        return {**latent, "samples": latent["samples"] + seed + positive}

    def blend(self, first: Any, second: Any, weight: float) -> Any:
        return first * (1 - weight) + second * weight

    def models_dir(self, kind: str) -> list[Path]:
        return [self.root / "models" / kind]

    def checkpoint_path(self, name: str) -> Path:
        path = self.root / "models" / "checkpoints" / name
        if not path.is_file():
            raise FileNotFoundError(f"this pod has no checkpoint named {name}")
        return path

    def output_dir(self) -> Path:
        return self.root / "output"

    def loras_cache_dir(self) -> Path:
        return self.root / "lora_cache"


@pytest.fixture
def attempt_id() -> str:
    """A fresh attempt for each test: outputs are numbered per prompt."""
    return str(uuid.uuid4())


@pytest.fixture
def folder_host(tmp_path: Path, attempt_id: str) -> Iterator[FolderHost]:
    host = FolderHost(tmp_path / "host", attempt_id)
    host_seam.set_host(host)
    yield host
    host_seam.set_host(None)


@pytest.fixture
def server(attempt_id: str) -> Iterator[ControlPlaneServer]:
    with serving(ControlPlaneServer(attempt_id)) as double:
        yield double


@pytest.fixture
def linked(server: ControlPlaneServer, monkeypatch: pytest.MonkeyPatch) -> ControlPlaneServer:
    """The server, known to the nodes through their environment."""
    monkeypatch.setenv("TROUPE_CONTROL_PLANE_URL", server.url)
    monkeypatch.setenv("TROUPE_POD_KEY", POD_KEY)
    return server


@pytest.fixture
def unlinked(monkeypatch: pytest.MonkeyPatch) -> None:
    """An artist's desktop: no control plane."""
    for name in ("TROUPE_CONTROL_PLANE_URL", "TROUPE_POD_KEY", "TROUPE_POD_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def lora_bytes() -> Any:
    return make_lora


def make_lora(
    modules: tuple[str, ...] = ("lora_unet_a",),
    rank: int = 2,
    up: float = 0.5,
    metadata: dict[str, str] | None = None,
    floats: int = 4,
) -> bytes:
    """A whole safetensors file in kohya's layout, by hand: F32, down [rank, floats], up [floats, rank], alpha."""
    tensors: dict[str, tuple[list[int], bytes]] = {}
    for name in modules:
        down_values, up_values = ([value] * rank * floats for value in (1.0, up))
        tensors[f"{name}.lora_down.weight"] = ([rank, floats], struct.pack(f"<{rank * floats}f", *down_values))
        tensors[f"{name}.lora_up.weight"] = ([floats, rank], struct.pack(f"<{rank * floats}f", *up_values))
        tensors[f"{name}.alpha"] = ([], struct.pack("<f", float(rank)))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    body = b""
    for name, (shape, content) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(content)]}
        body += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    """Poll for a condition; fails the test when it does not come true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def eventually() -> Any:
    return wait_until
