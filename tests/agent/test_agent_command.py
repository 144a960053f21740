"""How ComfyUI is started: arguments, environment, model folders and the link to our node pack."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pod_images.agent import comfy_command
from pod_images.agent.options import Options, parse

PACK = Path(__file__).resolve().parents[2] / "comfy_nodes"
# What the pack reads and must not be given: the key itself, and the agent's own two tokens.
NOT_FOR_THE_PACK = {"TROUPE_POD_KEY", "TROUPE_POD_TOKEN", "TROUPE_JOIN_TOKEN"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "ComfyUI"
    (folder / "models" / "checkpoints").mkdir(parents=True)
    (folder / "custom_nodes").mkdir()
    (folder / "main.py").touch()
    return folder


def options(checkout: Path, *more: str, environment: dict[str, str] | None = None) -> Options:
    data = checkout.parent / "data"
    data.mkdir(exist_ok=True)
    return parse(["--comfyui-dir", str(checkout), "--data", str(data), *more], environment or {})


def test_secrets_leave_the_environment_when_options_are_read(checkout: Path) -> None:
    environment = {"TROUPE_POD_TOKEN": "a", "TROUPE_JOIN_TOKEN": "b", "RUNPOD_API_KEY": "c", "HOME": "/root"}
    read = options(checkout, environment=environment)
    assert environment == {"HOME": "/root"}
    assert (read.secrets.pod_token, read.secrets.join_token, read.secrets.runpod_key) == ("a", "b", "c")
    assert "'a'" not in repr(read)


def test_comfyui_listens_on_loopback_whatever_its_own_options_say(checkout: Path) -> None:
    command = comfy_command.command(options(checkout, "--comfyui-args", "--cpu --listen 0.0.0.0 --port 80"), {})
    assert "--cpu" in command.argv
    assert command.argv[-4:] == ("--listen", "127.0.0.1", "--port", command.url.rpartition(":")[2])


def test_comfyui_gets_every_setting_that_the_node_pack_reads_and_no_secret(checkout: Path) -> None:
    read = set()
    for path in PACK.rglob("*.py"):
        read |= set(re.findall(r"[\"'](TROUPE_[A-Z_]+)[\"']", path.read_text()))
    environment = {name: "x" for name in read | NOT_FOR_THE_PACK}
    given = comfy_command.child_environment(options(checkout, "--control-plane", "http://c"), environment)
    assert {name for name in given if name.startswith("TROUPE_")} == read - NOT_FOR_THE_PACK


def test_comfyui_gets_the_trainers_interpreter_and_the_devices_of_the_environment(checkout: Path) -> None:
    environment = {"SD_SCRIPTS_PYTHON": "/p", "CUDA_VISIBLE_DEVICES": "0", "RUNPOD_POD_ID": "x"}
    given = comfy_command.child_environment(options(checkout), environment)
    assert {"SD_SCRIPTS_PYTHON", "CUDA_VISIBLE_DEVICES"} <= set(given)
    assert "RUNPOD_POD_ID" not in given


def test_the_token_that_opens_gated_models_stays_with_the_agent(checkout: Path) -> None:
    given = comfy_command.child_environment(options(checkout), {"HF_TOKEN": "hf_secret", "HF_HOME": "/volume/hf"})
    assert given.keys() & {"HF_TOKEN", "HF_HOME"} == {"HF_HOME"}


def test_our_own_packages_are_not_on_the_path_of_comfyui(checkout: Path) -> None:
    given = comfy_command.child_environment(options(checkout), {"PYTHONPATH": f"{PACK.parent}:/theirs"})
    assert given["PYTHONPATH"] == "/theirs"


def test_models_of_the_checkout_and_of_the_given_folders_are_found(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "volume" / "audio_encoders").mkdir(parents=True)
    paths = comfy_command.model_paths(options(checkout, "--models", str(tmp_path / "volume")))
    assert paths["models_0"]["audio_encoders"] == str(tmp_path / "volume" / "audio_encoders")
    assert paths["models_1"]["checkpoints"] == str(checkout / "models" / "checkpoints")
    assert paths["checkout"] == {"custom_nodes": str(checkout / "custom_nodes")}


def test_the_checkout_is_not_written_to(checkout: Path) -> None:
    before = sorted(checkout.rglob("*"))
    comfy_command.prepare(options(checkout))
    assert sorted(checkout.rglob("*")) == before


def linked(read: Options) -> bool:
    return (read.data / "custom_nodes" / "troupe" / "character_lora_loader.py").is_file()


def test_the_node_pack_is_linked_into_a_folder_of_ours(checkout: Path) -> None:
    read = options(checkout)
    comfy_command.prepare(read)
    comfy_command.prepare(read)
    assert linked(read)


def test_a_node_pack_that_is_installed_already_is_not_linked_again(checkout: Path) -> None:
    (checkout / "custom_nodes" / "troupe").symlink_to(PACK)
    read = options(checkout)
    comfy_command.prepare(read)
    assert not linked(read)


def test_the_port_is_needed_on_runpod(checkout: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        options(checkout, environment={"RUNPOD_POD_ID": "abc"})
    assert "--port N" in capsys.readouterr().err


def test_on_runpod_the_pod_is_called_by_its_id_there(checkout: Path) -> None:
    read = options(checkout, "--port", "8700", environment={"RUNPOD_POD_ID": "abc"})
    assert (read.name, read.public_address) == ("abc", "https://abc-8700.proxy.runpod.net")
