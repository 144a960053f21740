"""A PostgreSQL server for a bench: as durable as a real one, on the disk, in a folder that goes with the bench."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# By name, so that the bench's types do not hang on those of the tests.
started_by_tests = importlib.import_module("tests.postgresql_server")

# Like a server that a person would run: what the tests' own settings gain by forgetting is not gained here.
SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
}


@dataclass(frozen=True)
class Started:
    """A running server and the URL of an empty database in it."""

    pid: int
    url: str


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[Started]:
    """Started and ended with the block. NoServer where there is none on this machine."""
    with tempfile.TemporaryDirectory(prefix="troupe-pg-", dir=folder.parent) as home:
        place = Path(home)
        place.chmod(0o755)
        if os.geteuid() == 0:
            account = started_by_tests._account()
            os.chown(place, account.pw_uid, account.pw_gid)
        server = started_by_tests.PostgreSQL(started_by_tests._binaries(place), place, settings=SETTINGS)
        started_by_tests._make_cluster(server)
        server.start()
        try:
            server.administer("CREATE DATABASE bench TEMPLATE template0")
            assert server.process is not None
            yield Started(server.process.pid, server.url("bench"))
        finally:
            server.stop()
