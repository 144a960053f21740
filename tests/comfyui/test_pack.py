"""The pack inside a real ComfyUI: its nodes are there, the worker outlives them, `/troupe/state` tells the truth."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pod_images.embedded.pod import build_pod
from pod_images.embedded.server import build_app

from .conftest import SKETCH_CHECKPOINT
from .graphs import call, ended, node, picture, run, submit, words_of
from .server import NO_COMFYUI, PACK, ComfyUI, checkout, start_comfyui

TROUBLE = Path(__file__).with_name("trouble_nodes")
OURS = ("CharacterLoRALoader", "PromptTravelSampler", "S3Save", "TrainLoRA")


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """A ComfyUI with our pack beside nodes that misbehave."""
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    packs = {"troupe": PACK, "trouble": TROUBLE}
    with start_comfyui(tmp_path_factory.mktemp("troubled"), packs=packs, checkpoints=[SKETCH_CHECKPOINT]) as running:
        yield running


@pytest.mark.parametrize("name", OURS)
def test_every_node_is_offered(comfyui: ComfyUI, name: str) -> None:
    assert call(comfyui, f"/object_info/{name}")[name]["category"] == "Troupe"


def test_nothing_of_the_pack_is_missing(comfyui: ComfyUI) -> None:
    assert call(comfyui, "/troupe/state")["problems"] == {}


async def test_the_embedded_pod_tells_its_state_by_the_same_names(comfyui: ComfyUI, tmp_path: Path) -> None:
    from aiohttp.test_utils import TestClient, TestServer

    pod = build_pod(tmp_path, [], "secret", "tiny")
    async with TestClient(TestServer(build_app(pod)), headers={"Authorization": "Bearer secret"}) as client:
        answer = await client.get("/api/troupe/state")
        ours = await answer.json()
    assert ours.keys() == call(comfyui, "/api/troupe/state").keys()


def test_an_idle_worker_lives_and_has_no_prompt(comfyui: ComfyUI) -> None:
    run(comfyui, picture("woman", steps=1))
    state = call(comfyui, "/troupe/state")
    seen = [state[name] for name in ("worker_alive", "prompt_id", "node_id", "running_seconds", "beat_age_seconds")]
    assert seen == [True, None, None, None, None]


def states_while(comfyui: ComfyUI, graph: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The prompt's id, and every state that was told while it ran."""
    prompt_id = submit(comfyui, graph)
    seen = []
    while not call(comfyui, f"/history/{prompt_id}"):
        seen.append(call(comfyui, "/troupe/state"))
    return prompt_id, seen


def test_a_running_sampler_is_named_with_its_pace(comfyui: ComfyUI) -> None:
    prompt_id, seen = states_while(comfyui, picture("woman", seed=11, steps=60))
    paces = [
        state["seconds_per_step"]
        for state in seen
        if (state["prompt_id"], state["node_id"], state["node_class"]) == (prompt_id, "5", "KSampler")
    ]
    assert any(pace and 0 < pace < 5 for pace in paces)


def test_every_step_of_a_sampler_is_a_sign_of_life(comfyui: ComfyUI) -> None:
    _, seen = states_while(comfyui, picture("woman", seed=12, steps=100))
    late = [state for state in seen if state["prompt_id"] and state["running_seconds"] > 2]
    assert late
    assert all(state["beat_age_seconds"] < state["running_seconds"] / 2 for state in late)


def test_a_silent_node_lets_its_last_sign_of_life_grow_old(troubled: ComfyUI) -> None:
    _, seen = states_while(troubled, {"1": node("TroubleSleep", seconds=1.5)})
    assert max(state["beat_age_seconds"] or 0 for state in seen) > 1


def test_a_node_of_ours_that_is_told_to_exit_only_fails_its_prompt(troubled: ComfyUI) -> None:
    entry = ended(troubled, submit(troubled, {"1": node("TroubleContainedExit")}))
    assert "tried to end the process" in words_of(entry)
    run(troubled, picture("woman", steps=1))


def test_a_value_that_is_no_json_only_fails_its_prompt(troubled: ComfyUI) -> None:
    entry = ended(troubled, submit(troubled, {"1": node("TroubleTensorInUi")}))
    assert "not JSON" in words_of(entry)
    run(troubled, picture("woman", steps=1))


def test_an_ordinary_error_is_no_dead_device(troubled: ComfyUI) -> None:
    ended(troubled, submit(troubled, {"1": node("TroubleRaise", words="CUDA error: out of memory")}))
    assert call(troubled, "/troupe/state")["device_error"] is None


def test_the_words_of_a_dead_device_are_kept(troubled: ComfyUI) -> None:
    words = "CUDA error: an illegal memory access was encountered"
    ended(troubled, submit(troubled, {"1": node("TroubleRaise", words=words)}))
    assert words in call(troubled, "/troupe/state")["device_error"]


def test_a_worker_that_a_foreign_node_killed_is_told_dead(tmp_path: Path) -> None:
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    with start_comfyui(tmp_path, packs={"troupe": PACK, "trouble": TROUBLE}) as comfyui:
        prompt_id = submit(comfyui, {"1": node("TroubleExit")})
        deadline = time.monotonic() + 20
        while (state := call(comfyui, "/troupe/state"))["worker_alive"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert (state["worker_alive"], state["prompt_id"]) == (False, prompt_id)


def test_a_second_copy_under_another_name_does_not_keep_comfyui_from_starting(tmp_path: Path) -> None:
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    packs = {"troupe": PACK, "Troupe-main.backup": PACK}
    with start_comfyui(tmp_path, packs=packs, checkpoints=[SKETCH_CHECKPOINT]) as comfyui:
        run(comfyui, picture("woman", steps=1))
        assert "another copy of the pack" in comfyui.log.read_text(errors="replace")


def test_a_part_that_does_not_import_leaves_the_others_standing(tmp_path: Path) -> None:
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    pack = tmp_path / "pack"
    pack.mkdir()
    for path in PACK.iterdir():
        if path.name not in ("prompt_travel_sampler.py", "__pycache__"):
            (pack / path.name).symlink_to(path)
    (pack / "prompt_travel_sampler.py").write_text("import a_library_that_is_not_here\n")
    with start_comfyui(tmp_path / "base", packs={"troupe": pack}) as comfyui:
        problems = call(comfyui, "/troupe/state")["problems"]
        assert list(problems) == ["PromptTravelSampler"]
        assert "a_library_that_is_not_here" in problems["PromptTravelSampler"]
        assert call(comfyui, "/object_info/S3Save")


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """A ComfyUI whose environment holds a secret and names a trainer's interpreter that is not there."""
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    environment = {"TROUPE_POD_KEY": "s3cret-pod-key", "TROUPE_SKETCH_PYTHON": "/nowhere/python"}
    with start_comfyui(tmp_path_factory.mktemp("poor"), environment) as running:
        yield running


def test_the_state_tells_no_secret(poor: ComfyUI) -> None:
    assert "s3cret" not in json.dumps(call(poor, "/troupe/state"))


def test_a_trainer_without_its_interpreter_is_told(poor: ComfyUI) -> None:
    state = call(poor, "/troupe/state")
    assert "sketch" not in state["trainers"]
    assert "/nowhere/python" in state["trainer_obstacles"]["sketch"]
