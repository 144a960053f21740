"""The start script of the pod image, run for real in a folder laid out like the image; the agent is a stand-in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .start_script import SCRIPT, SECRET, Layout, lay_out

NEEDS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
SHELLS = [pytest.param(("sh",), id="sh"), pytest.param(("bash", "--posix"), id="bash")]


@pytest.fixture
def layout() -> Iterator[Layout]:
    # Not tmp_path: other users must be able to pass through it.
    root = Path(tempfile.mkdtemp(prefix="troupe-start-"))
    root.chmod(0o755)
    try:
        yield lay_out(root)
    finally:
        shutil.rmtree(root)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and everything that was printed, once the stand-in was asked to end."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    return process.returncode, out + err


@pytest.mark.parametrize("shell", SHELLS)
def test_the_agent_is_started_with_the_images_folders_and_what_the_environment_says(
    layout: Layout, shell: tuple[str, ...]
) -> None:
    process = layout.run({"TROUPE_POD_LABELS": "train", "TROUPE_POD_PORT": "9000"}, shell=shell)
    argv = layout.started(process)["argv"]
    ended(process)
    assert argv == [
        *("--public-address", "http://127.0.0.1:8188"),
        *("--models-manifest", f"{layout.root}/app/pod_images/comfyui/models.yaml"),
        *("--comfyui-dir", f"{layout.root}/ComfyUI", "--comfyui-python", layout.environment["COMFYUI_PYTHON"]),
        *("--data", str(layout.data), "--models", f"{layout.volume}/models"),
        *("--host", "0.0.0.0", "--port", "9000", "--labels", "train"),
    ]


def test_what_is_given_as_arguments_comes_last_so_that_it_wins(layout: Layout) -> None:
    process = layout.run({}, ["--hung-seconds", "300", "--labels", "a b"])
    argv = layout.started(process)["argv"]
    ended(process)
    assert isinstance(argv, list)
    assert argv[-4:] == ["--hung-seconds", "300", "--labels", "a b"]


def test_options_that_are_set_reach_the_agent_as_one_word_each(layout: Layout) -> None:
    process = layout.run(
        {
            "TROUPE_COMFYUI_ARGS": "--cpu --preview-method none",
            "TROUPE_POD_NAME": "the first one",
            "TROUPE_DEAD_MAN_MINUTES": "5",
            "TROUPE_MODELS_MANIFEST": "",
            "TROUPE_POD_URL": None,
            "RUNPOD_POD_ID": "abc",
        }
    )
    argv = layout.started(process)["argv"]
    ended(process)
    assert isinstance(argv, list)
    assert argv[: argv.index("--comfyui-dir")] == [
        *("--dead-man-minutes", "5", "--comfyui-args=--cpu --preview-method none", "--name", "the first one")
    ]


def test_the_trainer_is_told_where_its_code_its_python_and_its_tokenizers_are(layout: Layout) -> None:
    process = layout.run({"SD_SCRIPTS_PYTHON": "/opt/x/python"})
    environment = layout.started(process)["environment"]
    ended(process)
    assert isinstance(environment, dict)
    assert {name: environment[name] for name in environment if name.startswith("SD_SCRIPTS_")} == {
        "SD_SCRIPTS_DIR": "/opt/sd-scripts",
        "SD_SCRIPTS_PYTHON": "/opt/x/python",
        "SD_SCRIPTS_TOKENIZERS": f"{layout.volume}/models/tokenizers",
    }


def test_the_join_token_travels_in_the_environment_and_is_never_printed_or_an_argument(layout: Layout) -> None:
    process = layout.run({"HF_TOKEN": "hf_secret", "RUNPOD_API_KEY": "rpa_secret"})
    started = layout.started(process)
    _code, printed = ended(process)
    environment = started["environment"]
    assert isinstance(environment, dict)
    assert environment["TROUPE_JOIN_TOKEN"] == SECRET
    for secret in (SECRET, "hf_secret", "rpa_secret"):
        assert secret not in printed + str(started["argv"])


def test_the_agent_has_the_scripts_own_process_and_hears_its_sigterm(layout: Layout) -> None:
    process = layout.run({})
    started = layout.started(process)
    code, _printed = ended(process)
    assert (started["pid"], code) == (process.pid, 7)


MISSING = [
    ("TROUPE_CONTROL_PLANE_URL", "TROUPE_CONTROL_PLANE_URL is missing: the address this pod reaches"),
    ("TROUPE_JOIN_TOKEN", "TROUPE_JOIN_TOKEN is missing: the join token"),
    ("TROUPE_POD_URL", "TROUPE_POD_URL is missing: the address your Troupe server reaches this pod at"),
]


@pytest.mark.parametrize(("name", "words"), MISSING)
def test_what_is_missing_is_said_in_one_sentence_before_anything_is_made(layout: Layout, name: str, words: str) -> None:
    code, printed = ended_by_itself(layout.run({name: None}))
    assert (code, printed.count("\n")) == (78, 1)
    assert f"troupe: {words}" in printed
    assert not layout.data.exists()


WRONG = [
    ({"TROUPE_POD_PORT": "80a"}, "TROUPE_POD_PORT is no port number: 80a"),
    ({"COMFYUI_DIR": "/nowhere"}, "there is no ComfyUI in /nowhere: it has no main.py"),
    ({"TROUPE_MODELS_MANIFEST": "/nowhere.yaml"}, "TROUPE_MODELS_MANIFEST names no file that can be read"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG)
def test_what_is_wrong_is_said_in_one_sentence(layout: Layout, changes: dict[str, str | None], words: str) -> None:
    code, printed = ended_by_itself(layout.run(changes))
    assert (code, printed.count("\n")) == (78, 1)
    assert words in printed


def test_a_folder_that_is_no_volume_is_told_because_the_models_will_be_fetched_again(layout: Layout) -> None:
    process = layout.run({})
    layout.started(process)
    _code, printed = ended(process)
    assert f"troupe: {layout.volume} is no volume: the models will be fetched again" in printed


def test_on_runpod_the_agent_itself_knows_its_address(layout: Layout) -> None:
    process = layout.run({"TROUPE_POD_URL": None, "RUNPOD_POD_ID": "abc123"})
    started = layout.started(process)
    ended(process)
    assert "--public-address" not in str(started["argv"])


@NEEDS_ROOT
def test_started_as_root_it_gives_root_up_and_hands_the_folders_over(layout: Layout) -> None:
    (layout.volume / "models" / "checkpoints").mkdir(parents=True)
    process = layout.run({"TROUPE_RUN_AS": "nobody"})
    started = layout.started(process)
    code, _printed = ended(process)
    owners = {path.owner() for path in (layout.data, layout.volume / "models", layout.volume / "models/checkpoints")}
    assert (started["uid"], code, owners) == (65534, 7, {"nobody"})


@NEEDS_ROOT
def test_a_finished_model_of_somebody_else_keeps_its_owner(layout: Layout) -> None:
    model = layout.volume / "models" / "checkpoints" / "m.safetensors"
    model.parent.mkdir(parents=True)
    model.touch()
    process = layout.run({"TROUPE_RUN_AS": "nobody"})
    layout.started(process)
    ended(process)
    assert model.owner() == "root"


@NEEDS_ROOT
def test_it_runs_as_another_user_from_the_start_too(layout: Layout) -> None:
    layout.data.mkdir()
    for folder in (layout.data, layout.volume):
        shutil.chown(folder, "nobody")
    as_nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "sh")
    process = layout.run({"TROUPE_RUN_AS": "troupe", "HOME": "/"}, shell=as_nobody)
    started = layout.started(process)
    ended(process)
    environment = started["environment"]
    assert isinstance(environment, dict)
    assert (started["uid"], environment["HOME"]) == (65534, str(layout.data))


@NEEDS_ROOT
def test_a_volume_it_may_not_write_to_is_refused_with_the_way_out(layout: Layout) -> None:
    as_nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "sh")
    code, printed = ended_by_itself(layout.run({}, shell=as_nobody))
    assert code == 78
    assert f"mount a volume at {layout.volume} that user 65534 may write to" in printed


@NEEDS_ROOT
def test_a_user_the_container_does_not_have_is_refused_by_name(layout: Layout) -> None:
    code, printed = ended_by_itself(layout.run({"TROUPE_RUN_AS": "nosuchuser"}))
    assert code == 78
    assert "TROUPE_RUN_AS names no user of this container: nosuchuser" in printed


def test_the_script_can_be_executed_as_the_image_does_it() -> None:
    assert os.access(SCRIPT, os.X_OK)


def ended_by_itself(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out + err
