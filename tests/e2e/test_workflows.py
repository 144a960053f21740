"""From an export to pictures in one command: a server and its pods as processes, the printed last line run as it is."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from controlplane.client import Client
from tests.e2e.serving import EMBEDDED, real_comfyui, served
from tests.short_recipes import REPOSITORY, short_catalogue
from tests.workflows.exports import node, portrait

EXAMPLE = REPOSITORY / "examples" / "characters" / "captain-nell"

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["embedded", "comfyui"])
async def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """A client of a server with pods of one kind: two embedded ones, or a real ComfyUI behind its agent."""
    pods = EMBEDDED if request.param == "embedded" else real_comfyui()
    folder = tmp_path_factory.mktemp("workflows")
    templates = short_catalogue(folder / "templates")
    async with served(folder, pods, {"TROUPE_TEMPLATES": str(templates)}) as client:
        yield client


async def troupe(client: Client, *arguments: str) -> str:
    """Run our command in a process of its own; answers what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "controlplane", *arguments),
        env={**os.environ, "TROUPE_URL": client.url},
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode()


def export(folder: Path, graph: dict[str, Any], name: str) -> str:
    graph["3"]["inputs"]["steps"] = 3
    graph["5"]["inputs"] |= {"width": 64, "height": 64}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(graph))
    return str(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nell(client: Client) -> str:
    """The id of a character that is ready."""
    answer = await client.create_character("Captain Nell", sorted(EXAMPLE.glob("*.png"))[:6], {"recipe": "fast"})
    job = await client.follow(answer["job"]["id"])
    assert job["status"] == "succeeded", job["error"]
    return str(answer["character"]["id"])


async def test_one_command_and_its_last_line_make_a_picture(client: Client, tmp_path: Path) -> None:
    told = await troupe(client, "workflows", "import", export(tmp_path, portrait(), "plain"))
    body = json.loads(shlex.split(told.strip().splitlines()[-1])[-1])
    job = await client.follow((await client.post("/generate-image", body))["job"]["id"])
    assert (job["status"], [(one["width"], one["height"]) for one in job["assets"]]) == ("succeeded", [(64, 64)])


async def test_with_a_character_the_last_line_makes_a_picture_of_it(client: Client, nell: str, tmp_path: Path) -> None:
    path = export(tmp_path, portrait(), "with_nell")
    told = await troupe(client, "workflows", "import", path, "--insert-character")
    command = shlex.split(told.strip().splitlines()[-1])
    assert command[:3] == ["troupe", "image", nell]
    out = tmp_path / "out"
    await troupe(client, *command[1:], "--seed", "3", "--out", str(out))
    await troupe(client, *command[1:], "--seed", "3", "--strength", "0", "--out", str(out))
    pictures = [Image.open(path).tobytes() for path in sorted(out.iterdir())]
    assert (len(pictures), pictures[0] == pictures[1]) == (2, False)


async def test_a_picture_made_here_can_be_imported_again(client: Client, nell: str, tmp_path: Path) -> None:
    path = export(tmp_path, portrait(), "first")
    await troupe(client, "workflows", "import", path, "--insert-character")
    await troupe(client, "image", nell, "smiling", "--workflow", "first", "--out", str(tmp_path / "out"))
    [picture] = (tmp_path / "out").iterdir()
    told = json.loads(await troupe(client, "workflows", "import", str(picture), "--name", "second", "--json"))
    assert (told["workflow"]["takes_character"], told["diff"]) == (True, [])
    assert "--workflow second" in await troupe(client, "workflows", "show", "second")


async def test_a_title_becomes_a_parameter(client: Client, tmp_path: Path) -> None:
    graph = portrait()
    graph["6"]["_meta"] = {"title": "@prompt"}
    graph["60"] = node("ImageScale", "Larger @larger.width @larger.height", image=["8", 0], upscale_method="lanczos",
                       width=96, height=96, crop="disabled")  # fmt: skip
    graph["9"]["inputs"]["images"] = ["60", 0]
    await troupe(client, "workflows", "import", export(tmp_path, graph, "titled"))
    answer = await client.post("/generate-image", {"prompt": "a cat", "workflow": "titled", "larger": 80})
    job = await client.follow(answer["job"]["id"])
    assert [(one["width"], one["height"]) for one in job["assets"]] == [(80, 80)], job["error"]
