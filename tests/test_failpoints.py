"""Failpoints: each armed entry happens once and is on disk before it happens; what is not armed does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from controlplane import failpoints
from controlplane.failpoints import Cut, Entry, Failpoints


def run(code: str, spec: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that is armed with ``spec``."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "TROUPE_FAILPOINTS": spec},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def fired(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(f"{file}.fired").read_text(encoding="utf-8").splitlines()]


async def test_nothing_happens_where_nothing_is_armed() -> None:
    assert failpoints.ON is False
    failpoints.reach("a step")
    await failpoints.areach("a step")
    assert failpoints.twice("a step") is False


def test_an_armed_kill_ends_the_process_at_its_step_and_nowhere_else() -> None:
    code = """
        from controlplane import failpoints
        failpoints.reach("another step")
        print("still here", flush=True)
        failpoints.reach("the step")
        print("never", flush=True)
    """
    done = run(code, "kill the step")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "still here\n")


def test_a_kill_is_on_disk_when_the_process_is_dead(tmp_path: Path) -> None:
    armed = tmp_path / "armed"
    armed.write_text("kill succeed before commit #1\n")
    run('from controlplane import failpoints; failpoints.reach("succeed before commit")', str(armed))
    assert [(line["kind"], line["name"]) for line in fired(armed)] == [("kill", "succeed before commit")]


def test_a_process_started_again_does_not_die_at_the_same_entry_again(tmp_path: Path) -> None:
    armed = tmp_path / "armed"
    armed.write_text("kill the step\n")
    code = 'from controlplane import failpoints; failpoints.reach("the step")'
    assert [run(code, str(armed)).returncode for _ in range(2)] == [-signal.SIGKILL, 0]


def test_equal_entries_with_tags_fire_once_each(tmp_path: Path) -> None:
    armed = tmp_path / "armed"
    armed.write_text("cut the step #1\ncut the step #2\n")
    points = Failpoints(str(armed))
    assert [points.take("the step", ("cut",)) for _ in range(3)] == ["cut", "cut", None]


def test_an_entry_may_wait_for_a_later_arrival() -> None:
    points = Failpoints("cut@3 the step")
    assert [points.take("the step", ("cut",)) for _ in range(4)] == [None, None, "cut", None]


def test_a_running_process_can_be_armed(tmp_path: Path) -> None:
    armed = tmp_path / "armed"
    points = Failpoints(str(armed))
    before = points.take("the step", ("cut",))
    armed.write_text("cut the step\n")
    assert (before, points.take("the step", ("cut",))) == (None, "cut")


def test_two_processes_with_one_file_share_one_firing(tmp_path: Path) -> None:
    armed = tmp_path / "armed"
    armed.write_text("cut the step\n")
    first, second = Failpoints(str(armed)), Failpoints(str(armed))
    assert [first.take("the step", ("cut",)), second.take("the step", ("cut",))] == ["cut", None]


def test_a_cut_is_a_connection_error() -> None:
    code = """
        import asyncio
        from controlplane import failpoints
        try:
            asyncio.run(failpoints.areach("the step"))
        except ConnectionError as error:
            print(type(error).__name__)
    """
    assert run(code, "cut the step").stdout == "Cut\n"
    assert issubclass(Cut, ConnectionError)


def test_a_duplicate_is_told_once_and_only_to_who_asks_for_it() -> None:
    code = """
        from controlplane import failpoints
        failpoints.reach("the step")
        print([failpoints.twice("the step"), failpoints.twice("the step")])
    """
    assert run(code, "duplicate the step").stdout == "[True, False]\n"


def test_a_stalled_process_goes_on_when_it_is_continued() -> None:
    code = 'from controlplane import failpoints; failpoints.reach("the step"); print("went on")'
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TROUPE_FAILPOINTS": "stall the step"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        stat = Path(f"/proc/{process.pid}/stat")
        end = time.monotonic() + 20.0
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < end, "it never stopped"
            time.sleep(0.01)
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=20)[0] == "went on\n"
    finally:
        process.kill()
        process.wait()


def test_the_names_that_were_reached_are_gathered(tmp_path: Path) -> None:
    points = Failpoints(str(tmp_path / "armed"))
    for name in ("one", "two", "one"):
        points.take(name, ("cut",))
    assert (tmp_path / "armed.seen").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("text", ["explode the step", "kill", "kill@x the step", ""])
def test_an_entry_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a failpoint|invalid literal"):
        Entry.parse(text)
