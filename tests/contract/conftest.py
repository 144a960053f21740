"""The pods of the contract suite: the embedded pod always; a real ComfyUI, bare and behind its agent, where given."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.comfyui.server import NO_COMFYUI, checkout, end, start_comfyui

from .client import Client, PodUnderTest

ROOT = Path(__file__).resolve().parents[2]
LAB = Path(__file__).with_name("lab_nodes")
TOKEN = "contract-suite"
START_SECONDS = 180


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lab: needs the suite's own nodes inside the pod")


@pytest.fixture(scope="session", params=["embedded", "comfyui", "agent"])
def pod(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodUnderTest]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "embedded":
        yield from _embedded(folder)
    elif request.param == "agent":
        yield from _agent(folder)
    elif os.environ.get("COMFYUI_URL"):
        yield PodUnderTest("comfyui", os.environ["COMFYUI_URL"].rstrip("/"), has_lab=False)
    elif checkout() is not None:
        yield from _comfyui(folder)
    else:
        pytest.skip(f"{NO_COMFYUI}, or COMFYUI_URL for one that runs")


@pytest.fixture
async def client(pod: PodUnderTest, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    if request.node.get_closest_marker("lab") and not pod.has_lab:
        pytest.skip("this ComfyUI was started by others and has no lab nodes")
    async with aiohttp.ClientSession(headers=pod.headers) as session:
        client = Client(session, pod)
        await client.idle()
        yield client


def _embedded(folder: Path) -> Iterator[PodUnderTest]:
    yield from _process("embedded", "pod_images.embedded", "--engine", "tiny", "--data", folder, "--node-pack", LAB)


def _agent(folder: Path) -> Iterator[PodUnderTest]:
    """The same ComfyUI as the control plane meets it: behind the agent's proxy."""
    comfyui = checkout()
    if comfyui is None:
        pytest.skip(NO_COMFYUI)
    packs = folder / "comfyui" / "custom_nodes"
    packs.mkdir(parents=True)
    (packs / "lab_nodes").symlink_to(LAB)
    own = f"--cpu --preview-method none {os.environ.get('COMFYUI_ARGS', '')}"
    yield from _process(
        "comfyui", "pod_images.agent", "--comfyui-dir", comfyui, f"--comfyui-args={own}", "--data", folder
    )


def _process(kind: str, module: str, *arguments: object) -> Iterator[PodUnderTest]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments), "--parent-pid", str(os.getpid())],
        cwd=ROOT,
        env={**os.environ, "TROUPE_POD_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
    )
    try:
        yield PodUnderTest(kind, _ready_address(process), TOKEN)
    finally:
        end(process)


def _ready_address(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    line = process.stdout.readline() if readable else b""
    assert line, f"the pod did not start (exit code {process.poll()})"
    address: str = json.loads(line)["address"]
    return address


def _comfyui(folder: Path) -> Iterator[PodUnderTest]:
    with start_comfyui(folder, packs={"lab_nodes": LAB}) as comfyui:
        yield PodUnderTest("comfyui", comfyui.address)
