"""The command line as people use it: what it sends, what it prints, and its exit codes."""

import io
import json
import socket
import subprocess
import sys

import pytest
from PIL import Image
from rich.console import Console

from controlplane.cli import contact_sheet, show
from controlplane.cli.arguments import build_parser
from controlplane.cli.commands import read_folder
from controlplane.cli.demo import find_examples
from controlplane.cli.server import check_weights
from controlplane.errors import BadRequest, NotFound
from controlplane.settings import REPOSITORY


def troupe(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "controlplane", *arguments], capture_output=True, text=True, timeout=60, env=environment
    )


def printed(draw):
    console = Console(width=100, record=True, file=io.StringIO())
    draw(console)
    return console.export_text()


def test_no_server_is_said_in_words_with_exit_code_1(unused_tcp_port):
    ran = troupe("pods", "--url", f"http://127.0.0.1:{unused_tcp_port}")
    assert (ran.returncode, "troupe serve --embedded-pod" in ran.stderr) == (1, True)


def test_a_port_that_is_taken_is_said_in_words(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = troupe("serve", "--port", str(taken.getsockname()[1]), "--data", str(tmp_path))
    assert (ran.returncode, "Cannot listen on 127.0.0.1" in ran.stderr) == (1, True), ran.stderr


def test_migrate_makes_the_database(tmp_path):
    ran = troupe("migrate", "--data", str(tmp_path / "new"))
    assert (ran.returncode, (tmp_path / "new" / "troupe.sqlite3").is_file()) == (0, True), ran.stderr


def test_an_unknown_command_has_exit_code_2():
    assert troupe("paint").returncode == 2


def test_the_server_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("TROUPE_URL", "http://studio:1234")
    assert build_parser().parse_args(["jobs"]).url == "http://studio:1234"


def test_every_file_but_notes_is_sent(tmp_path):
    for name in ("2.png", "1.jpg", "letter.bin", "captions.json", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_text("{}")
    assert [path.name for path in read_folder(tmp_path)[0]] == ["1.jpg", "2.png", "letter.bin"]


def test_captions_are_read(tmp_path):
    (tmp_path / "1.png").touch()
    (tmp_path / "captions.json").write_text(json.dumps({"1.png": "smiling"}))
    assert read_folder(tmp_path)[1] == {"1.png": "smiling"}


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(BadRequest, match="no images"):
        read_folder(tmp_path)


def test_weights_that_are_not_there_are_said_before_anything_starts(tmp_path):
    options = build_parser().parse_args(["serve", "--embedded-pod", "--models", str(tmp_path)])
    with pytest.raises(NotFound, match="make sketch-base"):
        check_weights(options)


def test_the_tiny_engine_needs_no_weights(tmp_path):
    check_weights(build_parser().parse_args(["demo", "--engine", "tiny", "--models", str(tmp_path)]))


def test_too_few_examples_are_said(tmp_path):
    with pytest.raises(BadRequest, match="0 example characters"):
        find_examples(tmp_path, 1)


def test_the_demo_leaves_the_trigger_word_to_the_server_so_that_it_can_run_twice():
    [example] = find_examples(REPOSITORY / "examples" / "characters", 1)
    assert "trigger_word" not in example.fields


def test_verdicts_and_advice_are_shown():
    dataset = {
        "images": [
            {"name": "1.png", "verdict": "ok", "reasons": [], "width": 512, "height": 640},
            {"name": "[2].png", "verdict": "reject", "reasons": ["is a copy of 1.png"], "width": None, "height": None},
        ],
        "advice": ["More angles would help."],
    }
    text = printed(lambda console: show.verdicts(console, dataset, "Nell"))
    assert all(words in text for words in ("512 x 640", "[2].png", "is a copy of 1.png", "More angles would help."))


def test_an_address_is_never_broken():
    url = "http://127.0.0.1:8700/files/" + "x" * 200
    assert url in printed(lambda console: show.addresses(console, [("a picture", url)], "What came out"))


def test_a_progress_is_told_in_words():
    progress = {"phase": "training", "step": 3, "total_steps": 9, "loss": 0.1234567, "eta_seconds": 41.6}
    assert show.words_of(progress) == "training, step 3/9, loss 0.1235, 42 s left"


def test_a_progress_that_knows_nothing_yet_is_no_error():
    assert show.words_of({"phase": None, "step": None, "total_steps": None, "loss": None, "eta_seconds": None}) == ""


async def test_outside_a_terminal_progress_is_one_line_for_every_quarter():
    class FollowsAtOnce:
        async def follow(self, job_id, told):
            for percent in range(101):
                told({"progress": {"phase": "training", "percent": percent}})
            return {"status": "succeeded"}

    console = Console(width=100, record=True, file=io.StringIO())
    with show.board(console) as board:
        await board.follow(FollowsAtOnce(), "Nell", {"id": "job_1"})
    assert len(console.export_text().strip().splitlines()) == 6


def test_the_contact_sheet_has_a_strip_for_every_row(tmp_path):
    red, tall = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (20, 80), "blue")
    strips = [contact_sheet.Strip("one", [contact_sheet.Cell(red, "a long prompt, in many words, in a forest")])] * 2
    contact_sheet.draw([*strips, contact_sheet.Strip("two", [contact_sheet.Cell(tall)] * 3)], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 + 3 * 168, 8 + 3 * (26 + 160 + 30 + 8))


def test_the_contact_sheet_shows_the_pictures(tmp_path):
    strip = contact_sheet.Strip("one", [contact_sheet.Cell(Image.new("RGB", (64, 64), (255, 0, 0)))])
    contact_sheet.draw([strip], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.getpixel((8 + 80, 8 + 26 + 80)) == (255, 0, 0)
