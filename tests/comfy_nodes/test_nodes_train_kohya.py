"""TrainLoRA with kohya's sd-scripts: a process that takes its arguments, prints its logs and writes its files."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import shutil
import struct
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfy_nodes import state
from comfy_nodes.train_lora import TrainLoRA
from comfy_nodes.training import kohya, session
from comfy_nodes.training.failure import TrainerError

HERE = Path(__file__).parent
TRIGGER = "mira woman"
MODULES = tuple(f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn{n}_to_q" for n in (1, 2))
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
PARAMS = {"architecture": "sd15", "views": 2, "epochs": 2, "batch_size": 2, "resolution": 512, "rank": 4, "alpha": 4}


SAVING: dict[str, Any] = {"save_every_epochs": 1, "resumable": True, "restart_under_seconds": 0}
GOING_ON = {"epochs": 3, **SAVING}


def png(shade: int) -> bytes:
    body = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 0, 0)).save(body, "PNG")
    return body.getvalue()


def base_file() -> bytes:
    """A checkpoint of SD1.5 in names, with two layers that a LoRA may change."""
    block = "model.diffusion_model.middle_block.1.transformer_blocks.0"
    entry = {"dtype": "F16", "shape": [2, 2]}
    header = json.dumps(
        {
            f"{block}.attn1.to_q.weight": {**entry, "data_offsets": [0, 8]},
            f"{block}.attn2.to_q.weight": {**entry, "data_offsets": [8, 16]},
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


class Bench:
    """A version that is to be trained with kohya, and the plan of the runs of a stand-in for sd-scripts."""

    def __init__(self, server: Any, host: Any, folder: Path, lora: bytes) -> None:
        self.server, self.host, self.folder = server, host, folder
        self.lora = folder / "trained.safetensors"
        self.lora.write_bytes(lora)
        self.images = {f"{number:03}.png": png(40 * number) for number in range(1, 5)}

    def prepare(self, *runs: dict[str, Any], dataset: dict[str, Any] | None = None, **params: Any) -> None:
        plan = [{"lora": str(self.lora), **run} for run in runs]
        (self.folder / "plan.json").write_text(json.dumps(plan))
        recipe = {"name": "standard", "digest": "r1", "params": {**PARAMS, **params}}
        given = {"base": "sd15", "checkpoint": "sd15.safetensors", "trainer": "kohya", "recipe": recipe}
        self.server.add_dataset("mira", 1, self.images, **given, **(dataset or {}))

    def train(self) -> dict[str, Any]:
        found: dict[str, Any] = TrainLoRA().train("mira", 1, "sd15", "standard")["ui"]["lora"][0]
        return found

    def run(self, number: int) -> dict[str, Any]:
        """What the script was given in a run."""
        found: dict[str, Any] = json.loads((self.folder / f"run-{number}.json").read_text())
        return found

    def notes(self) -> list[str]:
        return [report["note"] for report in self.server.reports if report["note"]]

    def uploads(self, kind: str) -> list[dict[str, Any]]:
        return [upload for upload in self.server.uploads if upload["kind"] == kind]

    def stored(self, upload: dict[str, Any]) -> bytes:
        content: bytes = self.server.files[f"{self.server.uploads.index(upload)}-{upload['name']}"]
        return content


@pytest.fixture
def tokenizers(tmp_path: Path) -> Path:
    for name in kohya.TOKENIZERS:
        folder = tmp_path / "tokenizers" / name
        folder.mkdir(parents=True)
        (folder / "vocab.json").write_text("{}")
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    return tmp_path / "tokenizers"


@pytest.fixture
def bench(
    linked: Any, folder_host: Any, tmp_path: Path, tokenizers: Path, monkeypatch: pytest.MonkeyPatch, lora_bytes: Any
) -> Bench:
    scripts = tmp_path / "sd-scripts"
    scripts.mkdir()
    for name in kohya.SCRIPTS.values():
        shutil.copy(HERE / "replay_sd_scripts.py", scripts / name)
    work = tmp_path / "work"
    work.mkdir()
    for variable, value in {
        "SD_SCRIPTS_DIR": scripts, "SD_SCRIPTS_PYTHON": sys.executable, "SD_SCRIPTS_TOKENIZERS": tokenizers,
        "REPLAY_PLAN": tmp_path / "plan.json", "TROUPE_TRAINER_THREADS": "3", "TROUPE_WORK_DIR": work,
    }.items():  # fmt: skip
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setattr(session, "LOOK_SECONDS", 0.05)
    checkpoint = folder_host.root / "models" / "checkpoints" / "sd15.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(base_file())
    trained = functools.partial(lora_bytes, MODULES, metadata={"modelspec.trigger_phrase": TRIGGER})
    return Bench(linked, folder_host, tmp_path, trained())


def test_a_training_ends_with_its_lora_uploaded(bench: Bench) -> None:
    bench.prepare({"steps": 4})
    lora = bench.train()
    assert (lora["steps"], lora["matched"], lora["total"], lora["warnings"]) == (8, 2, 2, [])
    assert bench.stored(bench.uploads("lora")[0]) == bench.lora.read_bytes()


@pytest.mark.parametrize(("architecture", "script"), [("sd15", "train_network.py"), ("sdxl", "sdxl_train_network.py")])
def test_each_architecture_has_its_script(architecture: str, script: str, bench: Bench) -> None:
    bench.prepare({}, architecture=architecture)
    bench.train()
    assert bench.run(0)["script"] == script


def test_the_dataset_is_one_flat_folder_with_captions_in_text_files(bench: Bench) -> None:
    bench.prepare({})
    bench.train()
    dataset = bench.run(0)["files"]["dataset_config"]
    assert dataset["general"] == {"caption_extension": ".txt", "shuffle_caption": False}
    (one,) = dataset["datasets"]
    assert (one["resolution"], one["batch_size"], one["enable_bucket"], one["bucket_reso_steps"]) == (
        [512, 512], 2, True, 64,
    )  # fmt: skip
    assert one["subsets"][0]["num_repeats"] == 1


@pytest.mark.parametrize(
    "name",
    [
        'Mira "M"',
        "--seed 1",
        "a\\b\\",
        "$(touch x); `id`",
        "#1 [x] = 'y'",
        "ミラ 😀",
        "two\nlines\ttab",
        "e\u0301\u2028\x7f",
    ],
)
def test_a_name_reaches_the_trainer_as_it_is_and_as_one_argument(name: str, bench: Bench) -> None:
    bench.prepare({}, dataset={"name": name})
    bench.train()
    assert f"--metadata_title={name}" in bench.run(0)["argv"]


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_what_no_argument_can_hold_is_left_out_of_a_name(name: str, bench: Bench) -> None:
    bench.prepare({}, dataset={"name": name})
    bench.train()
    assert bench.run(0)["options"]["metadata_title"] in ("ab", "a?b")


def test_the_lora_file_is_told_its_trigger_and_what_made_it(bench: Bench) -> None:
    bench.prepare({})
    bench.train()
    words = bench.run(0)["options"]
    assert words["metadata_trigger_phrase"] == TRIGGER
    assert json.loads(words["training_comment"])["troupe.dataset_digest"] == "d1"


def test_a_lora_that_does_not_carry_its_trigger_is_refused(bench: Bench, lora_bytes: Any) -> None:
    bench.lora.write_bytes(lora_bytes(MODULES, metadata={"modelspec.trigger_phrase": "other"}))
    bench.prepare({})
    with pytest.raises(TrainerError, match=r"^bad_lora: .*trigger"):
        bench.train()


def test_a_lora_of_another_base_is_refused(bench: Bench, lora_bytes: Any) -> None:
    bench.lora.write_bytes(lora_bytes(("lora_unet_input_blocks_4_1_proj_in",)))
    bench.prepare({})
    with pytest.raises(TrainerError, match=r"^wrong_base"):
        bench.train()
    assert bench.uploads("lora") == []


def test_samples_are_asked_for_in_a_file_and_uploaded_as_they_appear(bench: Bench) -> None:
    bench.prepare({}, sample_every_epochs=1, dataset={"sample_prompts": ["mira woman --cn /etc/passwd", "b", "c"]})
    bench.train()
    prompts = bench.run(0)["files"]["sample_prompts"]
    assert [prompt["prompt"] for prompt in prompts] == ["mira woman --cn /etc/passwd", "b"]
    assert [upload["index"] for upload in bench.uploads("sample")] == [0, 1, 2, 3]
    assert any(preview for _value, _total, preview in bench.host.shown)


def test_checkpoints_are_uploaded_while_the_training_goes_on(bench: Bench) -> None:
    bench.prepare({"save_seconds": 1.0}, epochs=3, save_every_epochs=1)
    bench.train()
    assert [(one["name"], one["index"]) for one in bench.uploads("checkpoint")] == [
        ("lora-000001.safetensors", 1), ("lora-000002.safetensors", 2),
    ]  # fmt: skip
    assert [upload["kind"] for upload in bench.server.uploads][-1] == "lora"
    told = {report["checkpoint_asset_id"] for report in bench.server.reports} - {None}
    assert len(told) == 2


def test_a_checkpoint_that_cannot_be_stored_is_a_warning(bench: Bench) -> None:
    bench.prepare({"save_seconds": 0.5}, epochs=2, save_every_epochs=1)
    bench.server.faults["/files/0-lora-000001"] = [413]
    assert "was not kept" in bench.train()["warnings"][0]


def test_the_state_is_uploaded_with_its_standing(bench: Bench) -> None:
    bench.prepare({"save_seconds": 1.0, "steps": 5}, epochs=3, **SAVING)
    bench.train()
    states = bench.uploads("state")
    assert [one["name"] for one in states] == ["state-e000001-s00000005.tar", "state-e000002-s00000010.tar"]
    with tarfile.open(fileobj=io.BytesIO(bench.stored(states[1]))) as archive:
        note = json.load(archive.extractfile("troupe.json"))  # type: ignore[arg-type]
        assert "state/random_states_0.pkl" in archive.getnames()
    assert (note["epoch"], note["step"], note["settings"]["rank"]) == (2, 10, 4)


def test_without_a_resumable_recipe_no_state_is_kept(bench: Bench) -> None:
    bench.prepare({"save_seconds": 0.3}, epochs=3, save_every_epochs=1)
    bench.train()
    assert "save_state" not in bench.run(0)["options"]


@pytest.mark.parametrize(("limit", "states"), [(15, 2), (16, 0)])
def test_a_training_that_is_soon_done_again_hands_no_state_over(limit: int, states: int, bench: Bench) -> None:
    # 15 steps of one second each, says the bar.
    params = {**SAVING, "restart_under_seconds": limit}
    bench.prepare({"save_seconds": 1.0, "steps": 5}, epochs=3, **params)
    bench.train()
    assert len(bench.uploads("state")) == states


def saved_state(bench: Bench, **params: Any) -> dict[str, Any]:
    """Train once, and put its newest state into the dataset's answer as the control plane does for a retry."""
    bench.prepare({"save_seconds": 0.6, "steps": 5}, **GOING_ON, **params)
    bench.train()
    upload = bench.uploads("state")[-1]
    content = bench.stored(upload)
    bench.server.files["state.tar"] = content
    sha256 = hashlib.sha256(content).hexdigest()
    (bench.folder / "run-0.json").unlink()
    bench.server.uploads.clear()
    bench.server.reports.clear()
    return {"step": 10, "epoch": 2, "url": "/files/state.tar", "sha256": sha256, "bytes": len(content)}


def test_a_retry_goes_on_from_the_saved_state_and_counts_absolute_steps(bench: Bench) -> None:
    saved = saved_state(bench)
    bench.prepare({"steps": 5}, **GOING_ON, dataset={"resume": saved})
    assert bench.train()["steps"] == 15
    assert bench.run(0)["options"]["initial_step"] == "10"
    assert bench.run(0)["files"]["resume"] == [
        "model.safetensors", "optimizer.bin", "random_states_0.pkl", "train_state.json",
    ]  # fmt: skip
    assert [shown[:2] for shown in bench.host.shown][-5:] == [(step, 15) for step in range(11, 16)]
    assert bench.notes() == ["training goes on from the state saved at step 10 (epoch 2)"]


def test_a_state_of_a_resumed_training_is_named_by_its_absolute_step(bench: Bench) -> None:
    saved = saved_state(bench)
    bench.prepare(
        {"steps": 5, "save_seconds": 0.6}, **{**GOING_ON, "epochs": 3}, dataset={"resume": {**saved, "step": 5}}
    )
    repacked(bench, epoch=1, step=5)
    bench.train()
    assert [one["name"] for one in bench.uploads("state")] == ["state-e000002-s00000010.tar"]


def repacked(bench: Bench, **note: Any) -> None:
    """Change what the stored state says of itself."""
    stored, target = io.BytesIO(bench.server.files["state.tar"]), io.BytesIO()
    with tarfile.open(fileobj=stored) as source, tarfile.open(fileobj=target, mode="w") as archive:
        for member in source.getmembers():
            content = source.extractfile(member).read() if member.isfile() else b""  # type: ignore[union-attr]
            if member.name == "troupe.json":
                content = json.dumps({**json.loads(content), **note}).encode()
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    content = target.getvalue()
    bench.server.files["state.tar"] = content
    resume = bench.server.datasets["mira", 1]["resume"]
    resume.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def test_a_state_made_with_other_settings_is_not_used_and_that_is_told(bench: Bench) -> None:
    saved = saved_state(bench)
    bench.prepare({"steps": 5}, **GOING_ON, rank=8, dataset={"resume": saved})
    assert bench.train()["steps"] == 15
    assert "resume" not in bench.run(0)["options"]
    assert bench.notes() == ["the state saved at step 10 was made with another rank; training starts over"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "0" * 64}, "its sha256 differs"),
        ({"url": "/files/gone.tar"}, "no such file"),
        ({"bytes": 10}, "longer than stated"),
    ],
)
def test_a_state_that_cannot_be_fetched_is_told_and_training_starts_over(
    change: dict[str, Any], words: str, bench: Bench
) -> None:
    saved = saved_state(bench)
    bench.prepare({"steps": 5}, **GOING_ON, dataset={"resume": {**saved, **change}})
    assert bench.train()["steps"] == 15
    assert words in bench.notes()[0]


def test_a_tar_that_leads_out_of_its_folder_is_refused(bench: Bench) -> None:
    saved = saved_state(bench)
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../escaped"), io.BytesIO(b""))
    content = body.getvalue()
    bench.server.files["state.tar"] = content
    saved |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    bench.prepare({"steps": 5}, **GOING_ON, dataset={"resume": saved})
    bench.train()
    assert "it is damaged" in bench.notes()[0]
    assert not list(bench.folder.rglob("escaped"))


def test_a_state_that_the_trainer_refuses_is_given_up_for_a_training_from_the_beginning(bench: Bench) -> None:
    saved = saved_state(bench)
    refusal = {"fail": "RuntimeError: Error(s) in loading state_dict for LoRANetwork:", "rc": 1}
    bench.prepare(refusal, {"steps": 5}, **GOING_ON, dataset={"resume": saved})
    assert bench.train()["steps"] == 15
    assert "resume" not in bench.run(1)["options"]
    assert "training starts over" in bench.notes()[1]


def test_out_of_memory_is_tried_again_with_easier_settings_and_each_try_is_told(bench: Bench) -> None:
    bench.host.vram = 24 * 2**30
    bench.prepare({"fail": OOM, "rc": 1}, {"fail": OOM, "rc": 1}, {"steps": 2}, batch_size=4, architecture="sdxl")
    bench.train()
    batches = [bench.run(n)["files"]["dataset_config"]["datasets"][0]["batch_size"] for n in range(3)]
    gathered = [bench.run(n)["options"]["gradient_accumulation_steps"] for n in range(3)]
    bases = [bench.run(n)["options"].get("fp8_base_unet") for n in range(3)]
    assert (batches, gathered, bases) == ([2, 1, 1], ["2", "4", "4"], [None, None, True])
    assert bench.notes() == [
        "the GPU's memory is too small: trying again with one image at a time, 4 for each step",
        "the GPU's memory is too small: trying again with the base in 8-bit floats",
    ]


def test_out_of_memory_with_nothing_left_to_give_up_fails(bench: Bench) -> None:
    bench.host.vram = 8 * 2**30
    bench.prepare({"fail": OOM, "rc": 1}, architecture="sdxl")
    with pytest.raises(TrainerError, match=r"^out_of_memory"):
        bench.train()


def test_a_killed_trainer_is_tried_again_where_memory_can_be_spared(bench: Bench) -> None:
    bench.prepare({"fail": "", "rc": -9}, {"steps": 2})
    bench.train()
    assert bench.run(1)["options"]["full_bf16"] is True
    assert "every weight in bfloat16" in bench.notes()[0]


def test_an_easier_try_goes_on_from_the_state_where_its_tensors_stay_the_same(bench: Bench) -> None:
    bench.host.vram = 40 * 2**30
    saved = saved_state(bench, batch_size=1)
    bench.prepare({"fail": OOM, "rc": 1}, {"steps": 5}, **GOING_ON, batch_size=1, dataset={"resume": saved})
    bench.train()
    assert (bench.run(1)["options"]["gradient_checkpointing"], bench.run(1)["options"]["initial_step"]) == (True, "10")


def test_an_easier_try_with_other_tensors_starts_over_and_says_so(bench: Bench) -> None:
    bench.host.vram = 40 * 2**30
    saved = saved_state(bench)
    bench.prepare({"fail": OOM, "rc": 1}, {"steps": 5}, **GOING_ON, dataset={"resume": saved})
    bench.train()
    assert "resume" not in bench.run(1)["options"]
    assert bench.notes()[1].endswith(", from the beginning")


@pytest.mark.parametrize(
    ("log", "rc", "code"),
    [
        ("sd15_bad", 1, "bad_image"),
        ("sd15_empty", 0, "no_data"),
        ("sd15_notok", 1, "missing_tokenizer"),
        ("sd15_telr1", 2, "bad_arguments"),
        ("sd15_nan2", 0, "loss_diverged"),
        ("sdxl_a_killed", -15, "terminated"),
        ("sdxl_b", 0, "no_output"),
    ],
)
def test_every_captured_failure_is_told_by_its_code_and_leaves_nothing(
    log: str, rc: int, code: str, bench: Bench
) -> None:
    bench.prepare({"log": str(HERE / "data" / log), "rc": rc})
    with pytest.raises(TrainerError, match=f"^{code}: "):
        bench.train()
    assert bench.server.uploads == []
    assert list((bench.folder / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("line", "rc", "code"),
    [
        ("2026-11-20 19:08:35 INFO     /job/words.toml not found.          train_util.py:4741", 1, "bad_job_file"),
        ("voluptuous.error.MultipleInvalid: extra keys not allowed @ data['x']", 1, "bad_dataset_config"),
        ("AssertionError: bucket_reso_steps is 32. it must be divisible by 64.", 1, "bad_dataset_config"),
        ("AssertionError: caption file is empty: /job/images/001.txt", 1, "empty_caption"),
        ("RuntimeError: NaN detected in latents: /job/images/001.png", 1, "nan_in_latents"),
        ("RuntimeError: NaN detected in text encoder outputs", 1, "nan_in_captions"),
        ("ImportError: No bitsandbytes / bitsandbytesがインストールされていないようです", 1, "missing_package"),
        ("ValueError: something nobody thought of", 1, "trainer_failed"),
        ("", -11, "crashed"),
    ],
)
def test_every_other_failure_of_the_table_is_told_by_its_code(line: str, rc: int, code: str, bench: Bench) -> None:
    bench.prepare({"fail": line, "rc": rc})
    with pytest.raises(TrainerError, match=f"^{code}: "):
        bench.train()


def test_the_trainer_shows_signs_of_life_while_it_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[float | None] = []
    monkeypatch.setattr(state, "beat", beats.append)
    monkeypatch.setattr(session, "BEAT_SECONDS", 0.1)
    bench.prepare({"steps": 4, "step_seconds": 0.15})
    bench.train()
    assert len(beats) >= 5
    assert 1.0 in beats


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SD_SCRIPTS_DIR", "", "SD_SCRIPTS_DIR is not set"),
        ("SD_SCRIPTS_DIR", "/nowhere", "there is no sdxl_train_network.py in /nowhere"),
        ("SD_SCRIPTS_PYTHON", "", "SD_SCRIPTS_PYTHON is not set"),
        ("SD_SCRIPTS_PYTHON", "/nowhere/python", "names no interpreter: /nowhere/python"),
        ("SD_SCRIPTS_TOKENIZERS", "", "SD_SCRIPTS_TOKENIZERS is not set"),
        ("SD_SCRIPTS_TOKENIZERS", "/nowhere", "lacks a tokenizer"),
    ],
)
def test_a_pod_that_is_not_set_up_says_what_to_set(
    variable: str, value: str, words: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert words in (kohya.obstacle() or "")


def test_a_tokenizer_that_would_make_captions_too_long_is_an_obstacle(bench: Bench, tokenizers: Path) -> None:
    (tokenizers / kohya.TOKENIZERS[1] / "tokenizer_config.json").write_text('{"model_max_length": 8192}')
    assert "set it to 77" in (kohya.obstacle() or "")


def test_a_pod_that_is_set_up_has_no_obstacle(bench: Bench) -> None:
    assert kohya.obstacle() is None
