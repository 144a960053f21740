"""TrainLoRA from the dataset to the uploaded file, with a real trainer process and a control plane over real HTTP."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfy_nodes.sketch.lora import known_names
from comfy_nodes.train_lora import TrainLoRA
from comfy_nodes.training import sketch
from comfy_nodes.training.failure import TrainerError
from comfy_nodes.training.verify import verify_lora
from comfy_nodes.transport import TransportError

REPLAY = Path(__file__).with_name("replay_trainer.py")
MODULES = tuple(sorted(name for name in known_names() if name.startswith("lora_unet_"))[:3])


def png(shade: int) -> bytes:
    body = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 0, 0)).save(body, "PNG")
    return body.getvalue()


class Bench:
    """A version that is to be trained, on a pod whose trainer is the replaying one."""

    def __init__(self, server: Any, host: Any, folder: Path) -> None:
        self.server, self.host, self.folder = server, host, folder
        self.images = {f"{number:03}.png": png(number) for number in range(1, 6)}

    def prepare(self, lora: bytes | None = None, dataset: dict[str, Any] | None = None, **params: Any) -> None:
        if lora is not None:
            path = self.folder / "result.safetensors"
            path.write_bytes(lora)
            params["lora"] = str(path)
        recipe = {"name": "fast", "digest": "r1", "params": {"behaviour": "train", **params}}
        self.server.add_dataset("mira", 1, self.images, **{"recipe": recipe, **(dataset or {})})

    def train(self, **changes: Any) -> dict[str, Any]:
        inputs = {"character_id": "mira", "version": 1, "base": "sketch", "recipe": "fast", "dataset_digest": "d1"}
        return TrainLoRA().train(**{**inputs, **changes})


@pytest.fixture
def lora_bytes(lora_bytes: Any) -> Any:
    """LoRAs as a trainer writes them, with the trigger in the file."""
    return functools.partial(lora_bytes, metadata={"modelspec.trigger_phrase": "mira woman"})


@pytest.fixture
def bench(linked: Any, folder_host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora_bytes: Any) -> Bench:
    monkeypatch.setattr(sketch, "SCRIPT", REPLAY)
    monkeypatch.setenv("TROUPE_TRAINER_THREADS", "3")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("TROUPE_WORK_DIR", str(work))
    checkpoint = folder_host.root / "models" / "checkpoints" / "sketch_base.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(lora_bytes(("a_base",)))
    return Bench(linked, folder_host, tmp_path)


def test_the_trained_lora_is_uploaded_and_described(bench: Bench, lora_bytes: Any) -> None:
    content = lora_bytes(MODULES, rank=4)
    bench.prepare(content, steps=3)
    answer = bench.train()
    sha256 = hashlib.sha256(content).hexdigest()
    assert answer == {
        "ui": {
            "lora": [
                {
                    "asset_id": "asset_0",
                    "url": "https://cdn.example/0-mira-v1.safetensors",
                    "sha256": sha256,
                    "bytes": len(content),
                    "steps": 3,
                    "final_loss": 0.333,
                    "rank": 4,
                    "matched": 3,
                    "total": 3,
                    "trigger": "mira woman",
                    "warnings": [],
                }
            ]
        },
        "result": (sha256,),
    }


def test_the_stored_file_is_the_trainers(bench: Bench, lora_bytes: Any) -> None:
    content = lora_bytes(MODULES)
    bench.prepare(content)
    bench.train()
    assert bench.server.files["0-mira-v1.safetensors"] == content


def test_the_trainer_gets_images_captions_and_its_whole_job(bench: Bench, lora_bytes: Any) -> None:
    note = bench.folder / "note.json"
    bench.prepare(lora_bytes(MODULES), note_captions=str(note))
    bench.train()
    told = json.loads(note.read_text())
    assert told["captions"] == dict.fromkeys(bench.images, "mira woman, smiling\n")
    job = told["job"]
    assert (job["seed"], job["trigger"], job["class_word"], job["threads"]) == (42, "mira", "woman", 3)
    assert job["metadata"]["modelspec.trigger_phrase"] == "mira woman"
    assert job["metadata"]["troupe.dataset_digest"] == "d1"
    assert told["env"]["OMP_NUM_THREADS"] == "3"


def test_a_caption_without_the_trigger_gets_it_as_its_first_words(bench: Bench, lora_bytes: Any) -> None:
    note = bench.folder / "note.json"
    bench.prepare(lora_bytes(MODULES), note_captions=str(note))
    dataset = bench.server.datasets["mira", 1]
    dataset["images"][0]["caption"] = "smiling,\n  red coat"
    dataset["images"][1]["caption"] = ""
    bench.train()
    captions = json.loads(note.read_text())["captions"]
    assert captions["001.png"] == "mira woman, smiling, red coat\n"
    assert captions["002.png"] == "mira woman\n"


def test_progress_reaches_the_control_plane_in_order(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES), steps=4, step_seconds=0.9)
    bench.train()
    reports = bench.server.reports
    assert [report["seq"] for report in reports] == list(range(1, len(reports) + 1))
    training = [report for report in reports if report["phase"] == "training" and report["step"]]
    assert training
    assert training[0]["total_steps"] == 4
    assert training[-1]["loss"] == pytest.approx(1 / training[-1]["step"], abs=0.01)


def test_progress_reaches_the_websocket_step_by_step(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES), steps=3)
    bench.train()
    assert [shown[:2] for shown in bench.host.shown] == [(1, 3), (2, 3), (3, 3)]


def test_sample_images_are_uploaded_shown_and_reported(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES), steps=2, sample=True, step_seconds=0.2)
    bench.train()
    samples = [upload for upload in bench.server.uploads if upload["kind"] == "sample"]
    assert [(upload["index"], upload["width"], upload["media_type"]) for upload in samples] == [
        (0, 16, "image/png"),
        (1, 16, "image/png"),
    ]
    assert any(preview for _value, _total, preview in bench.host.shown)
    told = {report["sample_asset_id"] for report in bench.server.reports} - {None}
    assert len(told) == 2


def test_a_sample_that_cannot_be_stored_is_a_warning(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES), steps=1, sample=True)
    bench.server.faults["/files/0-lora_000001"] = [413]
    (lora,) = bench.train()["ui"]["lora"]
    assert "was not kept" in lora["warnings"][0]


def test_a_partial_match_is_a_warning(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes((*MODULES, "lora_unet_nowhere")))
    (lora,) = bench.train()["ui"]["lora"]
    assert (lora["matched"], lora["total"]) == (3, 4)
    assert "1 modules" in lora["warnings"][0]


def test_the_hosts_memory_is_freed_before_the_training(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES))
    bench.train()
    assert bench.host.freed == 1


@pytest.mark.parametrize("rc", [0, 1])
def test_nothing_is_left_on_the_disk(rc: int, bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES), rc=rc)
    if rc:
        with pytest.raises(TrainerError):
            bench.train()
    else:
        bench.train()
    assert list((bench.folder / "work").iterdir()) == []


def test_an_interrupt_reaches_a_trainer_that_says_nothing(bench: Bench, lora_bytes: Any, eventually: Any) -> None:
    pid = bench.folder / "pid"
    bench.prepare(lora_bytes(MODULES), steps=1, step_seconds=60, note_pid=str(pid))
    outcome: list[tuple[BaseException, float]] = []

    def work() -> None:
        try:
            bench.train()
        except Exception as error:
            outcome.append((error, time.monotonic()))

    thread = threading.Thread(target=work)
    thread.start()
    eventually(pid.exists)
    asked = time.monotonic()
    bench.host.interrupt.set()
    thread.join(10)
    error, ended = outcome[0]
    assert isinstance(error, bench.host.Interrupted)
    assert ended - asked < 10  # looked for four times a second; the rest is a slow machine's
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_cancel_told_by_the_control_plane_ends_the_training(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES), steps=1, step_seconds=60)
    bench.server.cancel = True
    with pytest.raises(TrainerError, match="cancelled: the job was cancelled"):
        bench.train()


def test_an_attempt_that_is_no_longer_wanted_ends(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES), steps=1, step_seconds=60)
    bench.server.attempt = "another"
    with pytest.raises(TrainerError, match="no longer wants this attempt"):
        bench.train()


def test_reports_that_are_not_taken_do_not_disturb_the_training(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES), steps=2, step_seconds=0.7)
    bench.server.faults["/pods/self/attempts"] = [500, 0, 401]
    assert bench.train()["ui"]["lora"][0]["steps"] == 2


def test_a_loss_that_is_no_number_ends_the_training(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES), steps=100, step_seconds=0.1, losses={"2": "nan"})
    with pytest.raises(TrainerError, match="loss_diverged"):
        bench.train()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({"modules": ("lora_unet_nowhere",)}, "wrong_base"),
        ({"modules": MODULES, "up": 0.0}, "untrained"),
        ({"modules": MODULES, "up": math.nan}, "not_finite"),
        ({"modules": MODULES, "up": math.inf}, "not_finite"),
        ({"modules": ()}, "bad_lora"),
    ],
)
def test_a_bad_result_is_never_uploaded(content: dict[str, Any], code: str, bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(**content))
    with pytest.raises(TrainerError, match=f"^{code}: "):
        bench.train()
    assert bench.server.uploads == []


def test_a_truncated_result_is_refused(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES)[:-8])
    with pytest.raises(TrainerError, match=r"^bad_lora: .*truncated"):
        bench.train()


def test_a_trainer_that_ends_well_without_a_file_has_failed(bench: Bench) -> None:
    bench.prepare()
    with pytest.raises(TrainerError, match=r"^no_output"):
        bench.train()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"base": "sdxl"}, "made for base sdxl, the version now has sketch"),
        ({"recipe": "quality"}, "made for recipe quality, the version now has fast"),
        ({"dataset_digest": "d0"}, "made for dataset d0, the version now has d1"),
    ],
)
def test_a_version_that_changed_since_the_job_was_made_is_not_trained(
    inputs: dict[str, str], words: str, bench: Bench, lora_bytes: Any
) -> None:
    bench.prepare(lora_bytes(MODULES))
    with pytest.raises(TrainerError, match=words):
        bench.train(**inputs)


def test_a_base_that_the_pod_lacks_is_named(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES), dataset={"checkpoint": "other.safetensors"})
    with pytest.raises(TrainerError, match=r"missing_checkpoint: .*other\.safetensors"):
        bench.train()


def test_a_trainer_that_the_pod_lacks_is_named(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES), dataset={"trainer": "quantum"})
    with pytest.raises(TrainerError, match="no trainer quantum"):
        bench.train()


def test_an_interpreter_that_is_missing_is_told_before_anything_is_downloaded(
    bench: Bench, lora_bytes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.prepare(lora_bytes(MODULES))
    monkeypatch.setenv("TROUPE_SKETCH_PYTHON", "/nowhere/python")
    with pytest.raises(TrainerError, match="names no interpreter"):
        bench.train()
    assert bench.server.downloads == []


def test_an_image_that_is_not_the_stored_one_is_refused(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES))
    bench.server.files["002.png"] = png(99)
    with pytest.raises(TrainerError, match=r"002\.png"):
        bench.train()


def test_an_image_download_that_breaks_is_tried_again(bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES))
    bench.server.cuts["003.png"] = [10]
    assert bench.train()["ui"]["lora"][0]["matched"] == 3


@pytest.mark.parametrize("name", ["../evil.png", "a/b.png", ".png", "x.exe"])
def test_an_image_name_cannot_leave_the_folder(name: str, bench: Bench, lora_bytes: Any) -> None:
    bench.prepare(lora_bytes(MODULES))
    bench.server.datasets["mira", 1]["images"][0]["name"] = name
    with pytest.raises(TrainerError, match="not a name"):
        bench.train()


def test_a_dataset_without_images_is_no_dataset(bench: Bench, lora_bytes: Any) -> None:
    bench.images = {}
    bench.prepare(lora_bytes(MODULES))
    with pytest.raises(TrainerError, match="no_data"):
        bench.train()


def test_without_a_control_plane_the_node_says_what_it_needs(unlinked: None, folder_host: Any) -> None:
    with pytest.raises(RuntimeError, match="TROUPE_CONTROL_PLANE_URL"):
        TrainLoRA().train("mira", 1, "sketch", "fast")


def test_an_unknown_version_is_told_in_the_control_planes_words(bench: Bench) -> None:
    with pytest.raises(TransportError, match="no such version"):
        bench.train(version=7)


def test_the_rank_is_the_most_common_one(tmp_path: Path, lora_bytes: Any) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(lora_bytes(MODULES, rank=8))
    assert verify_lora(path, frozenset(MODULES)).rank == 8


def test_it_always_runs_again() -> None:
    assert math.isnan(TrainLoRA.IS_CHANGED())
