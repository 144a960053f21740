"""Importing, showing and removing workflows on the command line, against a real server."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.cli import workflows
from controlplane.cli.arguments import build_parser
from controlplane.cli.entry import main
from controlplane.settings import Settings
from tests.api.api_server import Server, serving
from tests.workflows.exports import control_net, png_with, portrait


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(Settings(data=tmp_path_factory.mktemp("data"), port=0)) as started:
        yield started


@pytest.fixture
def export(tmp_path: Path) -> Path:
    path = tmp_path / "My Portrait.json"
    path.write_text(json.dumps(portrait()))
    return path


def troupe(server: Server, *arguments: Any) -> int:
    return main(["workflows", "--url", server.url, *map(str, arguments)])


def test_the_last_line_of_an_import_uses_the_workflow(server: Server, export: Path, capsys: Any) -> None:
    assert troupe(server, "import", export) == 0
    last = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert last[:4] == ["curl", "-X", "POST", f"{server.url}/generate-image"]
    assert json.loads(last[-1]) == {"prompt": "a cat in a hat", "workflow": "my_portrait"}


def test_with_a_character_the_last_line_is_our_own_command(server: Server, export: Path, capsys: Any) -> None:
    troupe(server, "import", export, "--name", "mine", "--insert-character")
    last = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    options = build_parser().parse_args(last[1:])
    assert (options.command, options.workflow, options.url) == ("image", "mine", server.url)


def test_every_finding_and_change_is_shown(server: Server, export: Path, capsys: Any) -> None:
    troupe(server, "import", export, "--dry-run", "--insert-character")
    told = capsys.readouterr().out
    assert all(words in told for words in ("6.text", "+ inserted", "~ replaced", "Nothing was kept"))


def test_a_picture_is_imported_too(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "from_picture.png"
    path.write_bytes(png_with(prompt=json.dumps(portrait())))
    assert troupe(server, "import", path) == 0


def test_the_editors_own_format_says_the_way_out(server: Server, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "editor.json"
    path.write_text(json.dumps({"nodes": [], "links": [], "version": 0.4}))
    assert troupe(server, "import", path) == 1
    assert "Workflow > Export (API)" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_told(server: Server, capsys: Any) -> None:
    assert troupe(server, "import", "nowhere.json") == 1
    assert "no file nowhere.json" in capsys.readouterr().err


def test_a_workflow_is_shown_with_its_inputs(server: Server, export: Path, capsys: Any) -> None:
    troupe(server, "import", export, "--name", "shown")
    capsys.readouterr()
    assert troupe(server, "show", "shown") == 0
    assert "negative_prompt" in capsys.readouterr().out


def test_the_list_is_what_no_action_means(server: Server, export: Path, capsys: Any) -> None:
    troupe(server, "import", export, "--name", "listed")
    capsys.readouterr()
    troupe(server)
    assert "listed" in capsys.readouterr().out


def test_a_removed_workflow_is_gone(server: Server, export: Path) -> None:
    troupe(server, "import", export, "--name", "gone")
    assert [troupe(server, "remove", "gone"), troupe(server, "show", "gone")] == [0, 1]


def test_the_servers_json_is_printed_alone(server: Server, export: Path, capsys: Any) -> None:
    troupe(server, "import", export, "--name", "as_json", "--json")
    assert json.loads(capsys.readouterr().out)["status"] == "created"


def test_pictures_are_part_of_the_command_that_uses_a_workflow(server: Server, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "posed.json"
    path.write_text(json.dumps(control_net()))
    troupe(server, "import", path)
    assert json.loads(shlex.split(capsys.readouterr().out.strip().splitlines()[-1])[-1])["image"] == "ASSET_ID"


def test_an_input_of_the_workflows_own_is_sent_with_its_type() -> None:
    from controlplane.cli.commands import own_inputs

    given = ["steps=3", "tiled=true", "style=in oil", "pose=asset_x", "words=[1]", "a=b=c"]
    assert own_inputs(given) == {
        "steps": 3, "tiled": True, "style": "in oil", "pose": "asset_x", "words": "[1]", "a": "b=c",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "sent"), [("pose.png", True), ("id_rsa", False), ("notes.txt", False)])
def test_a_strangers_export_makes_no_file_but_a_picture_leave_this_machine(
    name: str, sent: bool, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert workflows._local_file(str(tmp_path / name), tmp_path) == (tmp_path / name if sent else None)


def test_nobody_at_comfyuis_address_is_told(export: Path, unused_tcp_port: int, capsys: Any) -> None:
    assert main(["workflows", "try", str(export), "--comfyui", f"127.0.0.1:{unused_tcp_port}"]) == 1
    assert "Is it running" in capsys.readouterr().err


def test_a_local_picture_is_found_beside_the_export(tmp_path: Path) -> None:
    (tmp_path / "pose.png").write_bytes(b"x")
    assert workflows._local_file("pose.png", tmp_path) == tmp_path / "pose.png"


def test_a_try_is_stopped_with_its_command(export: Path) -> None:
    """A cancelled command tells its thread, which would otherwise go on following the run."""
    options = build_parser().parse_args(["workflows", "try", str(export), "--comfyui", "127.0.0.1:9"])
    told: list[Any] = []

    def follow(options: Any, console: Any, stop: Any) -> int:
        told.append(stop.wait(20))
        return 1

    async def cancelled() -> None:
        task = asyncio.create_task(workflows.try_out(options, None))  # type: ignore[arg-type]
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    original, workflows._try_now = workflows._try_now, follow  # type: ignore[assignment]
    try:
        asyncio.run(cancelled())
    finally:
        workflows._try_now = original  # type: ignore[assignment]
    assert told == [True]
