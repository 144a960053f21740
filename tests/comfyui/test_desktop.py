"""The pack on an artist's desktop: a real ComfyUI without a control plane, LoRAs by name, files in output/."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from tests.comfy_nodes.s3_double import CREDENTIALS, SECRET_KEY, S3Double, s3_double

from .conftest import SKETCH_CHECKPOINT
from .graphs import call, ended, node, picture, run, saved_files, submit, words_of
from .loras import layer_shapes, lora
from .server import NO_COMFYUI, ComfyUI, checkout, start_comfyui

PROMPT = "nellq captain, portrait"


def by_name(name: str, **changes: Any) -> dict[str, Any]:
    return {"character_id": name, "version": 0, "strength": 1.0, **changes}


@pytest.fixture(scope="module")
def loras(comfyui: ComfyUI) -> Path:
    """models/loras with one file of ours in a subfolder."""
    folder = comfyui.base / "models" / "loras"
    (folder / "chars").mkdir(exist_ok=True)
    (folder / "chars" / "nell.safetensors").write_bytes(lora(1))
    return folder


def test_a_lora_is_taken_from_models_loras_by_its_name(comfyui: ComfyUI, loras: Path) -> None:
    said = run(comfyui, picture(PROMPT, steps=1, character=by_name("chars/nell")))["9"]["character"][0]
    assert (said["matched"], said["total"], said["trigger"]) == (len(layer_shapes()),) * 2 + ("nellq captain",)


def test_a_lora_that_is_not_there_is_named(comfyui: ComfyUI, loras: Path) -> None:
    entry = ended(comfyui, submit(comfyui, picture(PROMPT, character=by_name("nobody"))))
    assert "models/loras has no file nobody.safetensors" in words_of(entry)


def test_no_name_leads_out_of_models_loras(comfyui: ComfyUI, loras: Path) -> None:
    entry = ended(comfyui, submit(comfyui, picture(PROMPT, character=by_name("../checkpoints/sketch_base"))))
    assert "not the name of a LoRA file" in words_of(entry)


def test_a_file_that_was_overwritten_in_place_is_read_again(comfyui: ComfyUI, loras: Path) -> None:
    graph = picture(PROMPT, steps=2, character=by_name("other"))
    (loras / "other.safetensors").write_bytes(lora(2))
    before = saved_files(comfyui, run(comfyui, graph))
    (loras / "other.safetensors").write_bytes(lora(3))
    assert saved_files(comfyui, run(comfyui, graph)) != before


def test_a_second_run_writes_a_second_file(comfyui: ComfyUI) -> None:
    graph = picture(PROMPT, steps=1)
    first, second = (run(comfyui, graph)["7"]["images"][0]["filename"] for _ in range(2))
    assert first != second


def test_comfyui_can_show_what_was_saved(comfyui: ComfyUI) -> None:
    file = run(comfyui, picture(PROMPT, steps=1))["7"]["images"][0]
    listed = call(comfyui, "/history")
    assert any(file in (entry["outputs"].get("7") or {}).get("images", []) for entry in listed.values())


def test_a_saved_picture_carries_the_graph_that_comfyui_opens(comfyui: ComfyUI) -> None:
    content = saved_files(comfyui, run(comfyui, picture(PROMPT, steps=1)))[0]
    assert PROMPT in Image.open(io.BytesIO(content)).info["prompt"]


def test_a_batch_becomes_a_video(comfyui: ComfyUI) -> None:
    graph = picture(PROMPT, steps=1)
    graph["4"]["inputs"]["batch_size"] = 3
    graph["7"] = node("S3Save", images=["6", 0], name="film", format="mp4", fps=4.0)
    with av.open(io.BytesIO(saved_files(comfyui, run(comfyui, graph))[0])) as film:
        assert len(list(film.decode(video=0))) == 3


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ComfyUI, S3Double]]:
    """A ComfyUI whose user named a bucket."""
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    with s3_double() as store:
        environment = {
            **CREDENTIALS,
            "TROUPE_S3_BUCKET": "art",
            "TROUPE_S3_ENDPOINT": store.url,
            "TROUPE_S3_PUBLIC_BASE": "https://cdn.example",
        }
        base = tmp_path_factory.mktemp("bucket")
        with start_comfyui(base, environment, checkpoints=[SKETCH_CHECKPOINT]) as running:
            yield running, store


def test_a_picture_lies_in_the_users_bucket_too(bucket: tuple[ComfyUI, S3Double]) -> None:
    comfyui, store = bucket
    outputs = run(comfyui, picture(PROMPT, steps=1))
    key = outputs["7"]["assets"][0]["key"]
    assert store.objects[f"art/{key}"] == saved_files(comfyui, outputs)[0]


def test_the_buckets_secret_is_in_nothing_that_comfyui_shows(bucket: tuple[ComfyUI, S3Double]) -> None:
    comfyui, _ = bucket
    outputs = run(comfyui, picture(PROMPT, steps=1))
    shown = str([call(comfyui, "/history"), call(comfyui, "/troupe/state")]) + comfyui.log.read_text(errors="replace")
    assert SECRET_KEY not in shown
    assert SECRET_KEY.encode() not in saved_files(comfyui, outputs)[0]
