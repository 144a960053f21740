"""S3Save in a real ComfyUI: it promises its files, ComfyUI goes on, and the files arrive."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.comfy_nodes.control_plane_double import POD_KEY, ControlPlaneServer, serving

from .graphs import call, ended, node
from .server import NO_COMFYUI, ComfyUI, checkout, start_comfyui


@pytest.fixture(scope="module")
def server() -> Iterator[ControlPlaneServer]:
    with serving(ControlPlaneServer(str(uuid.uuid4()))) as double:
        yield double


@pytest.fixture(scope="module")
def linked(server: ControlPlaneServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    if checkout() is None:
        pytest.skip(NO_COMFYUI)
    environment = {"TROUPE_CONTROL_PLANE_URL": server.url, "TROUPE_POD_KEY": POD_KEY}
    with start_comfyui(tmp_path_factory.mktemp("linked"), environment) as running:
        yield running


def saved(comfyui: ComfyUI, server: ControlPlaneServer, count: int = 1, form: str = "png") -> dict[str, Any]:
    """The history entry of a prompt of the server's one attempt."""
    server.attempt = str(uuid.uuid4())
    graph = {
        "1": node("EmptyImage", width=64, height=64, batch_size=count, color=0),
        "2": node("S3Save", images=["1", 0], name="mira", format=form),
    }
    call(comfyui, "/prompt", {"prompt": graph, "prompt_id": server.attempt, "client_id": "tests"})
    return ended(comfyui, server.attempt)


def arrived(comfyui: ComfyUI, prompt_id: str) -> dict[str, Any]:
    until = time.monotonic() + 60
    while (told := call(comfyui, f"/troupe/uploads/{prompt_id}"))["pending"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    return dict(told)


def test_the_prompt_ends_before_its_file_is_stored(linked: ComfyUI, server: ControlPlaneServer) -> None:
    server.slow_puts = 2.0
    entry = saved(linked, server)
    told = call(linked, f"/troupe/uploads/{server.attempt}")
    server.slow_puts = 0.0
    (asset,) = entry["outputs"]["2"]["assets"]
    assert (entry["status"]["status_str"], told["pending"]) == ("success", [asset["upload"]])
    assert arrived(linked, server.attempt)["stored"] == [asset["upload"]]


def test_every_file_of_a_batch_arrives_under_the_name_of_its_asset(linked: ComfyUI, server: ControlPlaneServer) -> None:
    entry = saved(linked, server, count=3)
    arrived(linked, server.attempt)
    promised = {asset["upload"]: asset["name"] for asset in entry["outputs"]["2"]["assets"]}
    came = {one["upload"]: one["name"] for one in server.uploads if one["prompt_id"] == server.attempt}
    assert (came, sorted(came.values())) == (promised, ["mira-1.png", "mira-2.png", "mira-3.png"])


def test_a_video_arrives(linked: ComfyUI, server: ControlPlaneServer) -> None:
    entry = saved(linked, server, count=4, form="mp4")
    (asset,) = entry["outputs"]["2"]["assets"]
    assert (arrived(linked, server.attempt)["stored"], asset["frames"]) == ([asset["upload"]], 4)


def test_a_file_that_is_refused_is_told_with_the_reason(linked: ComfyUI, server: ControlPlaneServer) -> None:
    server.faults["/files/"] = [403]
    entry = saved(linked, server)
    (asset,) = entry["outputs"]["2"]["assets"]
    told = arrived(linked, server.attempt)
    assert told["failed"] == [{"upload": asset["upload"], "reason": "a fault was ordered (HTTP 403, ordered)"}]


def test_the_state_counts_what_is_on_its_way(linked: ComfyUI, server: ControlPlaneServer) -> None:
    server.slow_puts = 2.0
    saved(linked, server, count=2)
    during = call(linked, "/troupe/state")["uploads_pending"]
    server.slow_puts = 0.0
    arrived(linked, server.attempt)
    assert (during, call(linked, "/troupe/state")["uploads_pending"]) == (2, 0)
