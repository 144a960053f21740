"""The start script brings up the real agent: it joins a real control plane, tells of its models, and ends politely."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from .hub_double import HubDouble
from .start_script import REPOSITORY, SECRET, Layout, lay_out
from .test_model_files import content

HEALTHCHECK = REPOSITORY / "pod_images" / "comfyui" / "healthcheck.py"
FAKE_COMFYUI = REPOSITORY / "tests" / "agent" / "fake_comfyui"
SKETCH_MODELS = REPOSITORY / "pod_images" / "embedded" / "models"
WAIT_SECONDS = 240


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def control_plane(folder: Path) -> Iterator[str]:
    """A real server in a folder of its own; its URL."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TROUPE_")}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "controlplane", "serve", "--port", str(port), "--data", str(folder / "server")],
            cwd=REPOSITORY,
            env={**environment, "TROUPE_JOIN_TOKEN": SECRET, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: get(url, "/readyz"), process, folder / "server.log")
        yield url
    finally:
        end(process)


def get(url: str, path: str) -> Any:
    """The answer, None while nobody listens."""
    try:
        with urllib.request.urlopen(url + path, timeout=10) as answer:
            return json.loads(answer.read() or b"true")
    except OSError:
        return None


def until(found: Callable[[], Any], process: subprocess.Popen[Any], log: Path) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if result := found():
            return result
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(f"it did not happen; exit code {process.poll()}\n{log.read_text(errors='replace')[-4000:]}")


def end(process: subprocess.Popen[Any]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


class Started:
    """A pod that start.sh brought up, and the server it joined."""

    def __init__(self, layout: Layout, url: str, changes: dict[str, str]) -> None:
        self.url = url
        self.layout = layout
        self.port = free_port()
        self.log = layout.root / "pod.log"
        environment = {
            **layout.environment,
            "TROUPE_CONTROL_PLANE_URL": url,
            "TROUPE_POD_PORT": str(self.port),
            "TROUPE_POD_HOST": "127.0.0.1",
            "TROUPE_POD_URL": f"http://127.0.0.1:{self.port}",
            "TROUPE_POD_NAME": "the pod",
            **changes,
        }
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(REPOSITORY / "pod_images" / "comfyui" / "start.sh")], env=environment, stdout=output, stderr=output
            )

    def pod(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """This pod as the control plane shows it, once it fits."""

        def look() -> dict[str, Any] | None:
            listed = get(self.url, "/pods") or {"items": []}
            return next((pod for pod in listed["items"] if pod["name"] == "the pod" and fits(pod)), None)

        found: dict[str, Any] = until(look, self.process, self.log)
        return found

    def healthy(self) -> int:
        """The exit code of the image's health check."""
        environment = {**os.environ, "TROUPE_POD_PORT": str(self.port)}
        return subprocess.run([sys.executable, str(HEALTHCHECK)], env=environment, check=False).returncode


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Starts a pod with changes to its environment; ends it and its server with the test."""
    with ExitStack() as stack:
        url = stack.enter_context(control_plane(tmp_path))
        layout = lay_out(tmp_path / "image", agent=REPOSITORY)

        def bring_up(**changes: str) -> Started:
            started = Started(layout, url, changes)
            stack.callback(end, started.process)
            return started

        yield bring_up


def one_model(folder: Path) -> str:
    """A manifest of one file of the hub double; its path."""
    line = {"folder": "checkpoints", "name": "m.safetensors", "repo": "maker/model", "file": "big.safetensors"}
    manifest = folder / "models.yaml"
    manifest.write_text(yaml.safe_dump([line]))
    return str(manifest)


def test_a_pod_joins_while_it_fetches_its_models_and_says_how_far_it_is(
    start: Callable[..., Started], hub: HubDouble, tmp_path: Path
) -> None:
    hub.lfs["maker/model/big.safetensors"] = content(60_000_000)
    hub.bytes_per_second = 4_000_000
    started = start(HF_ENDPOINT=hub.endpoint, TROUPE_MODELS_MANIFEST=one_model(tmp_path))
    pod = started.pod(lambda pod: bool((pod["boot"] or {}).get("percent")))
    assert (pod["state"], pod["kind"], pod["boot"]["phase"]) == ("joining", "comfyui", "models")
    assert pod["boot"]["detail"] == "downloading checkpoints/m.safetensors"
    assert started.healthy() == 0
    assert end(started.process) == 0
    assert started.healthy() == 1
    assert SECRET not in started.log.read_text()


def test_a_pod_is_ready_once_its_models_are_there_and_ends_in_order_on_sigterm(
    start: Callable[..., Started], hub: HubDouble, tmp_path: Path
) -> None:
    body = hub.lfs["maker/model/big.safetensors"] = content(1_000_000)
    started = start(HF_ENDPOINT=hub.endpoint, TROUPE_MODELS_MANIFEST=one_model(tmp_path), COMFYUI_DIR=str(FAKE_COMFYUI))
    pod = started.pod(lambda pod: pod["state"] == "ready")
    assert pod["address"] == f"http://127.0.0.1:{started.port}"
    assert (started.layout.volume / "models/checkpoints/m.safetensors").read_bytes() == body
    assert end(started.process) == 0


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("COMFYUI_DIR"), reason="no real ComfyUI: set COMFYUI_DIR and COMFYUI_PYTHON")
def test_a_pod_with_a_real_comfyui_becomes_ready_and_drains_on_sigterm(start: Callable[..., Started]) -> None:
    started = start(
        COMFYUI_DIR=os.environ["COMFYUI_DIR"],
        COMFYUI_PYTHON=os.environ.get("COMFYUI_PYTHON", sys.executable),
        TROUPE_COMFYUI_ARGS=f"--cpu {os.environ.get('COMFYUI_ARGS', '')}",
        TROUPE_MODELS=str(SKETCH_MODELS),
        TROUPE_MODELS_MANIFEST="",
        TROUPE_POD_LABELS="image",
    )
    pod = started.pod(lambda pod: pod["state"] == "ready")
    assert (pod["address"], pod["labels"]) == (f"http://127.0.0.1:{started.port}", ["image"])
    assert end(started.process) == 0
