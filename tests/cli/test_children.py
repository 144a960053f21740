"""Child processes: started, started again when they die, and gone when the command is."""

import asyncio
import os
import sys
import time

import pytest

from controlplane.cli import children
from controlplane.cli.children import Command, end, kept, start

WAITS = "import time; time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)


def command(tmp_path, code, **more):
    return Command(name="child", arguments=[sys.executable, "-c", code], log_file=tmp_path / "child.log", **more)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def gone(pid):
    """Whether a process ends soon; a killed one may be a zombie for a moment."""
    for _ in range(200):
        if not alive(pid):
            return True
        await asyncio.sleep(0.05)
    return False


async def lines_of(path, count):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        lines = path.read_text().split() if path.exists() else []
        if len(lines) >= count:
            return lines
        await asyncio.sleep(0.05)
    pytest.fail(f"{path} has fewer than {count} lines")


async def test_a_child_is_gone_after_its_end(tmp_path):
    process = await start(command(tmp_path, WAITS))
    await end(process)
    assert process.returncode == -15


async def test_a_deaf_child_is_killed(tmp_path):
    process = await start(command(tmp_path, STUBBORN))
    await lines_of(tmp_path / "child.log", 1)
    await end(process, (0.2, 0.2))
    assert process.returncode == -9


async def test_what_a_child_started_is_gone_with_it(tmp_path):
    code = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {WAITS!r}]); print(p.pid, flush=True); time.sleep(60)"  # noqa: E501
    process = await start(command(tmp_path, code))
    grandchild = int((await lines_of(tmp_path / "child.log", 1))[0])
    await end(process)
    assert await gone(grandchild)


async def test_a_child_that_dies_is_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "FIRST_BACKOFF_SECONDS", 0.01)
    async with kept([command(tmp_path, "import os; print(os.getpid(), flush=True)")]):
        first, second = (await lines_of(tmp_path / "child.log", 2))[:2]
    assert first != second


async def test_kept_children_are_gone_when_the_block_fails(tmp_path):
    async def fails_inside():
        async with kept([command(tmp_path, f"import os; print(os.getpid(), flush=True); {WAITS}")]):
            await lines_of(tmp_path / "child.log", 1)
            raise RuntimeError("something else went wrong")

    with pytest.raises(RuntimeError, match="something else"):
        await fails_inside()
    assert not alive(int((tmp_path / "child.log").read_text()))


async def test_secrets_travel_in_the_environment(tmp_path):
    process = await start(
        command(tmp_path, "import os; print(os.environ['A_SECRET'])", environment={"A_SECRET": "tiger"})
    )
    await process.wait()
    assert (tmp_path / "child.log").read_text() == "tiger\n"


def test_a_command_does_not_show_its_environment(tmp_path):
    assert "tiger" not in repr(command(tmp_path, WAITS, environment={"A_SECRET": "tiger"}))
