"""The loop's timings over the real REST API: one training, pictures and a video, several rounds, medians."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from controlplane.client import Client
from controlplane.errors import TroupeError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "characters" / "captain-nell"
READY_SECONDS = 180.0
PICTURES = 5

#: What the loop must keep to on 2 otherwise idle cores, in seconds.
LIMITS = {"training": 120.0, "image": 3.0, "video": 20.0, "loop": 240.0}


@dataclass(frozen=True)
class Round:
    """One round, in seconds as a client sees them; ``image`` is the median of several; load is the 1 minute average."""

    training: float
    image: float
    video: float
    loop: float
    load: float


async def measure(rounds: int, recipe: str, folder: Path) -> list[Round]:
    """Run the loop ``rounds`` times against one server with its two embedded pods."""
    async with _server(folder) as url, Client(url) as client:
        return [await _one_round(client, recipe, number) for number in range(rounds)]


def report(rounds: list[Round]) -> str:
    """A table of medians beside the limits, with the load average of each round."""
    lines = [f"{'':10}{'median':>9}{'limit':>9}   rounds (s)"]
    for name, limit in LIMITS.items():
        values = [getattr(one, name) for one in rounds]
        each = " ".join(f"{value:.1f}" for value in values)
        lines.append(f"{name:10}{statistics.median(values):9.2f}{limit:9.0f}   {each}")
    loads = " ".join(f"{one.load:.2f}" for one in rounds)
    lines.append(f"load average before each round: {loads}; {os.cpu_count()} cores")
    return "\n".join(lines)


async def _one_round(client: Client, recipe: str, number: int) -> Round:
    load = os.getloadavg()[0]
    about = json.loads((EXAMPLE / "character.json").read_text(encoding="utf-8"))
    captions = json.loads((EXAMPLE / "captions.json").read_text(encoding="utf-8"))
    fields = {key: value for key, value in about.items() if key not in ("name", "trigger_word")}
    started = time.monotonic()
    made = await client.create_character(
        f"{about['name']} {number}", sorted(EXAMPLE.glob("*.png")), {**fields, "recipe": recipe, "captions": captions}
    )
    await _succeeded(client, made["job"]["id"])
    training = time.monotonic() - started
    character = made["character"]["id"]
    images = []
    for seed in range(PICTURES):
        body = {"character_id": character, "prompt": "smiling, red hoodie, in a forest", "seed": seed}
        images.append(await _timed(client, "/generate-image", body))
    video_body = {"character_id": character, "prompt": "smiling, blue suit, by the sea", "frames": 16, "seed": 1}
    video = await _timed(client, "/generate-video", video_body)
    return Round(training, statistics.median(images), video, time.monotonic() - started, load)


async def _timed(client: Client, path: str, body: dict[str, Any]) -> float:
    started = time.monotonic()
    answer = await client.post(path, body, headers={"Prefer": "wait=60"})
    await _succeeded(client, answer["job"]["id"])
    return time.monotonic() - started


async def _succeeded(client: Client, job_id: str) -> None:
    job = await client.follow(job_id)
    if job["status"] != "succeeded":
        raise RuntimeError(f"job {job_id} {job['status']}: {job.get('error')}")


@asynccontextmanager
async def _server(folder: Path) -> AsyncIterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["serve", "--embedded-pod", "--port", str(port), "--data", str(folder)]
    with (folder / "server.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "controlplane", *arguments, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        await _until_ready(url, process)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), 30)
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)


async def _until_ready(url: str, process: asyncio.subprocess.Process) -> None:
    give_up = time.monotonic() + READY_SECONDS
    async with Client(url) as client:
        while time.monotonic() < give_up:
            if process.returncode is not None:
                raise RuntimeError(f"the server ended with {process.returncode}")
            with contextlib.suppress(TroupeError):
                pods = await client.get("/pods")
                if sum(pod["state"] == "ready" for pod in pods["items"]) == 2:
                    return
            await asyncio.sleep(0.5)
    raise RuntimeError("the pods did not become ready")


def run(rounds: int = 3, recipe: str = "fast") -> dict[str, Any]:
    """Measure, print the table, answer the figures."""
    with tempfile.TemporaryDirectory() as folder:
        measured = asyncio.run(measure(rounds, recipe, Path(folder)))
    print(report(measured))
    return {"rounds": [asdict(one) for one in measured], "limits": LIMITS}
