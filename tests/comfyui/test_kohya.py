"""TrainLoRA with the real sd-scripts inside a real ComfyUI: trained, told on the way, applied, and cancelled.

Needs COMFYUI_DIR, SD_SCRIPTS_DIR and SD_SCRIPTS_PYTHON, 9 GB of memory, 3 GB of disk and about three minutes; the
full-size SDXL needs 14 GB and 8 GB.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comfy_nodes.control_plane_double import POD_KEY, ControlPlaneServer, serving

from . import sd_scripts
from .graphs import WAIT_SECONDS, Graph, call, ended, node, submit, words_of
from .server import NO_COMFYUI, ComfyUI, checkout, start_comfyui

pytestmark = pytest.mark.slow
MODULES, SDXL_MODULES = 192, 722
SDXL_GIGABYTES = 14.0


class TrainingPod:
    """A ComfyUI with the trainer and the random base, and the control-plane double beside it."""

    def __init__(self, comfyui: ComfyUI, control_plane: ControlPlaneServer, work: Path) -> None:
        self.comfyui, self.control_plane, self.work = comfyui, control_plane, work

    def start(self, **params: Any) -> str:
        self.control_plane.add_dataset("mira", 1, sd_scripts.portraits(), **sd_scripts.dataset(**params))
        self.control_plane.uploads.clear()
        self.control_plane.reports.clear()
        prompt_id = self.control_plane.attempt = str(uuid.uuid4())
        base = str(params.get("architecture", "sd15"))
        inputs = {"character_id": "mira", "version": 1, "base": base, "recipe": "standard", "dataset_digest": "d1"}
        return submit(self.comfyui, {"1": node("TrainLoRA", **inputs)}, prompt_id)

    def end(self, prompt_id: str) -> dict[str, Any]:
        """The history entry; a training is given more time than a picture."""
        deadline = time.monotonic() + 5 * WAIT_SECONDS
        while prompt_id in str(call(self.comfyui, "/queue")) and time.monotonic() < deadline:
            time.sleep(0.5)
        return ended(self.comfyui, prompt_id)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = call(self.comfyui, "/troupe/state")
        return found


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingPod]:
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    if not sd_scripts.given():
        pytest.skip(sd_scripts.NO_SD_SCRIPTS)
    base = tmp_path_factory.mktemp("kohya")
    (base / "work").mkdir()
    with serving(ControlPlaneServer("")) as control_plane, sd_scripts.random_base(base) as checkpoint:
        environment = {
            "TROUPE_CONTROL_PLANE_URL": control_plane.url,
            "TROUPE_POD_KEY": POD_KEY,
            "TROUPE_WORK_DIR": str(base / "work"),
            "TROUPE_TRAINER_THREADS": "1",
            "TROUPE_LORA_CACHE_DIR": str(base / "lora_cache"),
            "SD_SCRIPTS_TOKENIZERS": str(sd_scripts.make_tokenizers(base / "tokenizers")),
        }
        with start_comfyui(base, environment, checkpoints=[checkpoint]) as comfyui:
            yield TrainingPod(comfyui, control_plane, base / "work")


def test_the_pod_says_that_it_can_train_with_kohya(pod: TrainingPod) -> None:
    assert "kohya" in pod.state()["trainers"]


def picture_with(character: dict[str, Any]) -> Graph:
    """One tiny picture of one step: it is enough to put the LoRA on the model."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=sd_scripts.CHECKPOINT),
        "9": node("CharacterLoRALoader", model=["1", 0], clip=["1", 1], **character),
        "2": node("CLIPTextEncode", text="mira woman", clip=["9", 1]),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": node(
            "KSampler", seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0,
            model=["9", 0], positive=["2", 0], negative=["2", 0], latent_image=["4", 0],
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("S3Save", images=["6", 0], name="picture", format="png"),
    }  # fmt: skip


def test_a_training_in_comfyui_ends_with_a_lora_that_comfyui_applies_whole(pod: TrainingPod) -> None:
    prompt_id = pod.start()
    ages: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            state = pod.state()
            if state["node_class"] == "TrainLoRA":
                ages.append(state["beat_age_seconds"])

    watching = threading.Thread(target=watch)
    watching.start()
    entry = pod.end(prompt_id)
    over.set()
    watching.join()
    assert entry["status"]["status_str"] == "success", words_of(entry)
    lora = entry["outputs"]["1"]["lora"][0]
    assert (lora["steps"], lora["matched"], lora["total"], lora["warnings"]) == (6, MODULES, MODULES, [])
    assert len(ages) > 5
    assert max(ages) < 12

    uploads = pod.control_plane.uploads
    kinds = [upload["kind"] for upload in uploads]
    assert kinds.count("checkpoint") == 2
    assert kinds[-1] == "lora"
    content = pod.control_plane.files[f"{len(uploads) - 1}-mira-v1.safetensors"]
    sha256 = pod.control_plane.add_lora("mira", 1, content, base="sd15")
    assert sha256 == lora["sha256"]
    pod.control_plane.attempt = str(uuid.uuid4())
    character = {"character_id": "mira", "version": 1, "strength": 1.0, "sha256": sha256}
    painted = pod.end(submit(pod.comfyui, picture_with(character), pod.control_plane.attempt))
    assert painted["status"]["status_str"] == "success", words_of(painted)
    applied = painted["outputs"]["9"]["character"][0]
    assert (applied["matched"], applied["total"]) == (MODULES, MODULES)


def test_a_cancel_reaches_the_running_trainer_within_ten_seconds(pod: TrainingPod) -> None:
    prompt_id = pod.start(epochs=50, views=50, save_every_epochs=0, resumable=False)
    deadline = time.monotonic() + 3 * WAIT_SECONDS
    while not any(report["phase"] == "training" and report["step"] for report in pod.control_plane.reports):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert sd_scripts.trainers_in(pod.work)
    asked = time.monotonic()
    call(pod.comfyui, "/interrupt", {})
    while sd_scripts.trainers_in(pod.work):
        assert time.monotonic() - asked < 10
        time.sleep(0.1)
    entry = pod.end(prompt_id)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    assert list(pod.work.iterdir()) == []


def test_a_full_size_sdxl_is_trained_where_there_is_the_memory(pod: TrainingPod) -> None:
    memory, disk = sd_scripts.free_gigabytes(pod.work)
    if memory < SDXL_GIGABYTES or disk < 8:
        pytest.skip(
            f"a full-size SDXL needs {SDXL_GIGABYTES:.0f} GB of memory and 8 GB of disk ({memory:.0f}, {disk:.0f})"
        )
    with sd_scripts.random_base(pod.comfyui.base / "models" / "checkpoints", "sdxl"):
        small = {"epochs": 1, "views": 1, "batch_size": 1, "mixed_precision": "bf16", "full_bf16": True}
        entry = pod.end(pod.start(architecture="sdxl", save_every_epochs=0, resumable=False, **small))
    assert entry["status"]["status_str"] == "success", words_of(entry)
    lora = entry["outputs"]["1"]["lora"][0]
    assert (lora["steps"], lora["matched"], lora["total"]) == (4, SDXL_MODULES, SDXL_MODULES)
