"""What tests with the real sd-scripts need: a random base, tokenizers, four images and a recipe of seconds."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from comfy_nodes.training import kohya

from .random_checkpoint import write

NO_SD_SCRIPTS = "no real trainer: set SD_SCRIPTS_DIR and SD_SCRIPTS_PYTHON"
CHECKPOINT = "sd15.safetensors"
PARAMS: dict[str, Any] = {
    "architecture": "sd15", "views": 3, "epochs": 3, "batch_size": 2, "resolution": 64, "rank": 4, "alpha": 4,
    "mixed_precision": "no", "warmup": 0.0, "save_every_epochs": 1, "resumable": True,
    "restart_under_seconds": 0,
}  # fmt: skip


def given() -> bool:
    """Whether the environment names a checkout of sd-scripts and its interpreter."""
    return all(os.environ.get(name, "").strip() for name in ("SD_SCRIPTS_DIR", "SD_SCRIPTS_PYTHON"))


def free_gigabytes(folder: Path) -> tuple[float, float]:
    """Main memory that can be had and room on a folder's disk, in GB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return available * 1024 / 1e9, shutil.disk_usage(folder).free / 1e9


@contextmanager
def random_base(folder: Path, architecture: str = "sd15") -> Iterator[Path]:
    """A full-size SD1.5 (2.1 GB) or SDXL (6.9 GB) of random weights; the file goes with the block."""
    path = folder / f"{architecture}.safetensors"
    write(architecture, "fp16" if architecture == "sd15" else "bf16", path)
    try:
        yield path
    finally:
        path.unlink()


def make_tokenizers(root: Path) -> Path:
    """CLIP tokenizers with the sketch base's small vocabulary: random weights do not mind."""
    words = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", **words}
    for name in kohya.TOKENIZERS:
        shutil.copytree(Path(kohya.__file__).parents[1] / "sketch" / "tokenizer", root / name)
        (root / name / "tokenizer_config.json").write_text(json.dumps(config))
    return root


def portraits() -> dict[str, bytes]:
    """Four PNGs of 64 pixels by file name."""
    return {f"{number:03}.png": _portrait(60 * number) for number in range(1, 5)}


def dataset(**params: Any) -> dict[str, Any]:
    """What the control-plane double answers beyond the images: trained by kohya on a random base."""
    params = {**PARAMS, **params}
    recipe, base = {"name": "standard", "digest": "r1", "params": params}, str(params["architecture"])
    return {"base": base, "checkpoint": f"{base}.safetensors", "trainer": "kohya", "recipe": recipe}


def trainers_in(folder: Path) -> list[str]:
    """The command lines of the trainers that work in a folder."""
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "args="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [line for line in listed if "train_network.py" in line and str(folder) in line]


def _portrait(shade: int) -> bytes:
    image = Image.new("RGB", (64, 64), (40, 80, shade))
    ImageDraw.Draw(image).ellipse((16, 8, 48, 56), fill=(240, 200, shade))
    body = io.BytesIO()
    image.save(body, "PNG")
    return body.getvalue()
