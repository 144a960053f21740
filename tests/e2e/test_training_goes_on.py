"""A pod dies under a training: another pod goes on from the state that the first one handed over, and says so."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from comfy_nodes.training import kohya
from controlplane.client import Client
from controlplane.settings import REPOSITORY, Settings
from tests.api.api_server import Server, serving
from tests.comfy_nodes.conftest import make_lora
from tests.comfyui.random_checkpoint import write

pytestmark = pytest.mark.slow
REPLAY = REPOSITORY / "tests" / "comfy_nodes" / "replay_sd_scripts.py"
MODULE = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PATIENCE_SECONDS = 90.0
EPOCHS, STEPS = 8, 5
QUICK = {"heartbeat_seconds": 1.0, "suspect_after_seconds": 4.0, "lost_after_seconds": 8.0, "lease_seconds": 5.0}


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """The templates with a further base that kohya trains."""
    folder = tmp_path / "templates"
    shutil.copytree(REPOSITORY / "workflow_templates", folder)
    models = yaml.safe_load((folder / "models.yaml").read_text())
    sdxl = next(model for model in models if model["trainer"] == "kohya")
    changes = {
        "id": "sd15",
        "checkpoint": "stand_in_for_sd15.safetensors",
        "templates": {"train": "train_lora"},
        "min_image_side": 64,
    }
    models.append({**sdxl, **changes})
    (folder / "models.yaml").write_text(yaml.safe_dump(models))
    recipes = yaml.safe_load((folder / "recipes.yaml").read_text())
    saving = {"save_every_epochs": 1, "resumable": True, "restart_under_seconds": 0, "mixed_precision": "no"}
    params = {"architecture": "sd15", "views": EPOCHS, "epochs": EPOCHS, "batch_size": 1, "resolution": 64, **saving}
    recipes["sd15"] = {"standard": {"params": params}}
    (folder / "recipes.yaml").write_text(yaml.safe_dump(recipes))
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What makes a pod train with the stand-in for sd-scripts: first slowly, then at once."""
    scripts, tokenizers = tmp_path / "sd-scripts", tmp_path / "tokenizers"
    scripts.mkdir()
    for name in kohya.SCRIPTS.values():
        shutil.copy(REPLAY, scripts / name)
    for name in kohya.TOKENIZERS:
        (tokenizers / name).mkdir(parents=True)
        (tokenizers / name / "vocab.json").write_text("{}")
        (tokenizers / name / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    lora = tmp_path / "trained.safetensors"
    lora.write_bytes(make_lora((MODULE,), metadata={"modelspec.trigger_phrase": "mirab woman"}))
    runs = [{"lora": str(lora), "steps": STEPS, "save_seconds": 3.0}, {"lora": str(lora), "steps": STEPS}]
    (tmp_path / "plan.json").write_text(json.dumps(runs))
    return {
        "SD_SCRIPTS_DIR": str(scripts), "SD_SCRIPTS_PYTHON": sys.executable, "SD_SCRIPTS_TOKENIZERS": str(tokenizers),
        "REPLAY_PLAN": str(tmp_path / "plan.json"),
    }  # fmt: skip


@contextmanager
def pod(server: Server, folder: Path, base: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    checkpoints = folder / "models" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / base.name).hardlink_to(base)
    command = [sys.executable, "-m", "pod_images.embedded", "--engine", "tiny", "--data", str(folder)]
    command += ["--control-plane", server.url, "--labels", "train", "--name", folder.name]
    joining = {"TROUPE_JOIN_TOKEN": server.join_token, "TROUPE_WORK_DIR": str(folder)}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, **environment, **joining}, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def until(client: Client, job_id: str, true: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    end = time.monotonic() + PATIENCE_SECONDS
    while not true(job := await client.job(job_id)):
        assert job["status"] != "failed", job["error"]
        assert time.monotonic() < end, f"{job['status']}: {job['placement']} {job['attempts']} {job['progress']}"
        await asyncio.sleep(0.2)
    return job


async def pods_ready(client: Client, count: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while [one["state"] for one in (await client.get("/pods"))["items"]].count("ready") < count:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def test_a_training_goes_on_where_its_dead_pod_left_it(
    tmp_path: Path, templates: Path, environment: dict[str, str]
) -> None:
    base = tmp_path / "stand_in_for_sd15.safetensors"
    write("sd15", "fp16", base, values=False)
    settings = Settings(data=tmp_path / "data", port=0, templates=templates, _env_file=None, **QUICK)  # type: ignore[arg-type]
    with serving(settings) as server:
        async with Client(server.url) as client:
            with pod(server, tmp_path / "first", base, environment) as first:
                await pods_ready(client, 1)
                images = sorted((REPOSITORY / "examples" / "characters" / "captain-nell").glob("*.png"))[:STEPS]
                words = {"base_model": "sd15", "trigger_word": "mirab", "class_word": "woman"}
                answer = await client.create_character("Mira", images, words)
                job_id = answer["job"]["id"]
                # The state of the second epoch is handed over while the third is under way.
                await until(client, job_id, lambda job: (job["progress"].get("step") or 0) > 2 * STEPS)
                first.kill()
                first.wait()
            with pod(server, tmp_path / "second", base, environment):
                job = await until(client, job_id, lambda job: job["status"] in ("succeeded", "failed"))
    assert job["status"] == "succeeded", job["error"]
    assert [attempt["status"] for attempt in job["attempts"]] == ["lost", "succeeded"]
    second = json.loads((tmp_path / "run-1.json").read_text())
    step = int(second["options"]["initial_step"])
    assert step >= STEPS
    assert job["warnings"] == [f"training goes on from the state saved at step {step} (epoch {step // STEPS})"]
    assert job["progress"]["total_steps"] == EPOCHS * STEPS
