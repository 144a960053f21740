"""The SDXL and SVD templates with models of full size and random weights: what fits, what comes out, what is refused.

Slow, and large: about 12 GB of files in the temporary folder while it runs, and up to 18 GB of free memory. A part that
the machine has no memory for is skipped and says so. Nothing here says how a picture looks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.comfyui import graphs, random_checkpoint
from tests.comfyui.graphs import ended, run, saved_files, submit, words_of
from tests.comfyui.server import NO_COMFYUI, REPOSITORY, ComfyUI, checkout, start_comfyui

from .random_lora import sd15_layers, sdxl_layers, write_lora
from .running import bound, frames, pixels

pytestmark = pytest.mark.slow

SPARE_GB = 3
RUN_SECONDS = 1500
# On a CPU ComfyUI would widen the U-Nets to 32 bits.
OPTIONS = ("--bf16-unet",)
SDXL, SVD = "sd_xl_base_1.0.safetensors", "svd_xt.safetensors"
DISK_GB = {"sdxl": 7, "svd": 5}
REQUEST = {"prompt": "a smiling woman in a forest", "seed": 7, "steps": 1}
STILL = {"n5_width": 64, "n5_height": 64}
SIZE = {"n8_width": 128, "n8_height": 64, "n10_width": 128, "n10_height": 64}


def free_gb() -> float:
    """Memory that could be had without swapping, GB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))) / 1e6


@contextmanager
def comfyui_with(gigabytes: float, **writers: Callable[[Path], None]) -> Iterator[ComfyUI]:
    """A ComfyUI with checkpoints written for it, deleted afterwards; skips where there is not enough memory."""
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    if free_gb() < gigabytes + SPARE_GB:
        pytest.skip(f"needs {gigabytes:g} GB of memory and {SPARE_GB} GB to spare; {free_gb():.1f} GB are free")
    disk, wanted = shutil.disk_usage(tempfile.gettempdir()).free / 1e9, sum(DISK_GB[name] for name in writers)
    if disk < wanted + SPARE_GB:
        pytest.skip(f"needs {wanted} GB in {tempfile.gettempdir()} and {SPARE_GB} to spare; {disk:.1f} are free")
    with tempfile.TemporaryDirectory(prefix="troupe-full-size-") as folder:
        base = Path(folder)
        for kind in ("checkpoints", "loras"):
            (base / "models" / kind).mkdir(parents=True)
        for name, write in writers.items():
            write(base / "models" / "checkpoints" / {"sdxl": SDXL, "svd": SVD}[name])
        write_lora(sdxl_layers(), base / "models" / "loras" / "mira.safetensors", "sdxl_base_v1-0")
        few = {name: size for name, size in sdxl_layers().items() if "input_blocks_4_1" in name}
        write_lora(few, base / "models" / "loras" / "few.safetensors", "sdxl_base_v1-0")
        write_lora(sd15_layers(), base / "models" / "loras" / "alien.safetensors", "sd_v1")
        with start_comfyui(base, options=OPTIONS) as running:
            Image.linear_gradient("L").convert("RGB").save(base / "input" / "still.png")
            yield running
            print(f"\npeak memory of ComfyUI: {_peak_gb(running):.1f} GB")  # noqa: T201 (a measurement, with -s)


def _peak_gb(comfyui: ComfyUI) -> float:
    status = Path(f"/proc/{comfyui.process.pid}/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 1e6


def write_sdxl(target: Path) -> None:
    random_checkpoint.write("sdxl", "bf16", target)


def write_svd(target: Path) -> None:
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "-m", "tests.templates.random_svd", str(target)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "WAIT_SECONDS", RUN_SECONDS)


@pytest.fixture(scope="module")
def with_sdxl() -> Iterator[ComfyUI]:
    with comfyui_with(15, sdxl=write_sdxl) as running:
        yield running


def sdxl_image(lora: str, strength: float) -> dict[str, Any]:
    return bound("sdxl_image", {**REQUEST, "character_id": lora, "lora_strength": strength}, **STILL)


def test_sdxl_paints_with_every_module_of_an_sdxl_lora(with_sdxl: ComfyUI) -> None:
    plain = run(with_sdxl, sdxl_image("mira", 0.0))
    patched = run(with_sdxl, sdxl_image("mira", 1.0))
    (shown,) = patched["2"]["character"]
    assert (shown["matched"], shown["total"]) == (722, 722)
    without, with_it = (pixels(saved_files(with_sdxl, outputs, "8")[0]) for outputs in (plain, patched))
    assert without.shape == with_it.shape == (64, 64, 3)
    assert abs(with_it - without).mean() > 1


def test_an_sd15_lora_is_refused_on_sdxl_with_the_reason(with_sdxl: ComfyUI) -> None:
    entry = ended(with_sdxl, submit(with_sdxl, sdxl_image("alien", 1.0)))
    assert entry["status"]["status_str"] == "error"
    assert "trained for base sd_v1, and its 264 modules do not fit the model" in words_of(entry)


def assert_video(comfyui: ComfyUI, outputs: dict[str, Any]) -> None:
    shown = frames(saved_files(comfyui, outputs, "14")[0])
    assert shown.shape == (14, 64, 128, 3)
    assert outputs["14"]["animated"] == [True]


def test_svd_makes_a_video_of_a_picture() -> None:
    with comfyui_with(9, svd=write_svd) as comfyui:
        values = {"image": "still.png", "character_id": "mira", "frames": 14, **REQUEST}
        assert_video(comfyui, run(comfyui, bound("svd_video_from_image", values, **SIZE)))


def test_still_and_video_are_one_graph() -> None:
    """With a LoRA of a few modules: ComfyUI keeps a copy of every weight that one changes, 4 GB for a whole one."""
    with comfyui_with(15, sdxl=write_sdxl, svd=write_svd) as comfyui:
        values = {**REQUEST, "character_id": "few", "frames": 14, "video_steps": 1, "lora_strength": 1.0}
        outputs = run(comfyui, bound("svd_video", values, **STILL, **SIZE))
        assert outputs["2"]["character"][0]["matched"] == outputs["2"]["character"][0]["total"] > 0
        assert_video(comfyui, outputs)
        assert pixels(saved_files(comfyui, outputs, "15")[0]).shape == (64, 64, 3)
