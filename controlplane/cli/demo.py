"""``troupe demo``: a server with its pods, an example character trained there, pictures and a video of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from controlplane.cli import contact_sheet, show
from controlplane.cli.children import Command, end, importable, start
from controlplane.cli.commands import CREATE_FIELDS, read_folder
from controlplane.cli.server import EMBEDDED_PODS, check_weights, free_port
from controlplane.client import Client, Json, Unreachable
from controlplane.errors import BadRequest, TroupeError
from controlplane.settings import REPOSITORY

HOST = "127.0.0.1"
PROMPTS = (
    "smiling, red hoodie, in a forest",
    "angry, blue suit, in a city",
    "surprised, green sweater, by the sea",
    "sad, yellow shirt, under a night sky",
    "neutral, purple armour, in the mountains",
    "smiling, white shirt, in a room",
)
VIDEO_PROMPT = "smiling, blue suit, by the sea"
MOTION = "surprised"
FRAMES = 16
READY_SECONDS = 300.0
POLL_SECONDS = 0.3
SERVER_PATIENCE_SECONDS = (20.0,)
LOG_LINES_SHOWN = 20


class DemoFailed(TroupeError):
    """The demo did not get to its end."""


@dataclass(frozen=True)
class Example:
    """One example character: its folder, and what character.json says."""

    folder: Path
    name: str
    fields: Json


@dataclass
class Portrayal:
    """What came of one example: the final jobs, in the order of the prompts."""

    example: Example
    character_id: str
    training: Json
    images: list[Json] = field(default_factory=list)
    video: Json = field(default_factory=dict)


async def run(options: argparse.Namespace, console: Console) -> int:
    """Run the demo; 0 once every picture and the video are there. On a terminal the server stays up until Ctrl-C."""
    examples = find_examples(options.examples or REPOSITORY / "examples" / "characters", options.characters)
    check_weights(options)
    folder: Path = options.folder
    url = f"http://{HOST}:{free_port(HOST)}"
    server = await start(_server(options, url, folder))
    gone = asyncio.create_task(server.wait())
    try:
        await _unless(gone, _portray_all(options, console, url, examples), folder)
        if not (console.is_terminal and sys.stdin.isatty()):
            pods = " ".join(_pod_arguments(options))
            console.print(f"To look at it again: troupe serve {pods} --data {folder / 'data'}", soft_wrap=True)
            return 0
        console.print(f"The server stays up at {url} (API: {url}/docs) until Ctrl-C.", soft_wrap=True)
        return await _until_interrupted(gone)
    finally:
        await asyncio.shield(end(server, SERVER_PATIENCE_SECONDS))


def find_examples(folder: Path, count: int) -> list[Example]:
    """The first ``count`` example characters by folder name; BadRequest where there are fewer."""
    found = sorted(path.parent for path in folder.glob("*/character.json"))
    if len(found) < count:
        raise BadRequest(f"There are {len(found)} example characters in {folder}; {count} were asked for.")
    return [_example(path) for path in found[:count]]


def _example(folder: Path) -> Example:
    told = json.loads((folder / "character.json").read_text("utf-8"))
    # The server makes the trigger word: a demo that is run again in the same folder finds the example's own one taken.
    wanted = {*CREATE_FIELDS, "subject"} - {"trigger_word"}
    return Example(folder, str(told["name"]), {key: told[key] for key in sorted(wanted & told.keys())})


def _server(options: argparse.Namespace, url: str, folder: Path) -> Command:
    return Command(
        name="server",
        arguments=[
            sys.executable, "-m", "controlplane", "serve", *_pod_arguments(options),
            "--host", HOST, "--port", url.rsplit(":", 1)[1], "--data", str(folder / "data"),
            "--engine", options.engine, "--parent-pid", str(os.getpid()),
            *(["--threads", str(options.threads)] if options.threads else []),
            *(part for models in options.models for part in ("--models", str(models.resolve()))),
        ],
        log_file=folder / "data" / "logs" / "server.log",
        # What the surrounding shell sets for a server of its own must not move the demo's.
        environment={"TROUPE_PUBLIC_URL": "", "TROUPE_PUBLIC_FILES_URL": "", "TROUPE_DATABASE_URL": "", **importable()},
    )  # fmt: skip


def _pod_arguments(options: argparse.Namespace) -> list[str]:
    """What ``troupe serve`` is told to start: the given ComfyUI, else the embedded pods."""
    return ["--comfyui-dir", str(options.comfyui_dir.resolve())] if options.comfyui_dir else ["--embedded-pod"]


async def _unless(gone: asyncio.Task[int], work: Coroutine[Any, Any, None], folder: Path) -> None:
    """Await the work; DemoFailed at once where the server ends meanwhile."""
    working = asyncio.create_task(work)
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not working.done():
            raise DemoFailed(f"The server ended with {gone.result()}.\n{_log_tail(folder)}")
        await working
    except Unreachable as error:
        raise DemoFailed(f"{error.detail}\n{_log_tail(folder)}") from None
    finally:
        working.cancel()


async def _until_interrupted(gone: asyncio.Task[int]) -> int:
    try:
        await gone
    except asyncio.CancelledError:
        return 0
    return 1


async def _portray_all(options: argparse.Namespace, console: Console, url: str, examples: Sequence[Example]) -> None:
    began = time.monotonic()
    async with Client(url) as client:
        pods = 1 if options.comfyui_dir else len(EMBEDDED_PODS)
        words = "the server and ComfyUI" if options.comfyui_dir else "the server and two pods"
        with console.status(f"Starting {words}"):
            await _wait_for_pods(client, pods)
        console.print(f"Now {words} are up, after {time.monotonic() - began:.1f} s")
        created = [await _create(client, console, example, options.recipe) for example in examples]
        with show.board(console) as board:
            portrayals = [
                asyncio.create_task(_portray(client, board, example, answer))
                for example, answer in zip(examples, created, strict=True)
            ]
            try:
                done = await asyncio.gather(*portrayals)
            finally:
                for task in portrayals:
                    task.cancel()
        sheet = options.folder / "contact_sheet.png"
        await _draw_sheet(client, done, sheet)
    _show_urls(console, done, sheet)
    console.print(f"The whole loop took {time.monotonic() - began:.0f} s")


async def _wait_for_pods(client: Client, count: int) -> None:
    """Wait until so many pods are ready to work."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            pods = await client.get("/pods")
            if sum(pod["state"] == "ready" for pod in pods["items"]) >= count:
                return
        except Unreachable:  # it is still starting
            pass
        await asyncio.sleep(POLL_SECONDS)
    raise Unreachable(f"The pods were not ready after {READY_SECONDS:.0f} s.")


async def _create(client: Client, console: Console, example: Example, recipe: str) -> Json:
    images, captions = read_folder(example.folder)
    fields = {**example.fields, "recipe": recipe, "captions": captions or None}
    created = await client.create_character(example.name, images, fields)
    show.verdicts(console, created["dataset"], example.name)
    return created


async def _portray(client: Client, board: show.Board, example: Example, created: Json) -> Portrayal:
    """Wait for the training, then make the pictures and the video of one character."""
    character_id = str(created["character"]["id"])
    training = _succeeded(await board.follow(client, f"{example.name}: training", created["job"]))
    portrayal = Portrayal(example, character_id, training)
    jobs = []
    for number, prompt in enumerate(PROMPTS, 1):
        body = {"character_id": character_id, "prompt": prompt, "seed": number}
        jobs.append((f"{example.name}: {prompt}", (await client.post("/generate-image", body))["job"]))
    body = {"character_id": character_id, "prompt": VIDEO_PROMPT, "motion": MOTION, "frames": FRAMES, "seed": 1}
    jobs.append((f"{example.name}: video", (await client.post("/generate-video", body))["job"]))
    final = await asyncio.gather(*(board.follow(client, label, job) for label, job in jobs))
    portrayal.images = [_succeeded(job) for job in final[:-1]]
    portrayal.video = _succeeded(final[-1])
    return portrayal


def _succeeded(job: Json) -> Json:
    if job["status"] != "succeeded" or (job["kind"] != "train" and not job["assets"]):
        error = job.get("error") or {}
        raise DemoFailed(f"The {job['kind']} job {job['id']} {job['status']}: {error.get('detail', 'it left nothing')}")
    return job


async def _draw_sheet(client: Client, portrayals: Sequence[Portrayal], path: Path) -> None:
    strips = []
    for portrayal in portrayals:
        name = portrayal.example.name
        references = read_folder(portrayal.example.folder)[0][: contact_sheet.MAX_CELLS]
        cells = [contact_sheet.Cell(contact_sheet.picture_of(file.read_bytes())) for file in references]
        strips.append(contact_sheet.Strip(f"{name}: references", cells))
        cells = [
            contact_sheet.Cell(contact_sheet.picture_of(await client.download(job["assets"][0]["url"])), prompt)
            for prompt, job in zip(PROMPTS, portrayal.images, strict=True)
        ]
        strips.append(contact_sheet.Strip(f"{name}: made from prompts", cells))
        frames = contact_sheet.frames_of(await client.download(portrayal.video["assets"][0]["url"]))
        strips.append(contact_sheet.Strip(f"{name}: video frames", [contact_sheet.Cell(frame) for frame in frames]))
    await asyncio.to_thread(contact_sheet.draw, strips, path)


def _show_urls(console: Console, portrayals: Sequence[Portrayal], sheet: Path) -> None:
    rows = []
    for portrayal in portrayals:
        name = portrayal.example.name
        for label, job in zip((*PROMPTS, "video"), (*portrayal.images, portrayal.video), strict=True):
            rows.append((f"{name}: {label}", str(job["assets"][0]["url"])))
    rows.append(("contact sheet", str(sheet)))
    show.addresses(console, rows, "What came out")


def _log_tail(folder: Path) -> str:
    """The ends of the server's and the pods' logs: what a person needs to see why it did not work."""
    tails = []
    for path in sorted((folder / "data" / "logs").glob("*.log")):
        lines = path.read_text("utf-8", errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        tails.append("\n".join([f"--- {path}", *lines]))
    return "\n".join(tails)
