"""The commands that speak HTTP to a running server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from controlplane.cli import show
from controlplane.client import Client, Json
from controlplane.errors import BadRequest

GENERATION_FIELDS = (
    "prompt", "negative_prompt", "width", "height", "steps", "cfg", "seed", "version", "lora_strength", "workflow",
    "format", "priority", "deadline_seconds",
)  # fmt: skip
IMAGE_FIELDS = (*GENERATION_FIELDS, "count")
VIDEO_FIELDS = (*GENERATION_FIELDS, "frames", "seconds", "fps", "motion", "image_asset_id")
CREATE_FIELDS = ("class_word", "trigger_word", "description", "base_model", "recipe", "priority", "deadline_seconds")
NOT_IMAGES = (".json", ".txt", ".md", ".yaml", ".csv")


async def create(options: argparse.Namespace, console: Console) -> int:
    """Train a new character on a folder of images."""
    images, captions = read_folder(options.folder)
    fields: Json = {field: getattr(options, field) for field in CREATE_FIELDS}
    async with Client(options.url) as client:
        created = await client.create_character(options.name, images, {**fields, "captions": captions or None})
        if options.json and options.no_wait:
            return _print_json(console, created)
        if not options.json:
            show.verdicts(console, created["dataset"], created["character"]["name"])
        if options.no_wait:
            console.print(f"character {created['character']['id']}, training job {created['job']['id']}")
            return 0
        label = f"training {created['character']['id']}"
        job = await _follow(client, console, label, created["job"], options.json)
        character = await client.get(f"/characters/{created['character']['id']}")
    if options.json:
        _print_json(console, character)
    else:
        console.print(f"character [bold]{character['id']}[/] is {character['status']}")
    return 0 if job["status"] == "succeeded" else 1


async def image(options: argparse.Namespace, console: Console) -> int:
    """Make images of a character."""
    return await _generate(options, console, "/generate-image", IMAGE_FIELDS)


async def video(options: argparse.Namespace, console: Console) -> int:
    """Make a video of a character."""
    return await _generate(options, console, "/generate-video", VIDEO_FIELDS)


async def characters(options: argparse.Namespace, console: Console) -> int:
    """List characters."""
    columns = ("id", "name", "status", "class", "trigger", "base", "version", "images", "videos")
    return await _list(
        options, console, "/characters", {"limit": options.limit}, columns,
        lambda one: (
            one["id"], one["name"], one["status"], one["class_word"], one["trigger_word"], one["base_model"],
            one["active_version"], one["counts"]["images"], one["counts"]["videos"],
        ),
    )  # fmt: skip


async def jobs(options: argparse.Namespace, console: Console) -> int:
    """List jobs, newest first."""
    query = {
        "limit": options.limit, "character_id": options.character, "status": options.status, "kind": options.kind,
    }  # fmt: skip
    return await _list(
        options, console, "/jobs", query, ("id", "kind", "status", "character", "created", "what"),
        lambda one: (
            one["id"], one["kind"], one["status"], one["character_id"], one["created_at"][:19], _what(one),
        ),
    )  # fmt: skip


async def workflows(options: argparse.Namespace, console: Console) -> int:
    """List workflow templates."""
    return await _list(
        options, console, "/workflows", {}, ("name", "kind", "base", "title", "inputs"),
        lambda one: (one["name"], one["kind"], one["base"], one["title"], ", ".join(one["inputs"])),
    )  # fmt: skip


def read_folder(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The files to send of a folder of references (everything but notes), and its captions.json; BadRequest if empty.

    What is not an image is sent as well: the server's verdict says so, by name.
    """
    if not folder.is_dir():
        raise BadRequest(f"There is no folder {folder}.")
    images = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.suffix.lower() not in NOT_IMAGES
    )
    if not images:
        raise BadRequest(f"There are no images in {folder}.")
    captions = folder / "captions.json"
    return images, json.loads(captions.read_text("utf-8")) if captions.is_file() else {}


def pairs(given: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` texts as a mapping; BadRequest for one without a name or ``=``."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise BadRequest(f"--set takes NAME=VALUE, not {text!r}.")
        found[name.strip()] = value
    return found


def own_inputs(given: Sequence[str]) -> Json:
    """``NAME=VALUE`` texts as the members of a request: numbers, true and false as such, all else as text."""
    found: Json = {}
    for name, value in pairs(given).items():
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        found[name] = parsed if isinstance(parsed, bool | int | float | str) else value
    return found


async def _generate(options: argparse.Namespace, console: Console, path: str, fields: Sequence[str]) -> int:
    named = {field: getattr(options, field) for field in fields}
    body = {**own_inputs(options.set), "character_id": options.character, **named}
    async with Client(options.url) as client:
        accepted = await client.post(path, body)
        if options.no_wait:
            if options.json:
                return _print_json(console, accepted)
            console.print(f"job {accepted['job']['id']}")
            return 0
        label = f"{accepted['job']['kind']} of {options.character}"
        job = await _follow(client, console, label, accepted["job"], options.json)
        if options.json:
            _print_json(console, job)
        for asset in job["assets"]:
            if not options.json:
                console.print(asset["url"], markup=False, soft_wrap=True)
            if options.out is not None:
                await _save(client, asset, options.out)
    return 0 if job["status"] == "succeeded" else 1


async def _save(client: Client, asset: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = await client.download(asset["url"])
    (folder / asset["url"].rsplit("/", 1)[-1].split("?")[0]).write_bytes(data)


async def _follow(client: Client, console: Console, label: str, job: Json, quiet: bool) -> Json:
    """Follow a job to its end; warnings and failure are told, quietly or not."""
    if quiet:
        final = await client.follow(job["id"])
    else:
        with show.board(console) as board:
            final = await board.follow(client, label, job)
    errors = Console(stderr=True, highlight=False)
    for warning in final["warnings"]:
        errors.print(f"note: {warning}", markup=False)
    if final["status"] != "succeeded":
        show.failure(errors, final)
    return final


async def _list(
    options: argparse.Namespace, console: Console, path: str, query: Mapping[str, Any], columns: Sequence[str], row: Any
) -> int:
    async with Client(options.url) as client:
        page = await client.get(path, **query)
    if options.json:
        return _print_json(console, page)
    show.table(console, columns, [row(one) for one in page["items"]])
    return 0


def _what(job: Mapping[str, Any]) -> str:
    if job.get("error"):
        return str(job["error"]["detail"])
    if job["status"] == "running":
        return show.words_of(job["progress"])
    return str((job.get("request") or {}).get("prompt") or "")


def _print_json(console: Console, value: Mapping[str, Any]) -> int:
    console.print(json.dumps(value, indent=2, ensure_ascii=False), markup=False, soft_wrap=True)
    return 0
