"""The demo as a person runs it: real processes, a real training of a few steps, real files; and a clean end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.short_recipes import REPOSITORY, STEPS, short_catalogue

IMAGES = 6
SECONDS = 540

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds its processes through /proc"),
]


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    """A catalogue with a very short recipe, and one example character with a few images."""
    folder = tmp_path_factory.mktemp("demo")
    short_catalogue(folder / "templates")
    source = REPOSITORY / "examples" / "characters" / "captain-nell"
    example = folder / "examples" / "captain-nell"
    example.mkdir(parents=True)
    names = ["character.json", "captions.json", *(path.name for path in sorted(source.glob("*.png"))[:IMAGES])]
    for name in names:
        shutil.copy(source / name, example)
    captions = json.loads((example / "captions.json").read_text())
    (example / "captions.json").write_text(json.dumps({name: captions[name] for name in names if name in captions}))
    return folder


class Demo:
    """One run of ``troupe demo``, and everything it started, found by a mark in the environment."""

    def __init__(self, surroundings, folder):
        self.mark = f"TROUPE_TEST_MARK={folder}"
        self.log = folder / "demo.log"
        environment = {
            **os.environ,
            "TROUPE_TEMPLATES": str(surroundings / "templates"),
            "TROUPE_TEST_MARK": str(folder),
            "COLUMNS": "300",
        }
        arguments = ["demo", "--engine", "tiny", "--threads", "1", "--folder", str(folder / "demo")]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "controlplane", *arguments, "--examples", str(surroundings / "examples")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=REPOSITORY,
            )

    @property
    def text(self):
        return self.log.read_text()

    def wait_for(self, words):
        deadline = time.monotonic() + SECONDS
        while words not in self.text:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.2)

    def processes(self):
        """Ids of the living processes of this run."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark in path.read_bytes().decode(errors="replace").split("\0"):
                    found.append(int(path.parent.name))
            except OSError:  # ended meanwhile, or is not ours
                continue
        return found

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@pytest.fixture(scope="module")
def finished(surroundings, tmp_path_factory):
    demo = Demo(surroundings, tmp_path_factory.mktemp("finished"))
    try:
        demo.process.wait(SECONDS)
        yield demo
    finally:
        demo.end()


@pytest.fixture
def training(surroundings, tmp_path):
    demo = Demo(surroundings, tmp_path)
    try:
        demo.wait_for("training, step")
        yield demo
    finally:
        demo.end()


def test_the_demo_ends_well(finished):
    assert finished.process.returncode == 0, finished.text


def test_the_demo_shows_a_verdict_for_every_image(finished):
    assert len(re.findall(r"^\d{3}\.png +\d+ x \d+ +(?:ok|warn)", finished.text, re.MULTILINE)) == IMAGES


def test_the_demo_shows_the_training_step_and_loss(finished):
    assert re.search(rf"training, step \d+/{STEPS}, loss \d", finished.text)


def test_the_demo_ends_with_the_urls_of_six_pictures_and_a_video(finished):
    suffixes = re.findall(r"http://127\.0\.0\.1:\d+/files/default/captain-nell/\S+\.(png|mp4)\s", finished.text)
    assert sorted(suffixes) == ["mp4"] + ["png"] * 6


def test_the_files_behind_the_urls_are_there(finished):
    keys = re.findall(r"/files/(default/captain-nell/\S+\.(?:png|mp4))\s", finished.text)
    stored = finished.log.parent / "demo" / "data" / "files"
    assert [key for key in keys if not (stored / key).is_file()] == []


def test_the_demo_writes_a_contact_sheet_with_three_strips(finished):
    with Image.open(finished.log.parent / "demo" / "contact_sheet.png") as sheet:
        assert sheet.height == 8 + 3 * (26 + 160 + 30 + 8)


def test_nothing_of_a_finished_demo_is_left_running(finished):
    assert finished.processes() == []


def test_a_demo_that_is_told_to_stop_while_it_trains_leaves_nothing_running(training):
    training.end()
    time.sleep(2)  # a process that watches for its parent looks once a second
    assert (training.process.returncode, training.processes()) == (128 + signal.SIGTERM, [])


def test_a_demo_that_is_killed_takes_its_pods_along(training):
    training.process.kill()
    training.process.wait(10)
    deadline = time.monotonic() + 60
    while training.processes() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert training.processes() == []
