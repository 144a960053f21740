"""Workflows on the command line: list, import, show, remove, and try one on a ComfyUI of one's own."""

from __future__ import annotations

import argparse
import asyncio
import json
import mimetypes
import os
import shlex
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

from controlplane.cli import commands, show
from controlplane.cli.arguments import DEFAULT_URL
from controlplane.client import Client, Json
from controlplane.comfy.messages import Finished
from controlplane.comfy.sync_runner import RunProgress, SyncRunner, files_of
from controlplane.errors import BadRequest
from controlplane.workflows import graph as graphs
from controlplane.workflows import object_info, overriding, sources

SIGNS = {"inserted": ("+", "green"), "removed": ("-", "red"), "replaced": ("~", "yellow"), "rewired": ("~", "cyan")}
IMPORT_FIELDS = ("name", "title", "kind", "base")


async def run(options: argparse.Namespace, console: Console) -> int:
    """The action that was asked for; without one, the list."""
    actions = {None: commands.workflows, "import": import_, "show": show_one, "remove": remove, "try": try_out}
    return await actions[options.action](options, console)


async def import_(options: argparse.Namespace, console: Console) -> int:
    """Import an export, and say what was found and how to use it."""
    if not options.file.is_file():
        raise BadRequest(f"There is no file {options.file}.")
    fields = {name: getattr(options, name) for name in IMPORT_FIELDS}
    flags = {"insert_character": options.insert_character, "dry_run": options.dry_run}
    async with Client(options.url) as client:
        answer = await client.import_workflow(options.file, {**fields, **flags})
        if options.json:
            console.print(json.dumps(answer, indent=2, ensure_ascii=False), markup=False, soft_wrap=True)
            return 0
        character = await _ready_character(client) if answer["workflow"]["takes_character"] else None
    _print_outcome(console, answer)
    if options.dry_run:
        console.print("Nothing was kept: run it again without --dry-run.")
    else:
        _print_use(console, options.url, answer["workflow"], character)
    return 0


async def show_one(options: argparse.Namespace, console: Console) -> int:
    """One workflow: its inputs and what it needs."""
    async with Client(options.url) as client:
        workflow = await client.get(f"/workflows/{options.name}")
        character = await _ready_character(client) if workflow["takes_character"] else None
    if options.json:
        console.print(json.dumps(workflow, indent=2, ensure_ascii=False), markup=False, soft_wrap=True)
        return 0
    origin = "imported" if workflow["imported"] else "part of Troupe"
    console.print(f"[bold]{escape(workflow['name'])}[/] ({workflow['kind']}, base {workflow['base']}, {origin})")
    if workflow["description"]:
        console.print(workflow["description"], markup=False)
    _print_inputs(console, workflow)
    console.print(f"needs: {_needs(workflow['needs'])}", markup=False)
    console.print(f"version {workflow['digest'][:12]}, {len(workflow['versions'])} older", markup=False)
    _print_use(console, options.url, workflow, character)
    return 0


async def remove(options: argparse.Namespace, console: Console) -> int:
    """Remove an imported workflow."""
    async with Client(options.url) as client:
        await client.delete(f"/workflows/{options.name}")
    console.print(f"removed {options.name}", markup=False)
    return 0


async def try_out(options: argparse.Namespace, console: Console) -> int:
    """Run an export on one ComfyUI, without any server of ours, and save what comes out."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(_try_now, options, console, stop)
    finally:
        stop.set()  # after Ctrl-C the thread takes the run back, and ends


def _try_now(options: argparse.Namespace, console: Console, stop: threading.Event) -> int:
    if not options.file.is_file():
        raise BadRequest(f"There is no file {options.file}.")
    graph = graphs.parse(sources.read(options.file.read_bytes()).graph)
    runner = SyncRunner(options.comfyui, options.token, stop)
    facts = object_info.read(runner.object_info(sorted(graphs.node_classes(graph))))
    api = overriding.with_values(graph, overriding.settable(graph, facts), commands.pairs(options.set))
    for picture in overriding.pictures(api, facts):
        local = _local_file(picture.name, options.file.parent)
        if local is not None:
            api[picture.node]["inputs"][picture.field] = runner.upload(local)
            console.print(f"uploaded {local}", markup=False, soft_wrap=True)
    finished = _run_shown(runner, api, console)
    return _save_all(runner, finished, options.out, console)


def _run_shown(runner: SyncRunner, api: Mapping[str, Any], console: Console) -> Finished:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), TaskProgressColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        row = shown.add_task("waiting", total=1.0)

        def told(progress: RunProgress) -> None:
            steps = f" {progress.step}/{progress.total_steps}" if progress.total_steps else ""
            shown.update(row, completed=progress.fraction, description=escape((progress.node or "running") + steps))

        finished = runner.run(api, told)
        shown.update(row, completed=1.0, description="done")
    return finished


def _save_all(runner: SyncRunner, finished: Finished, folder: Path, console: Console) -> int:
    saved = [runner.download(file, folder) for file in files_of(finished)]
    for path in saved:
        console.print(str(path), markup=False, soft_wrap=True)
    # S3Save on a pod hands its files to the server instead.
    urls = [one["url"] for told in finished.outputs.values() for one in told.get("assets", []) if "url" in one]
    for url in urls:
        console.print(url, markup=False, soft_wrap=True)
    if not saved and not urls:
        console.print("The graph ran, but nothing that it made was saved: end it in Save Image.", markup=False)
        return 1
    return 0


def _local_file(name: str, folder: Path) -> Path | None:
    """A picture on this machine by the name in the graph; None where ComfyUI is to find it among its own.

    An export may be a stranger's: no file but a picture, a video or a sound leaves this machine because it says so.
    """
    if (mimetypes.guess_type(name)[0] or "").partition("/")[0] not in ("image", "video", "audio"):
        return None
    return next((path for path in (Path(name).expanduser(), folder / name) if path.is_file()), None)


async def _ready_character(client: Client) -> str | None:
    page = await client.get("/characters", limit=50)
    return next((str(one["id"]) for one in page["items"] if one["status"] == "ready"), None)


def _print_outcome(console: Console, answer: Json) -> None:
    workflow = answer["workflow"]
    said = {"checked": "checked, not kept", "unchanged": "already there, unchanged"}
    status = said.get(answer["status"], answer["status"])
    told = f"[bold]{escape(workflow['name'])}[/] ({workflow['kind']}, base {workflow['base']}): {status}, "
    console.print(f"{told}version {workflow['digest'][:12]}")
    # Version and checksum of a LoRA go with its character; nobody sets them.
    told_of = {*workflow["inputs"], "character_id"}
    rows = [(one["name"], ", ".join(one["places"]), one["how"]) for one in answer["findings"] if one["name"] in told_of]
    show.table(console, ("input", "where", "found by"), rows)
    for change in answer["diff"]:
        sign, colour = SIGNS[change["action"]]
        console.print(f"[{colour}]{sign} {change['action']}[/] {escape(change['detail'])}", soft_wrap=True)
    if answer["pods"]:
        rows = [(one["pod"], one["state"], ", ".join(one["missing"]) or "nothing") for one in answer["pods"]]
        show.table(console, ("pod", "state", "lacks"), rows)
    for warning in answer["warnings"]:
        console.print(f"[yellow]note:[/] {escape(warning)}", soft_wrap=True)
    if not workflow["takes_character"]:
        console.print("It takes no character; with --insert-character it would.")


def _print_inputs(console: Console, workflow: Json) -> None:
    rows = []
    for name, spec in workflow["inputs"].items():
        bounds = [f"{spec[one]:.16g}" for one in ("min", "max") if spec.get(one) is not None]
        allowed = " to ".join(bounds) if len(bounds) == 2 else ", ".join((spec.get("options") or [])[:8])
        default = "needed" if spec["required"] else json.dumps(spec.get("default"), ensure_ascii=False)[:40]
        rows.append((name, spec["type"], "random" if name == "seed" else default, allowed, spec["description"]))
    show.table(console, ("input", "type", "default", "allowed", "what"), rows)


def _needs(needs: Json) -> str:
    files = [f"{folder}/{name}" for folder, names in needs["models"].items() for name in names]
    return ", ".join([*files, *needs["nodes"]])


def _print_use(console: Console, url: str, workflow: Json, character: str | None) -> None:
    """The last line: the command that uses the workflow, ready to be pasted."""
    console.print(use_of(url, workflow, character), markup=False, soft_wrap=True)


def use_of(url: str, workflow: Json, character: str | None) -> str:
    """A command that makes something with a workflow: ours where a character plays, else curl."""
    prompt = str(workflow["example"].get("prompt", "a portrait"))
    pictures = {name: "ASSET_ID" for name, spec in workflow["inputs"].items() if spec["type"] == "image"}
    if workflow["takes_character"]:
        parts = ["troupe", workflow["kind"], character or "CHARACTER", prompt, "--workflow", workflow["name"]]
        for name, value in pictures.items():
            parts += ["--set", f"{name}={value}"]
        if url != (os.environ.get("TROUPE_URL") or DEFAULT_URL):
            parts += ["--url", url]
        return shlex.join(parts)
    body = {"prompt": prompt, "workflow": workflow["name"], **pictures}
    address, data = f"{url.rstrip('/')}/generate-{workflow['kind']}", json.dumps(body, ensure_ascii=False)
    return shlex.join(["curl", "-X", "POST", address, "-H", "Content-Type: application/json", "-d", data])
