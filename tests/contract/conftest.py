"""The pods of the contract suite: the embedded pod always, a real ComfyUI where the environment gives one."""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from .client import Client, PodUnderTest

ROOT = Path(__file__).resolve().parents[2]
LAB = Path(__file__).with_name("lab_nodes")
TOKEN = "contract-suite"
START_SECONDS = 180


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lab: needs the suite's own nodes inside the pod")


@pytest.fixture(scope="session", params=["embedded", "comfyui"])
def pod(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodUnderTest]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "embedded":
        yield from _embedded(folder)
    elif os.environ.get("COMFYUI_URL"):
        yield PodUnderTest("comfyui", os.environ["COMFYUI_URL"].rstrip("/"), has_lab=False)
    elif os.environ.get("COMFYUI_DIR"):
        yield from _comfyui(Path(os.environ["COMFYUI_DIR"]), folder)
    else:
        pytest.skip("no real ComfyUI: set COMFYUI_DIR (with COMFYUI_PYTHON) or COMFYUI_URL")


@pytest.fixture
async def client(pod: PodUnderTest, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    if request.node.get_closest_marker("lab") and not pod.has_lab:
        pytest.skip("this ComfyUI was started by others and has no lab nodes")
    async with aiohttp.ClientSession(headers=pod.headers) as session:
        client = Client(session, pod)
        await client.idle()
        yield client


def _embedded(folder: Path) -> Iterator[PodUnderTest]:
    command = [sys.executable, "-m", "pod_images.embedded", "--engine", "tiny", "--data", str(folder)]
    process = subprocess.Popen(
        [*command, "--node-pack", str(LAB), "--parent-pid", str(os.getpid())],
        cwd=ROOT,
        env={**os.environ, "TROUPE_POD_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
    )
    try:
        yield PodUnderTest("embedded", _ready_address(process), TOKEN)
    finally:
        _end(process)


def _ready_address(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    line = process.stdout.readline() if readable else b""
    assert line, f"the pod did not start (exit code {process.poll()})"
    address: str = json.loads(line)["address"]
    return address


def _comfyui(checkout: Path, base: Path) -> Iterator[PodUnderTest]:
    shutil.copytree(LAB, base / "custom_nodes" / "lab_nodes", ignore=shutil.ignore_patterns("__pycache__"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--cpu", "--port", str(port), "--base-directory", str(base), "--disable-auto-launch"]
    options += ["--disable-api-nodes", "--database-url", f"sqlite:///{base}/comfyui.db", "--preview-method", "none"]
    options += shlex.split(os.environ.get("COMFYUI_ARGS", ""))
    interpreter = os.environ.get("COMFYUI_PYTHON", sys.executable)
    log = (base / "log.txt").open("wb")
    process = subprocess.Popen([interpreter, str(checkout / "main.py"), *options], cwd=checkout, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address + "/system_stats", process, base / "log.txt")
        yield PodUnderTest("comfyui", address)
    finally:
        _end(process)
        log.close()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"ComfyUI did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
