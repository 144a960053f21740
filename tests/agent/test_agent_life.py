"""An agent from its boot to its end, on a ComfyUI that misbehaves on request."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import aiohttp
import pytest

from controlplane.api.schemas.pods import Heartbeat, RegisterPod

from .conftest import Launch
from .running import JOIN_TOKEN, POD_TOKEN, ControlPlane, is_alive, until

SECRETS = {"RUNPOD_API_KEY": "rpa_key_of_the_agent_tests"}


async def test_a_pod_joins_before_its_comfyui_runs_and_is_ready_after_its_first_picture(
    start: Launch, control_plane: ControlPlane
) -> None:
    await start("--control-plane", control_plane.url, "--labels", "image,video", "--name", "tester")
    await until(lambda: len(control_plane.registrations) == 2 and "ready" in control_plane.states)
    first, second = control_plane.registrations
    assert (first["state"], first["boot"]["phase"], first["kind"]) == ("joining", "starting", "comfyui")
    assert (second["state"], second["boot"], second["comfyui_version"]) == ("ready", None, "0.8.0")
    assert (second["gpu"], second["vram_bytes"], second["labels"]) == ("Fake 4090", 24 << 30, ["image", "video"])
    assert (second["trainers"], second["trainer_obstacles"]) == (["sketch"], {"kohya": "SD_SCRIPTS_DIR is not set"})
    assert (second["models"], "FakeSleep" in second["node_classes"]) == ({"checkpoints": ["base.safetensors"]}, True)
    assert first["instance_id"] == second["instance_id"]
    assert (control_plane.tokens[0], control_plane.tokens[-1]) == (f"Bearer {JOIN_TOKEN}", "Bearer pod-key-number-2")


async def test_a_heartbeat_tells_queue_loras_memory_and_disk(start: Launch, control_plane: ControlPlane) -> None:
    agent = await start("--control-plane", control_plane.url)
    await agent.submit("FakeSleep", seconds=30)
    await agent.submit("FakeSleep", seconds=30)
    await until(lambda: control_plane.heartbeats and control_plane.heartbeats[-1]["queue_pending"] == 1)
    beat = control_plane.heartbeats[-1]
    assert (beat["state"], beat["queue_running"], beat["loras"]) == ("ready", 1, ["cd" * 32])
    assert (beat["vram_free_bytes"], beat["restarts"], beat["restart_reason"]) == (20 << 30, 0, "")
    assert beat["disk_free_bytes"] > 0


async def test_the_control_plane_understands_every_word_of_an_agent(start: Launch, control_plane: ControlPlane) -> None:
    agent = await start("--control-plane", control_plane.url)
    await agent.incident(await agent.submit("FakeExit", word="x"))
    await until(lambda: len(control_plane.registrations) == 2 and set(control_plane.states[-3:]) == {"ready"})
    for body in control_plane.registrations:
        RegisterPod.model_validate(body)
    for body in control_plane.heartbeats:
        Heartbeat.model_validate(body)


async def test_a_zombie_worker_is_noticed_and_everything_it_held_is_told_as_lost(
    start: Launch, control_plane: ControlPlane
) -> None:
    agent = await start("--control-plane", control_plane.url)
    began = time.monotonic()
    guilty = await agent.submit("FakeZombie")
    waiting = await agent.submit("FakeSleep", seconds=0)
    incident = await agent.incident(guilty)
    await agent.back()
    assert time.monotonic() - began < 30
    assert (incident["code"], incident["prompt_id"]) == ("zombie_worker", guilty)
    assert any("fake ComfyUI starts" in line for line in incident["log_tail"])
    assert (await agent.incident(waiting))["code"] == "zombie_worker"
    await until(lambda: control_plane.heartbeats[-1]["restarts"] == 1 and control_plane.states[-1] == "ready")
    assert control_plane.heartbeats[-1]["restart_reason"].startswith("zombie_worker: ")
    assert "joining" in control_plane.states, "no work is sent while it restarts"


async def test_a_comfyui_that_dies_is_started_again_and_its_last_words_are_kept(start: Launch) -> None:
    agent = await start()
    before = await agent.comfyui_pid()
    prompt_id = await agent.submit("FakeExit", word="sorrow")
    incident = await agent.incident(prompt_id)
    await agent.back()
    assert (incident["code"], incident["detail"]) == ("died", "ComfyUI ended by itself: exit code 7")
    assert "about to die of sorrow" in incident["log_tail"]
    assert await agent.comfyui_pid() != before


async def test_a_killed_comfyui_costs_a_finished_prompt_its_uncollected_result(start: Launch) -> None:
    agent = await start()
    collected, kept = await agent.submit("FakeSleep", seconds=0), await agent.submit("FakeSleep", seconds=0)
    await agent.finished(kept)
    await agent.call("POST", "/history", {"delete": [collected]})
    os.kill(await agent.comfyui_pid(), signal.SIGKILL)
    assert (await agent.incident(kept))["detail"] == "ComfyUI ended by itself: killed by SIGKILL"
    assert (await agent.call("GET", f"/troupe/incidents/{collected}"))[0] == 404, "that one was delivered"


async def test_a_node_without_a_sign_of_life_is_hung(start: Launch) -> None:
    agent = await start("--hung-seconds", "1")
    incident = await agent.incident(await agent.submit("FakeSilent", seconds=600))
    assert incident["code"] == "hung"
    assert "node 1 (FakeSilent) gave no sign of life" in incident["detail"]


async def test_a_node_that_gives_signs_of_life_is_left_alone(start: Launch) -> None:
    agent = await start("--hung-seconds", "0.5")
    await agent.finished(await agent.submit("FakeSleep", seconds=3))
    assert (await agent.call("GET", "/troupe/agent"))[1]["restarts"] == []


async def test_a_dead_device_is_restarted(start: Launch) -> None:
    agent = await start()
    incident = await agent.incident(await agent.submit("FakeDevice"))
    assert (incident["code"], "illegal memory access" in incident["detail"]) == ("dead_device", True)
    await agent.back()


async def test_too_much_memory_is_no_reason_to_restart_while_a_prompt_runs_or_its_result_is_not_collected(
    start: Launch,
) -> None:
    agent = await start("--memory-limit", str(1 << 40))
    prompt_id = await agent.submit("FakeFat", seconds=1)
    await agent.finished(prompt_id)
    await asyncio.sleep(0.5)
    assert (await agent.call("GET", "/troupe/agent"))[1]["restarts"] == []
    assert (await agent.call("POST", "/history", {"delete": [prompt_id]}))[0] == 200
    async with asyncio.timeout(20):
        while not (restarts := (await agent.call("GET", "/troupe/agent"))[1]["restarts"]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert restarts[0]["code"] == "memory_limit"


async def test_a_comfyui_without_the_node_pack_is_not_ready_and_says_why(
    start: Launch, control_plane: ControlPlane
) -> None:
    agent = await start("--control-plane", control_plane.url, "--comfyui-args", "--fake no-pack", ready=False)
    await until(lambda: any("node pack" in (beat["boot"] or {}).get("detail", "") for beat in control_plane.heartbeats))
    assert set(control_plane.states) == {"joining"}
    assert "fake ComfyUI starts" in agent.log(), "the end of ComfyUI's log stands beside it"


async def test_a_comfyui_without_an_accelerator_says_how_to_do_without_one(start: Launch) -> None:
    agent = await start("--comfyui-args", "--fake no-device", ready=False)
    await until(lambda: '--comfyui-args "--cpu"' in agent.log())


async def test_a_comfyui_that_does_not_start_is_tried_again(start: Launch, tmp_path: Path) -> None:
    mark = {"FAKE_MARK": str(tmp_path / "mark")}
    agent = await start("--comfyui-args", "--fake dies-once", environment=mark)
    assert "not today" in agent.log()
    assert (await agent.call("GET", "/troupe/agent"))[1]["state"] == "ready"


async def test_a_pod_whose_model_files_are_not_complete_says_so_and_does_not_start_comfyui(
    start: Launch, control_plane: ControlPlane, tmp_path: Path
) -> None:
    manifest = ("--models-manifest", str(tmp_path / "absent.yaml"))
    agent = await start("--control-plane", control_plane.url, *manifest, ready=False)
    await until(
        lambda: any("not complete" in (beat["boot"] or {}).get("detail", "") for beat in control_plane.heartbeats)
    )
    boot = control_plane.heartbeats[-1]["boot"]
    assert (boot["phase"], set(control_plane.states)) == ("models", {"joining"})
    assert "fake ComfyUI starts" not in agent.log()


async def test_while_comfyui_is_down_a_call_is_answered_at_once(start: Launch) -> None:
    agent = await start()
    os.kill(await agent.comfyui_pid(), signal.SIGKILL)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {POD_TOKEN}"}) as session:
        while True:
            async with session.get(agent.address + "/queue") as response:
                if response.status != 200:
                    break
    assert (response.status, response.headers["Retry-After"].isdigit()) == (503, True)


async def test_sigterm_finishes_what_runs_gives_back_what_waits_and_takes_no_more(
    start: Launch, control_plane: ControlPlane
) -> None:
    agent = await start("--control-plane", control_plane.url)
    running = await agent.submit("FakeSleep", seconds=2)
    waiting = await agent.submit("FakeSleep", seconds=2)
    agent.process.send_signal(signal.SIGTERM)
    assert (await agent.incident(waiting))["code"] == "drained"
    await until(lambda: control_plane.states[-1] == "draining", 1.5)
    refused = {"prompt": {"1": {"class_type": "FakeSleep", "inputs": {"seconds": 0}}}}
    assert (await agent.call("POST", "/prompt", refused))[0] == 503
    assert (await agent.finished(running))["status"]["status_str"] == "success"
    pid = await agent.comfyui_pid()
    await agent.call("POST", "/history", {"delete": [running]})
    assert (await agent.ended(), is_alive(pid)) == (0, False)


async def test_sigterm_waits_for_files_that_are_on_their_way(start: Launch) -> None:
    agent = await start()
    await agent.finished(await agent.submit("FakePromise", seconds=2))
    began = time.monotonic()
    agent.process.send_signal(signal.SIGTERM)
    assert (await agent.ended(), time.monotonic() - began > 1.5) == (0, True)


async def test_too_much_memory_is_no_reason_to_restart_while_files_are_on_their_way(start: Launch) -> None:
    agent = await start("--memory-limit", str(1 << 40))
    for prompt_id in (await agent.submit("FakePromise", seconds=3), await agent.submit("FakeFat", seconds=0)):
        await agent.finished(prompt_id)
        assert (await agent.call("POST", "/history", {"delete": [prompt_id]}))[0] == 200
    await asyncio.sleep(1.5)
    restarts = (await agent.call("GET", "/troupe/agent"))[1]["restarts"]
    assert restarts == []


async def test_a_second_sigterm_ends_the_agent_and_its_comfyui_at_once(start: Launch) -> None:
    agent = await start()
    await agent.submit("FakeSleep", seconds=600)
    pid = await agent.comfyui_pid()
    agent.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.3)
    assert agent.process.returncode is None
    agent.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        assert await agent.ended() == 0
    assert not is_alive(pid)


async def test_the_control_plane_may_ask_for_a_drain(start: Launch, control_plane: ControlPlane) -> None:
    agent = await start("--control-plane", control_plane.url)
    control_plane.answer = {**control_plane.answer, "drain": True}
    await until(lambda: control_plane.states[-1:] == ["draining"])
    assert (await agent.call("POST", "/prompt", {"prompt": {}}))[0] == 503
    assert agent.process.returncode is None, "it stays until it is told to go"


async def test_a_revoked_lora_is_deleted(start: Launch, control_plane: ControlPlane) -> None:
    agent = await start("--control-plane", control_plane.url)
    file = agent.data / "loras" / f"{'ef' * 32}.safetensors"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"x")
    control_plane.answer = {**control_plane.answer, "revoked": ["ef" * 32, "../instance_id"]}
    await until(lambda: not file.exists())
    assert (agent.data / "instance_id").exists()


async def test_an_agent_that_is_killed_leaves_no_comfyui_behind(start: Launch) -> None:
    agent = await start()
    pid = await agent.comfyui_pid()
    agent.process.kill()
    await agent.ended()
    await until(lambda: not is_alive(pid), 10)


async def test_an_agent_whose_parent_is_gone_ends(start: Launch) -> None:
    agent = await start("--parent-pid", "1", ready=False)
    assert await agent.ended() == 0


async def test_two_agents_do_not_share_a_data_folder(start: Launch, tmp_path: Path) -> None:
    await start()
    other = await start("--data", str(tmp_path / "pod0"), ready=False)
    assert await other.ended() == 1
    assert "another agent uses" in other.log()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--comfyui-dir", "/nowhere"], "there is no ComfyUI at /nowhere"),
        (["--dead-man-minutes", "0"], "--dead-man-minutes must be more than 0"),
        (["--control-plane", "here"], "--control-plane takes a URL"),
    ],
)
async def test_an_agent_that_is_told_nonsense_says_so(start: Launch, arguments: list[str], words: str) -> None:
    agent = await start(*arguments, ready=False)
    assert (await agent.ended(), words in agent.log()) == (2, True)


async def test_no_secret_is_in_a_log_an_argument_an_answer_or_the_environment_of_comfyui(
    start: Launch, control_plane: ControlPlane
) -> None:
    agent = await start("--control-plane", control_plane.url, environment=SECRETS)
    await until(lambda: "ready" in control_plane.states)
    await agent.incident(await agent.submit("FakeExit", word=f"{POD_TOKEN} {JOIN_TOKEN} pod-key-number-2"))
    await agent.back()
    _, seen = await agent.call("GET", "/environment")
    command_lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in (agent.process.pid, await agent.comfyui_pid())]
    told = [str((await agent.call("GET", path))[1]) for path in ("/troupe/log?lines=2000", "/troupe/agent")]
    secrets = (POD_TOKEN, JOIN_TOKEN, "pod-key-number-2", SECRETS["RUNPOD_API_KEY"])
    places = {"environment": str(seen), "arguments": str(command_lines), "answers": str(told), "log": agent.log()}
    assert [(name, secret) for name, text in places.items() for secret in secrets if secret in text] == []
    assert "about to die of *** *** ***" in told[0]
    ours = {name for name in seen["environ"] if name.startswith(("TROUPE_", "RUNPOD_"))}
    assert ours == {"TROUPE_CONTROL_PLANE_URL", "TROUPE_POD_KEY_FILE", "TROUPE_WORK_DIR", "TROUPE_LORA_CACHE_DIR"}
