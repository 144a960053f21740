"""A graph straight on one ComfyUI, for which the embedded pod stands in: results, progress, stopping, each failure."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from comfy_nodes.host import set_host
from controlplane.comfy import sync_runner
from controlplane.comfy.messages import Finished
from controlplane.comfy.sync_runner import (
    ComfyUnreachable,
    ResultFile,
    RunFailed,
    RunProgress,
    RunStopped,
    SyncRunner,
    files_of,
)
from pod_images.embedded.pod import Pod, build_pod
from pod_images.embedded.server import build_app
from tests.embedded.graphs import node, painting
from tests.waiting import until

LAB = Path(__file__).resolve().parents[1] / "contract" / "lab_nodes"
TOKEN = "sync runner"


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    pod = build_pod(tmp_path_factory.mktemp("pod"), [], TOKEN, "tiny", [LAB])
    pod.start()
    yield pod
    pod.stop()
    set_host(None)


@pytest.fixture
async def address(pod: Pod) -> AsyncIterator[str]:
    runner = web.AppRunner(build_app(pod), shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def lab(middle: str, **inputs: Any) -> dict[str, Any]:
    return {
        "1": node("EmptyImage", width=32, height=32, batch_size=1, color=0),
        "9": {**node(middle, image=["1", 0], **inputs), "_meta": {"title": "In the middle"}},
        "3": node("SaveImage", images=["9", 0], filename_prefix="lab"),
    }


def sleeping(salt: int) -> dict[str, Any]:
    """A graph that takes a minute unless it is interrupted."""
    return lab("LabSleep", steps=600, step_seconds=0.1, mode="check", salt=salt)


async def run(address: str, graph: dict[str, Any], token: str = TOKEN, stop: threading.Event | None = None) -> Finished:
    runner = SyncRunner(address, token, stop)
    return await asyncio.to_thread(runner.run, graph, lambda progress: None)


async def test_a_graph_runs_and_its_picture_is_saved(address: str, tmp_path: Path) -> None:
    finished = await run(address, painting())
    runner = SyncRunner(address, TOKEN)
    paths = [await asyncio.to_thread(runner.download, file, tmp_path / "out") for file in files_of(finished)]
    assert [Image.open(path).size for path in paths] == [(64, 64)]


async def test_the_same_name_again_gets_a_number(address: str, tmp_path: Path) -> None:
    runner = SyncRunner(address, TOKEN)
    file = next(iter(files_of(await run(address, painting()))))
    paths = [await asyncio.to_thread(runner.download, file, tmp_path) for _ in range(2)]
    assert paths[1].stem == f"{paths[0].stem}-2"


async def test_progress_goes_up_to_the_whole_and_names_the_node(address: str) -> None:
    told: list[RunProgress] = []
    runner = SyncRunner(address, TOKEN)
    graph = lab("LabSleep", steps=5, step_seconds=0.05, mode="progress", salt=901)
    await asyncio.to_thread(runner.run, graph, told.append)
    fractions = [one.fraction for one in told]
    assert fractions == sorted(fractions)
    assert ("In the middle", 5) in {(one.node, one.total_steps) for one in told}


async def test_it_works_where_no_websocket_is_let_through(pod: Pod) -> None:
    @web.middleware
    async def without_sockets(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path == "/ws":
            raise web.HTTPNotFound
        return await handler(request)

    app = build_app(pod)
    app.middlewares.insert(0, without_sockets)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        finished = await run(f"127.0.0.1:{runner.addresses[0][1]}", painting(seed=2))
    finally:
        await runner.cleanup()
    assert len(list(files_of(finished))) == 1


async def test_a_local_picture_is_placed_among_the_inputs(address: str, tmp_path: Path) -> None:
    target = io.BytesIO()
    Image.new("RGB", (24, 16), "red").save(target, "PNG")
    (tmp_path / 'my "start".png').write_bytes(target.getvalue())
    runner = SyncRunner(address, TOKEN)
    name = await asyncio.to_thread(runner.upload, tmp_path / 'my "start".png')
    graph = {"1": node("LoadImage", image=name), "2": node("SaveImage", images=["1", 0], filename_prefix="again")}
    file = next(iter(files_of(await run(address, graph))))
    assert Image.open(await asyncio.to_thread(runner.download, file, tmp_path / "out")).size == (24, 16)


async def test_a_node_that_fails_is_named(address: str) -> None:
    with pytest.raises(RunFailed, match=r"Node 9 'In the middle' \(LabFail\) failed: lab failure"):
        await run(address, lab("LabFail", kind="value"))


async def test_an_unknown_class_says_what_to_install(address: str) -> None:
    with pytest.raises(RunFailed, match=r"NoSuchNode does not exist.*Install the node pack"):
        await run(address, lab("NoSuchNode"))


async def test_a_value_out_of_range_is_named_with_its_node(address: str) -> None:
    with pytest.raises(RunFailed, match=r"node 5 'KSampler'.*smaller than min of 1 \(steps\)"):
        await run(address, painting(steps=0))


async def test_a_graph_of_which_only_a_part_would_run_is_refused(address: str) -> None:
    graph = {**painting(), "70": node("SaveImage", images=["71", 0], filename_prefix="x")}
    graph["71"] = node("EmptyImage", width=-1, height=32, batch_size=1, color=0)
    with pytest.raises(RunFailed, match="node 71"):
        await run(address, graph)


async def test_without_its_token_the_way_is_told(address: str) -> None:
    with pytest.raises(RunFailed, match="--token"):
        await run(address, painting(), token="another")


async def test_nobody_at_the_address_is_told(unused_tcp_port: int) -> None:
    with pytest.raises(ComfyUnreachable, match="Is it running"):
        await run(f"http://127.0.0.1:{unused_tcp_port}", painting())


async def test_something_else_at_the_address_is_told() -> None:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>hello</html>", content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", page)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        with pytest.raises(RunFailed, match="not as ComfyUI does"):
            await run(f"http://127.0.0.1:{runner.addresses[0][1]}", painting())
    finally:
        await runner.cleanup()


async def test_a_token_does_not_follow_a_redirect() -> None:
    seen: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        raise web.HTTPFound("/elsewhere" if request.path != "/elsewhere" else "/more")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", elsewhere)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        with pytest.raises(RunFailed):
            await asyncio.to_thread(
                SyncRunner(f"http://127.0.0.1:{runner.addresses[0][1]}", "secret").object_info, ["KSampler"]
            )
    finally:
        await runner.cleanup()
    assert seen == ["Bearer secret"]


async def test_a_run_can_be_stopped_and_is_taken_back(address: str, pod: Pod) -> None:
    stop = threading.Event()
    running = asyncio.create_task(run(address, sleeping(902), stop=stop))
    await until(lambda: pod.queue.snapshot()[0])
    stop.set()
    with pytest.raises(RunStopped):
        await asyncio.wait_for(running, 30)
    await until(lambda: pod.queue.snapshot() == ([], []))


async def test_a_run_that_the_other_side_lost_is_told(address: str, pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_runner, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(sync_runner, "HINT_SECONDS", 0.1)
    stop = threading.Event()
    first = asyncio.create_task(run(address, sleeping(903), stop=stop))
    await until(lambda: pod.queue.snapshot()[0])
    second = asyncio.create_task(run(address, painting(seed=9)))
    await until(lambda: pod.queue.snapshot()[1])
    pod.queue.delete(pod.queue.snapshot()[1][0].prompt_id)
    with pytest.raises(RunFailed, match="lost the run"):
        await asyncio.wait_for(second, 60)
    stop.set()
    with pytest.raises(RunStopped):
        await first


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        ({"1": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}}, ["a.png"]),
        ({"1": {"gifs": [{"filename": "a.mp4", "subfolder": "x", "format": "video/h264-mp4"}]}}, ["a.mp4"]),
        ({"1": {"images": [{"filename": "a.png"}], "animated": [True]}, "2": {"text": ["hello"]}}, ["a.png"]),
        ({"1": {"a": [{"filename": "a.png"}]}, "2": {"b": [{"filename": "a.png"}]}}, ["a.png"]),
        ({"1": None, "2": {"x": 3}, "3": {"y": [None, {"filename": 3}, {"filename": ""}]}}, []),
    ],
)
def test_files_are_found_under_any_key_each_once(outputs: Any, names: list[str]) -> None:
    assert [file.filename for file in files_of(Finished("p", "succeeded", outputs))] == names


@pytest.mark.parametrize("name", ["../../evil.png", "..\\evil.png", "/etc/evil.png", "..."])
async def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    async def view(request: web.Request) -> web.Response:
        return web.Response(body=b"x")

    app = web.Application()
    app.router.add_get("/view", view)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        sync = SyncRunner(f"http://127.0.0.1:{runner.addresses[0][1]}")
        path = await asyncio.to_thread(sync.download, ResultFile("1", name, "", "output"), tmp_path / "out")
    finally:
        await runner.cleanup()
    assert path.resolve().parent == (tmp_path / "out").resolve()
