"""``troupe pause`` and ``troupe resume`` against a real server on loopback."""

from __future__ import annotations

import io
import json
from argparse import Namespace
from collections.abc import Iterator

import pytest
from rich.console import Console

from controlplane.cli import projects
from controlplane.cli.arguments import build_parser
from controlplane.settings import Settings
from tests.api.api_server import Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(Settings(data=tmp_path_factory.mktemp("data"), port=0)) as running:
        yield running


@pytest.fixture
def console() -> Console:
    return Console(width=200, file=io.StringIO(), highlight=False)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def options(server: Server, *arguments: str) -> Namespace:
    return build_parser().parse_args([*arguments, "--url", server.url])


async def test_pause_says_since_when(server: Server, console: Console) -> None:
    assert await projects.pause(options(server, "pause", "the bill"), console) == 0
    assert printed(console).startswith("project default is paused since 20")


async def test_a_reason_arrives_as_it_was_typed(server: Server, console: Console) -> None:
    await projects.pause(options(server, "pause", "the [red] bill", "--json"), console)
    assert json.loads(printed(console))["pause_reason"] == "the [red] bill"


async def test_resume_ends_the_pause(server: Server, console: Console) -> None:
    await projects.pause(options(server, "pause"), Console(file=io.StringIO()))
    assert await projects.resume(options(server, "resume"), console) == 0
    assert printed(console) == "project default is not paused\n"
