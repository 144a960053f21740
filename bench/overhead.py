"""What going through Troupe costs: jobs a second and latency against the same pod driven directly, in one run.

`python -m bench.overhead` measures the embedded pod and, where COMFYUI_DIR is set, a real ComfyUI behind its agent;
there also comfyui-api, where COMFYUI_API_DIR names a built checkout. All take turns, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import psutil

from bench.http_wire import Caller
from bench.load import share
from bench.processes import JOIN_TOKEN, Program, control_plane, running
from bench.rivals import Direct, Rival, Troupe, comfyui_api, comfyui_api_folder
from bench.verdicts import conclude

GRAPHS = {"no-op": 0.0, "100 ms": 0.1, "500 ms": 0.5}
CONCURRENCIES = (1, 8)
READY_SECONDS = 180.0
# Figures of the aims: the share of the direct jobs/s, and milliseconds of added latency at concurrency 1.
WORKING_SHARE = 0.98
NOOP_SHARE = {1: 0.5, 8: 0.8}
ADDED_P50_MS, ADDED_P95_MS = 15.0, 30.0
CPU_MS = 4.0


@dataclass
class Rounds:
    """The rounds of one way, graph and concurrency: jobs/s of each round, seconds of every job."""

    per_second: list[float] = field(default_factory=list)
    seconds: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """A pod that Troupe knows and that can be reached directly."""

    kind: str
    rivals: Sequence[Rival]
    server: Program


@contextlib.asynccontextmanager
async def embedded_place(folder: Path) -> AsyncIterator[Place]:
    """The embedded pod, with its bearer token in our hands."""
    token = secrets.token_urlsafe(16)
    async with contextlib.AsyncExitStack() as stack:
        server = await _server(stack, folder)
        arguments = [
            "-m",
            "pod_images.embedded",
            "--engine",
            "tiny",
            "--data",
            str(folder / "pod"),
            "--labels",
            "image",
        ]
        arguments += ["--control-plane", server.url, "--node-pack", str(Path(__file__).with_name("nodes"))]
        arguments += ["--name", "embedded", "--parent-pid", str(os.getpid())]
        secret = {"TROUPE_POD_TOKEN": token, "TROUPE_JOIN_TOKEN": JOIN_TOKEN}
        pod = running(arguments, folder / "pod.log", secret)
        _, line = await stack.enter_async_context(pod)
        await _until_pod_ready(server.url)
        direct = await stack.enter_async_context(Direct(orjson.loads(line)["address"], token).connected())
        yield Place("embedded pod", [direct, Troupe(server.url)], server)


@contextlib.asynccontextmanager
async def comfyui_place(folder: Path) -> AsyncIterator[Place]:
    """A real ComfyUI behind its agent; the direct way goes to its own port, past the agent."""
    async with contextlib.AsyncExitStack() as stack:
        server = await _server(stack, folder)
        base = folder / "agent" / "comfyui"
        (base / "custom_nodes").mkdir(parents=True)
        (base / "custom_nodes" / "bench_nodes").symlink_to(Path(__file__).with_name("nodes"))
        own = f"--cpu --preview-method none {os.environ.get('COMFYUI_ARGS', '')}"
        arguments = ["-m", "pod_images.agent", "--comfyui-dir", os.environ["COMFYUI_DIR"], f"--comfyui-args={own}"]
        arguments += ["--data", str(folder / "agent"), "--control-plane", server.url, "--labels", "image"]
        arguments += ["--name", "comfyui", "--parent-pid", str(os.getpid())]
        agent, _ = await stack.enter_async_context(
            running(arguments, folder / "agent.log", {"TROUPE_JOIN_TOKEN": JOIN_TOKEN})
        )
        await _until_pod_ready(server.url)
        address = _comfyui_below(agent.pid)
        direct = await stack.enter_async_context(Direct(address, "").connected())
        rivals: list[Rival] = [direct, Troupe(server.url)]
        if (checkout := comfyui_api_folder()) is not None:
            beside = folder / "comfyui-api"
            beside.mkdir()
            rivals.append(await stack.enter_async_context(comfyui_api(checkout, address, base, beside)))
        else:
            print("comfyui-api is left out: COMFYUI_API_DIR names no built checkout of it", flush=True)
        yield Place("ComfyUI", rivals, server)


async def measure(place: Place, rounds: int, share_of_jobs: float) -> dict[str, Any]:
    """``{graph: {concurrency: {way: Rounds}}}`` with the control plane's CPU beside it."""
    colours = count(secrets.randbelow(2**20))
    found: dict[str, Any] = {"kind": place.kind, "cpu_ms_per_job": {}, "graphs": {}}
    for name, seconds in GRAPHS.items():
        for concurrency in CONCURRENCIES:
            jobs = max(concurrency * 2, int(share_of_jobs * (200 if not seconds else 6 / seconds)))
            ways = {rival.name: Rounds() for rival in place.rivals}
            cpu = 0.0
            for number in range(rounds + 1):
                # The first round warms up; the others begin with another way each.
                turn = number % len(place.rivals)
                for rival in (*place.rivals[turn:], *place.rivals[:turn]):
                    before = place.server.usage().cpu
                    took, each = await _round(rival, seconds, concurrency, jobs if number else jobs // 4 + 1, colours)
                    if number == 0:
                        continue
                    ways[rival.name].per_second.append(len(each) / took)
                    ways[rival.name].seconds.append(each)
                    if rival.name == Troupe.name:
                        cpu += place.server.usage().cpu - before
            found["cpu_ms_per_job"][f"{name}, {concurrency}"] = 1000 * cpu / (rounds * jobs)
            found["graphs"].setdefault(name, {})[concurrency] = _told(ways)
            _print_row(place.kind, name, concurrency, found["graphs"][name][concurrency])
    return found


async def _round(
    rival: Rival, seconds: float, concurrency: int, jobs: int, colours: count[int]
) -> tuple[float, list[float]]:
    """Seconds that all took together, and that each took."""
    each: list[float] = []
    left = iter(range(jobs))

    async def client() -> None:
        for _ in left:
            began = time.monotonic()
            await rival.make(seconds, next(colours) % 2**24)
            each.append(time.monotonic() - began)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(client())
    return time.monotonic() - began, each


def _told(ways: dict[str, Rounds]) -> dict[str, Any]:
    """For each way: median jobs/s, its share of the direct ones round by round, added latency in ms."""
    direct = ways[Direct.name]
    found = {}
    for name, rounds in ways.items():
        shares = [mine / theirs for mine, theirs in zip(rounds.per_second, direct.per_second, strict=True)]
        added = [
            1000 * (one - statistics.median(bare))
            for mine, bare in zip(rounds.seconds, direct.seconds, strict=True)
            for one in mine
        ]
        found[name] = {
            "per_second": statistics.median(rounds.per_second),
            "share_of_direct": statistics.median(shares),
            "added_p50_ms": statistics.median(added),
            "added_p95_ms": share(added, 0.95),
            "rounds": rounds.per_second,
        }
    return found


def _print_row(kind: str, name: str, concurrency: int, ways: dict[str, Any]) -> None:
    for way, one in ways.items():
        print(
            f"{kind:13} {name:7} x{concurrency}  {way:12} {one['per_second']:8.2f} jobs/s  "
            f"{one['share_of_direct']:6.3f} of direct   added p50 {one['added_p50_ms']:7.1f} p95 "
            f"{one['added_p95_ms']:7.1f} ms",
            flush=True,
        )


def judged(found: dict[str, Any]) -> list[tuple[str, bool]]:
    """The aims as sentences, and whether each is met."""
    verdicts = []
    for name, by_concurrency in found["graphs"].items():
        for concurrency, ways in by_concurrency.items():
            mine = ways[Troupe.name]
            if GRAPHS[name] and int(concurrency) == 1:
                continue  # one client that waits for every picture measures latency, not what a pod can do
            aim = WORKING_SHARE if GRAPHS[name] else NOOP_SHARE[int(concurrency)]
            told = f"{found['kind']}, {name} x{concurrency}: {mine['share_of_direct']:.3f} of direct, aim {aim}"
            verdicts.append((told, mine["share_of_direct"] >= aim))
            if not GRAPHS[name] and "comfyui-api" in ways:
                theirs = ways["comfyui-api"]["share_of_direct"]
                told = f"{found['kind']}, {name} x{concurrency}: better than comfyui-api's {theirs:.3f}"
                verdicts.append((told, mine["share_of_direct"] > theirs))
    one = found["graphs"]["no-op"][1][Troupe.name]
    for quantile, aim in (("p50", ADDED_P50_MS), ("p95", ADDED_P95_MS)):
        value = one[f"added_{quantile}_ms"]
        verdicts.append((f"{found['kind']}: added {quantile} {value:.1f} ms, aim {aim:g} ms", value <= aim))
    for where, used in found["cpu_ms_per_job"].items():
        told = f"{found['kind']}, {where}: {used:.1f} ms of control-plane CPU per job, aim {CPU_MS:g} ms"
        if where.startswith("no-op"):
            verdicts.append((told, used <= CPU_MS))
    return verdicts


async def _server(stack: contextlib.AsyncExitStack, folder: Path) -> Program:
    (folder / "data").mkdir()
    return await stack.enter_async_context(control_plane(folder / "data"))


async def _until_pod_ready(url: str) -> None:
    caller = Caller(url)
    async with asyncio.timeout(READY_SECONDS):
        while True:
            pods = orjson.loads((await caller.call("GET", "/pods"))[1])["items"]
            if any(pod["state"] == "ready" for pod in pods):
                break
            await asyncio.sleep(0.2)
    caller.close()


def _comfyui_below(agent: int) -> str:
    """Where the ComfyUI that an agent started listens."""
    for child in psutil.Process(agent).children(recursive=True):
        words = child.cmdline()
        if any(word.endswith("main.py") for word in words) and "--port" in words:
            return f"http://127.0.0.1:{words[words.index('--port') + 1]}"
    raise RuntimeError("the agent runs no ComfyUI")


async def _all(options: argparse.Namespace) -> list[dict[str, Any]]:
    places = {"embedded": embedded_place, "comfyui": comfyui_place}
    found = []
    for name in options.pods:
        if name == "comfyui" and not os.environ.get("COMFYUI_DIR"):
            print("a real ComfyUI is left out: COMFYUI_DIR is not set", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="troupe-bench-") as folder:
            async with places[name](Path(folder)) as place:
                found.append(await measure(place, options.rounds, options.share))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.add_argument("--pods", nargs="*", choices=("embedded", "comfyui"), default=["embedded", "comfyui"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of jobs in a round (1)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    found = asyncio.run(_all(options))
    conclude([verdict for one in found for verdict in judged(one)], {"places": found}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
