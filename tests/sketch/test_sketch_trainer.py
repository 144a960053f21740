"""The trainer as a process: its lines, its files, its exit codes, from any folder and under any package name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from comfy_nodes.sketch import checkpoint
from comfy_nodes.sketch.tensor_file import read_metadata
from tests.sketch.conftest import SMALL, build

PACK = Path(__file__).resolve().parents[2] / "comfy_nodes"
PARAMS = {"steps": 3, "batch_size": 2, "rank": 2, "alpha": 2, "views": 1}


def write_job(folder, captioned=True, **changes):
    images = folder / "images"
    images.mkdir(parents=True)
    for index, colour in enumerate(((200, 40, 40), (40, 40, 200)) if captioned else ()):
        Image.new("RGB", (64, 64), colour).save(images / f"{index:03d}.png")
        (images / f"{index:03d}.txt").write_text("mira woman, smiling", encoding="utf-8")
    base = folder / "base.safetensors"
    checkpoint.save(build(), base, {}, SMALL)
    job = {
        "checkpoint": str(base),
        "dataset_dir": str(images),
        "output_dir": str(folder / "out"),
        "output_name": "lora",
        "seed": 42,
        "params": PARAMS,
        "trigger": "mira",
        "class_word": "woman",
        "sample_prompts": ["mira woman"],
        "sample_every": 3,
        "metadata": {"ss_dataset": "abc"},
        "threads": 1,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job | changes), encoding="utf-8")
    return path


def run_trainer(job, pack=PACK):
    script = pack / "training" / "sketch_trainer.py"
    return subprocess.run(
        [sys.executable, str(script), "--config", str(job)], capture_output=True, cwd="/", check=False, timeout=300
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One run from a copy of the pack under another name, as in ComfyUI's custom_nodes."""
    folder = tmp_path_factory.mktemp("trainer")
    pack = folder / "custom_nodes" / "troupe_pack"
    shutil.copytree(PACK, pack, ignore=shutil.ignore_patterns("__pycache__"))
    result = run_trainer(write_job(folder / "work"), pack)
    return result, folder / "work" / "out", result.stdout.decode(), result.stderr.decode()


def test_it_ends_with_zero_and_a_file(done):
    assert done[0].returncode == 0, done[3]
    assert (done[1] / "lora.safetensors").stat().st_size > 1000


def test_it_says_how_many_steps_there_will_be(done):
    assert re.search(r"^  total optimization steps .*: 3$", done[2], re.MULTILINE)


def test_it_prints_kohyas_lines_in_kohyas_order(done):
    places = [
        done[2].index(text)
        for text in (
            "running training /",
            "num train images",
            "total optimization steps",
            "saving checkpoint: ",
            "model saved.",
        )
    ]
    assert places == sorted(places)


def test_its_bar_can_be_parsed(done):
    pattern = (
        r"^steps:\s+(\d+)%\|.*?\|\s*(\d+)/(\d+) \[([\d:]+)<([\d:?]+),\s*([\d.]+)(s/it|it/s)(?:,.*?avr_loss=([-\w.+]+))?"
    )
    found = [match for part in re.split(r"[\r\n]+", done[3]) if (match := re.match(pattern, part))]
    assert found[-1].group(2, 3) == ("3", "3")
    assert float(found[-1].group(8)) > 0


def test_samples_are_written_where_it_says(done):
    (path,) = re.findall(r"^saved sample: (.+)$", done[2], re.MULTILINE)
    assert Path(path).name == "lora_000003_00.png"
    assert Image.open(path).size == (128, 128)


def test_given_metadata_is_in_the_file(done):
    metadata = read_metadata(done[1] / "lora.safetensors")
    assert (metadata["ss_dataset"], metadata["modelspec.trigger_phrase"]) == ("abc", "mira woman")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"captioned": False}, "NoPicturesError"),
        ({"params": PARAMS | {"momentum": 1}}, "momentum"),
        ({"params": PARAMS | {"learning_rate": 1e30, "steps": 6}}, "DivergedError"),
        ({"checkpoint": "/nowhere/base.safetensors"}, "base.safetensors"),
    ],
)
def test_a_failure_ends_with_one_and_its_reason_last(tmp_path, changes, words):
    result = run_trainer(write_job(tmp_path / "work", **changes))
    assert result.returncode == 1
    assert words in result.stderr.decode().strip().splitlines()[-1]


def test_a_truncated_picture_is_an_error(tmp_path):
    job = write_job(tmp_path / "work")
    picture = tmp_path / "work" / "images" / "000.png"
    picture.write_bytes(picture.read_bytes()[:60])
    result = run_trainer(job)
    assert (result.returncode, (tmp_path / "work" / "out" / "lora.safetensors").exists()) == (1, False)
