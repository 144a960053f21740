"""The agent with a real ComfyUI: what its doubles promise, and the two flaws of the protocol notes, live."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from tests.launchers.runpod_double import runpod_double

from .running import POD_TOKEN, ROOT, AgentProcess, ControlPlane, end, launch, until

pytestmark = pytest.mark.skipif(
    not os.environ.get("COMFYUI_DIR"), reason="no real ComfyUI: set COMFYUI_DIR (and COMFYUI_PYTHON, COMFYUI_ARGS)"
)

HUNG_SECONDS = 6
NODES = {"lab_nodes": ROOT / "tests/contract/lab_nodes", "agent_nodes": ROOT / "tests/agent/agent_nodes"}
BEARER = {"Authorization": f"Bearer {POD_TOKEN}"}


def arguments(base: Path, *comfyui_args: str) -> list[str]:
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    for name, folder in NODES.items():
        (base / "custom_nodes" / name).symlink_to(folder)
    own = ["--cpu", *shlex.split(os.environ.get("COMFYUI_ARGS", "")), *comfyui_args]
    return [
        "--comfyui-python", os.environ.get("COMFYUI_PYTHON", "python"), "--comfyui-args", shlex.join(own),
        "--base-directory", str(base), "--models", str(ROOT / "pod_images/embedded/models"),
        "--hung-seconds", str(HUNG_SECONDS), "--poll-seconds", "1",
    ]  # fmt: skip


def comfyui_dir() -> Path:
    return Path(os.environ["COMFYUI_DIR"])


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """One agent for the whole file; it outlives the loops of its tests and several ComfyUIs."""
    folder = tmp_path_factory.mktemp("real")
    with asyncio.Runner() as runner:
        started = runner.run(launch(folder / "pod", *arguments(folder / "base"), comfyui=comfyui_dir()))
        yield runner.run(started.ready())
        runner.run(end(started))


@pytest.fixture(autouse=True)
async def back(agent: AgentProcess) -> None:
    await agent.back()


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def empty_image() -> dict[str, Any]:
    return node("EmptyImage", width=8, height=8, batch_size=1, color=uuid.uuid4().int % (1 << 24))


async def submit(agent: AgentProcess, middle: dict[str, Any], client_id: str = "tests") -> str:
    """A picture through one node; the prompt's id."""
    graph = {"1": empty_image(), "2": middle, "3": node("PreviewImage", images=["2", 0])}
    prompt_id = str(uuid.uuid4())
    body = {"prompt": graph, "prompt_id": prompt_id, "client_id": client_id}
    status, answer = await agent.call("POST", "/prompt", body)
    assert status == 200, answer
    return prompt_id


def sleep(mode: str, steps: int, seconds: float = 0.1) -> dict[str, Any]:
    return node("LabSleep", image=["1", 0], steps=steps, step_seconds=seconds, mode=mode, salt=0)


async def test_a_pod_is_ready_after_a_painting_with_its_smallest_checkpoint(agent: AgentProcess) -> None:
    assert "is ready: painted with sketch_base.safetensors" in agent.log()


async def test_the_proxied_state_names_the_running_prompt(agent: AgentProcess) -> None:
    prompt_id = await submit(agent, sleep("progress", 30))
    async with asyncio.timeout(20):
        while (state := (await agent.call("GET", "/troupe/state"))[1])["prompt_id"] != prompt_id:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert state["worker_alive"] is True
    await agent.finished(prompt_id)


async def test_a_zombie_worker_is_restarted_within_thirty_seconds(agent: AgentProcess) -> None:
    began = time.monotonic()
    prompt_id = await submit(agent, node("LabFail", image=["1", 0], kind="sysexit"))
    incident = await agent.incident(prompt_id)
    noticed = time.monotonic() - began
    await agent.back()
    assert (incident["code"], any("got prompt" in line for line in incident["log_tail"])) == ("zombie_worker", True)
    assert (noticed < 15, time.monotonic() - began < 30) == (True, True)
    await agent.finished(await submit(agent, sleep("progress", 1)))


async def test_a_comfyui_that_is_killed_is_started_again(agent: AgentProcess) -> None:
    prompt_id = await submit(agent, sleep("progress", 600))
    before = await agent.comfyui_pid()
    os.kill(before, signal.SIGKILL)
    assert (await agent.incident(prompt_id))["detail"] == "ComfyUI ended by itself: killed by SIGKILL"
    await agent.back()
    assert await agent.comfyui_pid() != before
    await agent.finished(await submit(agent, sleep("progress", 1)))


async def test_a_sampler_that_is_deaf_to_everything_is_hung_and_a_silent_training_is_not(agent: AgentProcess) -> None:
    restarts = (await agent.call("GET", "/troupe/agent"))[1]["restart_count"]
    training = node("AgentSilentTraining", image=["1", 0], seconds=2.5 * HUNG_SECONDS)
    entry = await agent.finished(await submit(agent, training))
    assert entry["status"]["status_str"] == "success"
    assert (await agent.call("GET", "/troupe/agent"))[1]["restart_count"] == restarts
    deaf = await submit(agent, sleep("deaf", 1, 90))
    incident = await agent.incident(deaf)
    assert (incident["code"], "node 2 (LabSleep) gave no sign of life" in incident["detail"]) == ("hung", True)


async def open_socket(url: str, session: aiohttp.ClientSession, client_id: str) -> aiohttp.ClientWebSocketResponse:
    opened = await session.ws_connect(f"{url}/ws?clientId={client_id}", headers=BEARER, max_msg_size=0)
    assert (await opened.receive_json(timeout=20))["type"] == "status"
    return opened


async def heard(opened: aiohttp.ClientWebSocketResponse, prompt_id: str, seconds: float) -> list[Any]:
    """The frames until a prompt left the worker, or until it was silent for too long."""
    frames: list[Any] = []
    while True:
        try:
            frame = await opened.receive(timeout=seconds)
        except TimeoutError:
            return frames
        if frame.type is WSMsgType.BINARY:
            frames.append(frame.data)
            continue
        frames.append(frame.json())
        if frames[-1]["type"] == "executing" and frames[-1]["data"] == {"node": None, "prompt_id": prompt_id}:
            return frames


async def test_a_jobs_websocket_comes_through_the_proxy_with_its_previews(agent: AgentProcess) -> None:
    async with aiohttp.ClientSession() as session:
        opened = await open_socket(agent.address, session, "watcher")
        await opened.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        prompt_id = await submit(agent, sleep("progress_preview", 4), "watcher")
        frames = await heard(opened, prompt_id, 30)
        await opened.close()
    kinds = [frame["type"] for frame in frames if isinstance(frame, dict)]
    assert (kinds.count("progress"), kinds[-1]) == (4, "executing")
    previews = [frame for frame in frames if isinstance(frame, bytes)]
    assert (len(previews), {frame[:4] for frame in previews}) == (4, {b"\0\0\0\4"}), "frames with metadata"


async def test_comfyui_deafens_the_newer_of_two_sockets_and_the_proxy_does_not(agent: AgentProcess) -> None:
    port = _option(await agent.comfyui_pid(), "--port")
    async with aiohttp.ClientSession() as session:
        told = []
        for url, client_id in ((f"http://127.0.0.1:{port}", "direct"), (agent.address, "proxied")):
            older = await open_socket(url, session, client_id)
            newer = await open_socket(url, session, client_id)
            await older.close()
            prompt_id = await submit(agent, sleep("progress", 2), client_id)
            await agent.finished(prompt_id)
            told.append(bool(await heard(newer, prompt_id, 2)))
            await newer.close()
    assert told == [False, True], "what ComfyUI does by itself, and what it does behind the agent"


async def test_reconnecting_again_and_again_never_deafens(agent: AgentProcess) -> None:
    async with aiohttp.ClientSession() as session:
        opened = [await open_socket(agent.address, session, "restless") for _ in range(40)]
        prompt_id = await submit(agent, sleep("progress", 2), "restless")
        assert await heard(opened[-1], prompt_id, 10)
        for one in opened:
            await one.close()


async def test_a_browser_of_another_origin_with_the_token_is_let_through(agent: AgentProcess) -> None:
    headers = {**BEARER, "Origin": "https://studio.example", "Sec-Fetch-Site": "cross-site"}
    async with aiohttp.ClientSession() as session, session.get(agent.address + "/queue", headers=headers) as response:
        assert response.status == 200


async def test_a_comfyui_that_leaves_our_nodes_out_is_not_ready(tmp_path: Path) -> None:
    options = arguments(tmp_path / "base", "--disable-all-custom-nodes")
    other = await launch(tmp_path / "pod", *options, comfyui=comfyui_dir())
    try:
        async with asyncio.timeout(90):
            while "the node pack of Troupe is not in it" not in other.log():  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        assert other.address == ""
    finally:
        await end(other)


async def test_a_cut_off_agent_delivers_what_its_comfyui_makes_and_then_ends_its_pod(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    control_plane.delivers = False
    async with runpod_double() as double:
        pod_id = double.plant("ours")
        other = await launch(
            tmp_path / "pod",
            *arguments(tmp_path / "base"),
            *(
                "--control-plane",
                control_plane.url,
                "--dead-man-minutes",
                "0.05",
                "--public-address",
                "https://pod.example",
            ),
            environment={**double.environment_of(pod_id), "TROUPE_RUNPOD_URL": double.url},
            comfyui=comfyui_dir(),
        )
        try:
            await other.ready()
            await until(lambda: "ready" in control_plane.states)
            other.address = _local_address(other)
            graph = {"1": empty_image(), "2": node("S3Save", images=["1", 0], name="picture", format="png")}
            body = {"prompt": graph, "prompt_id": str(uuid.uuid4()), "client_id": "tests"}
            assert (await other.call("POST", "/prompt", body))[0] == 200
            control_plane.silent = True
            await until(lambda: "has been silent" in other.log())
            assert (double.names(), control_plane.delivered) == (["ours"], 0), "its result is not delivered yet"
            control_plane.delivers = True
            assert (await other.ended(), control_plane.delivered, double.names()) == (0, 1, [])
        finally:
            await end(other)


def _local_address(agent: AgentProcess) -> str:
    """Where an agent with a public address listens here, from its own log."""
    return next(line.split()[-1] for line in agent.log().splitlines() if "listening at" in line)


def _option(pid: int, name: str) -> str:
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return arguments[arguments.index(name) + 1]
