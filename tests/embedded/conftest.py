"""A tiny pod inside the test process, and one served on loopback."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from comfy_nodes.host import set_host
from pod_images.embedded.pod import Pod, build_pod
from pod_images.embedded.server import build_app

LAB = Path(__file__).resolve().parents[1] / "contract" / "lab_nodes"
TOKEN = "embedded-tests"
Runner = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    pod = build_pod(tmp_path_factory.mktemp("pod"), [], TOKEN, "tiny", [LAB])
    pod.start()
    yield pod
    pod.stop()
    set_host(None)


@pytest.fixture
def run(pod: Pod) -> Runner:
    """Runs a graph through the executor and returns its history entry."""

    def run_graph(graph: dict[str, Any]) -> dict[str, Any]:
        outputs = [key for key, node in graph.items() if getattr(_class(pod, node), "OUTPUT_NODE", False)]
        item = pod.submit(graph, outputs, {})
        deadline = time.monotonic() + 60
        while not (history := pod.queue.history(item.prompt_id)):
            assert time.monotonic() < deadline, "the graph did not finish"
            time.sleep(0.01)
        return history[item.prompt_id]

    return run_graph


def _class(pod: Pod, node: dict[str, Any]) -> Any:
    return pod.registry.classes[node["class_type"]]


@pytest.fixture
async def address(pod: Pod) -> AsyncIterator[str]:
    """Where the pod listens during one test."""
    runner = web.AppRunner(build_app(pod), shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:
        yield session
