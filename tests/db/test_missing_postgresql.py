"""Where no PostgreSQL can be run, the tests that need one are skipped aloud, or fail where they are required."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGIN = """
from tests import postgresql_server

def _nowhere(folder):
    raise postgresql_server.NoServer("there is none on this machine")

postgresql_server._binaries = _nowhere
"""


@pytest.fixture
def without_server(tmp_path: Path) -> dict[str, str]:
    """The environment of a pytest that finds no PostgreSQL."""
    (tmp_path / "no_server.py").write_text(PLUGIN)
    kept = {name: value for name, value in os.environ.items() if name != "TROUPE_TEST_POSTGRES"}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}


def ran(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    test = "tests/db/test_postgresql.py::test_a_read_cannot_write"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no_server", "-p", "no:cacheprovider", test]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)


def test_a_missing_server_is_said_aloud_in_the_summary(without_server: dict[str, str]) -> None:
    done = ran(without_server)
    assert (done.returncode, "NOT TESTED ON POSTGRESQL: there is none on this machine" in done.stdout) == (0, True)


def test_a_missing_server_fails_where_it_is_required(without_server: dict[str, str]) -> None:
    done = ran({**without_server, "TROUPE_TEST_POSTGRES": "required"})
    assert (done.returncode, "there is none on this machine" in done.stdout) == (1, True)


def test_ci_requires_the_server() -> None:
    assert "\nexport TROUPE_TEST_POSTGRES=required\n" in (REPOSITORY / ".ci" / "run").read_text()
