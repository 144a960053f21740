"""TrainLoRA with the sketch base's own trainer on a miniature of it: the two must agree on every file and line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from comfy_nodes.lora_file import read_header
from comfy_nodes.sketch import checkpoint
from comfy_nodes.sketch.architecture import SketchArchitecture
from comfy_nodes.train_lora import TrainLoRA
from comfy_nodes.training.failure import TrainerError
from comfy_nodes.training.trainers import available

pytestmark = pytest.mark.slow
MINIATURE = SketchArchitecture(
    image_size=64,
    unet_channels=(32, 64),
    vae_width=32,
    vae_encoder_blocks=(1, 1, 1, 1),
    vae_decoder_blocks=(1, 1, 1, 1),
)


def portrait(shade: int) -> bytes:
    image = Image.new("RGB", (64, 64), (40, 80, shade))
    ImageDraw.Draw(image).ellipse((16, 8, 48, 56), fill=(240, 200, shade))
    body = io.BytesIO()
    image.save(body, "PNG")
    return body.getvalue()


@pytest.fixture
def pod(linked: Any, folder_host: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pod with a random miniature of the base, and a version of four images that waits for its training."""
    torch.manual_seed(0)
    path = folder_host.root / "models" / "checkpoints" / "sketch_base.safetensors"
    path.parent.mkdir(parents=True)
    checkpoint.save(MINIATURE.build(), path, {}, MINIATURE)
    monkeypatch.setenv("TROUPE_TRAINER_THREADS", "1")
    return linked


def train(server: Any, **params: Any) -> dict[str, Any]:
    recipe = {"name": "fast", "digest": "r1", "params": {"rank": 2, "alpha": 2, "batch_size": 2, "views": 1, **params}}
    images = {f"{number:03}.png": portrait(60 * number) for number in range(1, 5)}
    server.add_dataset("mira", 1, images, recipe=recipe)
    return TrainLoRA().train("mira", 1, "sketch", "fast")


def test_a_real_training_ends_with_a_lora_that_passes(pod: Any, tmp_path: Path) -> None:
    (lora,) = train(pod, steps=3, sample_every=3)["ui"]["lora"]
    assert (lora["steps"], lora["rank"], lora["warnings"]) == (3, 2, [])
    assert lora["matched"] == lora["total"] > 10
    assert lora["final_loss"] > 0
    kinds = [upload["kind"] for upload in pod.uploads]
    assert sorted(kinds) == ["lora", "sample"]
    path = tmp_path / "lora.safetensors"
    path.write_bytes(pod.files[f"{kinds.index('lora')}-mira-v1.safetensors"])
    metadata = read_header(path).metadata
    assert metadata["modelspec.trigger_phrase"] == "mira woman"
    assert metadata["ss_base_model_version"] == "troupe_sketch"
    assert metadata["troupe.dataset_digest"] == "d1"


def test_a_learning_rate_without_bound_is_a_diverged_loss(pod: Any) -> None:
    with pytest.raises(TrainerError, match=r"^loss_diverged: "):
        train(pod, steps=20, learning_rate=1e30, warmup=0.0, gradient_norm=1e30)


def test_a_recipe_that_the_trainer_does_not_know_is_named(pod: Any) -> None:
    with pytest.raises(TrainerError, match=r"^bad_recipe: .*stepz"):
        train(pod, stepz=3)


def test_this_environment_can_train_the_sketch_base() -> None:
    assert available() == ["sketch"]
