"""What tests of every folder share: the database engines, one server of PostgreSQL for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.postgresql_server import NoServer, PostgreSQL, postgresql_server

REQUIRED = "required"
_skipped: list[str] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it aloud where half of the tests did not run."""
    for reason in _skipped:
        terminalreporter.write_sep("!", f"NOT TESTED ON POSTGRESQL: {reason}", red=True)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A running server. TROUPE_TEST_POSTGRES=required turns the skip without one into a failure."""
    try:
        running = postgresql_server()
        server = running.__enter__()
    except NoServer as reason:
        if os.environ.get("TROUPE_TEST_POSTGRES") == REQUIRED:
            raise
        _skipped.append(str(reason))
        pytest.skip(f"no PostgreSQL: {reason}")
    yield server
    running.__exit__(None, None, None)


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> Iterator[str]:
    """A fresh, migrated database."""
    url = postgresql.fresh()
    yield url
    postgresql.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def each_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test twice: on SQLite in its folder, and with settings and processes pointed at a fresh PostgreSQL."""
    if request.param == "postgresql":
        monkeypatch.setenv("TROUPE_DATABASE_URL", request.getfixturevalue("postgresql_url"))
    return str(request.param)
