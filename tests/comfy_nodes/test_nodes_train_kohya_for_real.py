"""TrainLoRA with the real sd-scripts on the CPU: a full-size SD1.5 of random weights, a few steps at 64 pixels.

Needs SD_SCRIPTS_DIR and SD_SCRIPTS_PYTHON, 7 GB of memory, 3 GB of disk and about three minutes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comfy_nodes.control_plane import Dataset, DatasetImage
from comfy_nodes.lora_file import read_header
from comfy_nodes.train_lora import TrainLoRA
from comfy_nodes.training import kohya
from comfy_nodes.training.job import Job, Resume
from comfy_nodes.training.kohya_settings import Recipe, settings_for
from tests.comfyui import sd_scripts

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not sd_scripts.given(), reason=sd_scripts.NO_SD_SCRIPTS)]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd_scripts.make_tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with sd_scripts.random_base(tmp_path_factory.mktemp("base")) as path:
        yield path


@pytest.fixture
def set_up(tokenizers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_SCRIPTS_TOKENIZERS", str(tokenizers))
    monkeypatch.setenv("TROUPE_WORK_DIR", str(tmp_path))
    monkeypatch.setenv("TROUPE_TRAINER_THREADS", "1")


@pytest.fixture
def pod(set_up: None, linked: Any, folder_host: Any, checkpoint: Path) -> Any:
    """A pod with the random base, and the control plane that its node talks to."""
    link = folder_host.root / "models" / "checkpoints" / sd_scripts.CHECKPOINT
    link.parent.mkdir(parents=True)
    link.symlink_to(checkpoint)
    return linked


def train(server: Any, resume: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    words = {"name": 'Mira "M" \\ #1 é 学', "resume": resume}
    server.add_dataset("mira", 1, sd_scripts.portraits(), **sd_scripts.dataset(**params), **words)
    server.uploads.clear()
    server.reports.clear()
    found: dict[str, Any] = TrainLoRA().train("mira", 1, "sd15", "standard")["ui"]["lora"][0]
    return found


def stored(server: Any, kind: str) -> list[tuple[str, bytes]]:
    return [
        (upload["name"], server.files[f"{number}-{upload['name']}"])
        for number, upload in enumerate(server.uploads)
        if upload["kind"] == kind
    ]


def offered(server: Any, state: tuple[str, bytes]) -> dict[str, Any]:
    """The state as the control plane offers it to a retry."""
    name, content = state
    server.files["offered.tar"] = content
    epoch, step = (int(part[1:]) for part in name.removesuffix(".tar").split("-")[1:])
    sha256 = hashlib.sha256(content).hexdigest()
    return {"step": step, "epoch": epoch, "url": "/files/offered.tar", "sha256": sha256, "bytes": len(content)}


def notes(server: Any) -> list[str]:
    return [report["note"] for report in server.reports if report["note"]]


def test_a_training_and_the_retries_that_go_on_from_its_states(pod: Any, folder_host: Any, tmp_path: Path) -> None:
    whole = train(pod, sample_every_epochs=3, sample_pixels=64, sample_steps=2)
    assert (whole["steps"], whole["matched"], whole["total"], whole["rank"]) == (6, 192, 192, 4)
    assert whole["warnings"] == []
    assert [name for name, _ in stored(pod, "checkpoint")] == ["lora-000001.safetensors", "lora-000002.safetensors"]
    assert len(stored(pod, "sample")) == 1
    states = stored(pod, "state")
    assert states[0][0] == "state-e000001-s00000002.tar"
    path = tmp_path / "lora.safetensors"
    path.write_bytes(stored(pod, "lora")[0][1])
    metadata = read_header(path).metadata
    assert metadata["modelspec.title"] == 'Mira "M" \\ #1 é 学'
    assert metadata["modelspec.trigger_phrase"] == "mira woman"
    assert json.loads(metadata["ss_training_comment"])["troupe.recipe_digest"] == "r1"

    folder_host.shown.clear()
    once = train(pod, resume=offered(pod, states[0]))
    assert (once["steps"], notes(pod)) == (6, ["training goes on from the state saved at step 2 (epoch 1)"])
    assert [shown[:2] for shown in folder_host.shown if shown[0] > 2][-1] == (6, 6)
    assert min(shown[0] for shown in folder_host.shown) == 2
    further = stored(pod, "state")
    assert [name for name, _ in further] == ["state-e000002-s00000004.tar"]

    # The second retry: the state counts from its own run's start and says 2, while 4 steps are behind it.
    folder_host.shown.clear()
    twice = train(pod, resume=offered(pod, further[0]))
    assert (twice["steps"], notes(pod)) == (6, ["training goes on from the state saved at step 4 (epoch 2)"])
    assert sorted({shown[0] for shown in folder_host.shown}) == [4, 5, 6]
    assert stored(pod, "checkpoint") == []


def test_going_on_where_gradients_are_gathered_trains_the_missing_epochs_only(pod: Any, folder_host: Any) -> None:
    folder_host.vram = 8 * 2**30  # small enough that batches of two become two of one, were there a GPU
    with pytest.MonkeyPatch.context() as patch:
        # What only a GPU can do is left out: this machine has none.
        patch.setattr(kohya.kohya_settings, "settings_for", gathered_on_a_cpu)
        train(pod, epochs=2, views=2)
        states = stored(pod, "state")
        folder_host.shown.clear()
        assert train(pod, resume=offered(pod, states[0]), epochs=2, views=2)["steps"] == 4
    assert sorted({shown[0] for shown in folder_host.shown}) == [2, 3, 4]


def gathered_on_a_cpu(recipe: Recipe, images: int, _vram_bytes: int) -> Any:
    from dataclasses import replace

    return replace(settings_for(recipe, images, 0), batch_size=1, accumulation=2)


def test_a_cancelled_training_is_gone_with_its_whole_group_within_ten_seconds(
    pod: Any, folder_host: Any, tmp_path: Path, eventually: Any
) -> None:
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            train(pod, epochs=50, views=50, save_every_epochs=0, resumable=False)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    eventually(lambda: any(shown[0] >= 1 for shown in folder_host.shown), 120)
    assert sd_scripts.trainers_in(tmp_path)
    asked = time.monotonic()
    folder_host.interrupt.set()
    thread.join(20)
    assert time.monotonic() - asked < 10
    assert isinstance(outcome[0], folder_host.Interrupted)
    assert not sd_scripts.trainers_in(tmp_path)


PARSE = """
import importlib, json, sys
sys.path.insert(0, "")
found = importlib.import_module(sys.argv[1]).setup_parser().parse_args(json.loads(sys.argv[2]))
print("\\n" + json.dumps({name: str(value) for name, value in vars(found).items()}))
"""


@pytest.mark.parametrize("vram", [0, 8, 12, 24, 80])
@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_every_option_is_one_of_the_scripts(architecture: str, vram: int, set_up: None, tmp_path: Path) -> None:
    image = DatasetImage("001.png", "/files/1", "0" * 64, 1, "mira woman")
    params = {**sd_scripts.PARAMS, "architecture": architecture, "sample_every_epochs": 1, "full_bf16": vram == 80}
    dataset = Dataset(
        "mira", 1, "--seed=1 'M' \"x\"", "mira", "woman", architecture, "base.safetensors", "kohya", "standard", "r1",
        params, "d1", 42, ("mira woman",), (image,),
    )  # fmt: skip
    resume = Resume(tmp_path / "state", 2, 1, {})
    job = Job(dataset, tmp_path / "base.safetensors", tmp_path, tmp_path / "out", 1, vram * 2**30, resume)
    command = kohya.command(job)
    script, *arguments = command.argv[1:]
    parse = tmp_path / "parse_train_options.py"
    parse.write_text(PARSE)
    call = [command.argv[0], str(parse), script.removesuffix(".py"), json.dumps(arguments)]
    ran = subprocess.run(call, cwd=command.cwd, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    options = json.loads(ran.stdout.splitlines()[-1])
    given = [argument.removeprefix("--").partition("=")[0] for argument in arguments]
    # argparse takes abbreviations too: every name has to be there in full.
    assert set(given) <= set(options)
    assert options["metadata_title"] == "--seed=1 'M' \"x\""
