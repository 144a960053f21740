"""The world of a chaos run: control planes, pods, a database and the network between them, all of which may fail."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.chaos.programs import DatabaseServer, Program, free_port
from tests.chaos.proxy import Fault, Link, Pipe
from tests.chaos.shape import Shape
from tests.postgresql_server import DURABLE, postgresql_server
from tests.short_recipes import REPOSITORY

HERE = Path(__file__).parent
TRAINER = HERE / "quick_trainer.py"
SOCKET = ".s.PGSQL.5432"
JOIN_TOKEN = "chaos"
SWEEP_SECONDS = 1.0


@dataclass
class World:
    """Everything that runs. ``doors`` are the addresses at which clients reach each control plane."""

    shape: Shape
    folder: Path
    database_url: str = ""
    """As the auditor reaches it: past the network that fails."""
    servers: list[Program] = field(default_factory=list)
    pods: list[Program] = field(default_factory=list)
    doors: list[Link] = field(default_factory=list)
    hall: Link | None = None
    """Where files reach any of the control planes."""
    halls: list[Link] = field(default_factory=list)
    """Where each pod reaches any of the control planes."""
    pod_links: list[Link] = field(default_factory=list)
    pipe: Pipe | None = None
    database: DatabaseServer | None = None
    client_faults: list[Fault] = field(default_factory=list)
    pod_faults: list[Fault] = field(default_factory=list)
    """Between control planes and pods."""
    hall_faults: list[Fault] = field(default_factory=list)
    """Between pods and control planes, uploads of files included."""

    @property
    def armed(self) -> Path:
        """The file of failpoints that every control plane reads."""
        return self.folder / "failpoints"

    @property
    def files(self) -> Path:
        return self.folder / "data" / "files"

    @property
    def journals(self) -> list[Path]:
        return [self.folder / f"{pod.name}.journal" for pod in self.pods]

    def fired(self) -> list[dict[str, object]]:
        """Every failpoint that has fired, in order."""
        log = Path(f"{self.armed}.fired")
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []

    def seen(self) -> set[str]:
        """The names of failpoints that were reached."""
        log = Path(f"{self.armed}.seen")
        return set(log.read_text(encoding="utf-8").splitlines()) if log.exists() else set()


@contextlib.asynccontextmanager
async def world(shape: Shape, folder: Path) -> AsyncIterator[World]:
    """A running world; everything in it has ended when the block is left. NoServer where there is no PostgreSQL."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    made = World(shape, folder)
    async with contextlib.AsyncExitStack() as stack:
        environment = await _network(made, stack)
        for program in (*_servers(made, environment), *_pods(made)):
            stack.push_async_callback(program.stop)
            program.start()
        for program in (*made.servers, *made.pods):
            await program.ready()
        yield made


async def _network(made: World, stack: contextlib.AsyncExitStack) -> dict[str, str]:
    """Open every link; answers what the servers' environment says of it."""
    shape = made.shape
    made.servers = [
        Program(f"server-{number}", (), {}, free_port(), made.folder / f"server-{number}.log")
        for number in range(shape.replicas)
    ]
    turn = itertools.count()

    def any_server() -> tuple[str, int] | None:
        up = [one.address for one in made.servers if one.address is not None]
        return up[next(turn) % len(up)] if up else None

    names = [f"pod-{number}" for number in range(shape.picture_pods)] + (["trainer"] if shape.trainings else [])
    made.pods = [Program(name, (), {}, free_port(), made.folder / f"{name}.log") for name in names]
    made.pod_links = [Link(lambda pod=pod: pod.address, made.pod_faults, owner=pod) for pod in made.pods]
    made.doors = [Link(lambda one=one: one.address, made.client_faults, owner=one) for one in made.servers]
    for link in (*made.pod_links, *made.doors):
        await link.start()
        stack.push_async_callback(link.stop)
    addresses = {f"http://127.0.0.1:{pod.port}": link.url for pod, link in zip(made.pods, made.pod_links, strict=True)}
    made.hall = Link(any_server, made.hall_faults)
    made.halls = [Link(any_server, made.hall_faults, addresses, owner=pod) for pod in made.pods]
    for link in (made.hall, *made.halls):
        await link.start()
        stack.push_async_callback(link.stop)
    return await _database(made, stack)


async def _database(made: World, stack: contextlib.AsyncExitStack) -> dict[str, str]:
    if made.shape.database != "postgresql":
        made.database_url = f"sqlite:///{made.folder / 'data' / 'troupe.sqlite3'}"
        return {"TROUPE_DATABASE_URL": made.database_url}
    server = stack.enter_context(postgresql_server(DURABLE))
    made.database = DatabaseServer(server)
    made.database_url = server.fresh()
    sockets = server.folder / "pipe"  # beside the server's own: the path of a socket must be short
    sockets.mkdir()
    made.pipe = Pipe(sockets / SOCKET, server.folder / SOCKET)
    await made.pipe.start()
    stack.push_async_callback(made.pipe.stop)
    # A replica that is stopped inside a transaction holds its locks for so long.
    limit = "options=-cidle_in_transaction_session_timeout%3D3000"
    return {"TROUPE_DATABASE_URL": made.database_url.replace(str(server.folder), str(sockets)) + f"&{limit}"}


def _servers(made: World, environment: dict[str, str]) -> list[Program]:
    shape = made.shape
    assert made.hall is not None
    common = {
        **environment,
        "TROUPE_TEMPLATES": str(_templates(made.folder / "templates")),
        "TROUPE_PUBLIC_URL": made.hall.url,
        "TROUPE_JOIN_TOKEN": JOIN_TOKEN,
        "TROUPE_SIGNING_KEY": secrets.token_hex(16),
        "TROUPE_FAILPOINTS": str(made.armed),
        "TROUPE_LEASE_SECONDS": str(shape.lease),
        "TROUPE_POLL_SECONDS": "0.5",
        "TROUPE_HEARTBEAT_SECONDS": "1.5",
        "TROUPE_SUSPECT_AFTER_SECONDS": "4",
        "TROUPE_LOST_AFTER_SECONDS": "8",
        "TROUPE_STALL_SECONDS": "20",
        "TROUPE_WEBHOOK_PRIVATE": "true",
        "TROUPE_SUBMIT_TIMEOUT_SECONDS": "5",
        "TROUPE_ASSET_GRACE_SECONDS": str(shape.grace),
        "TROUPE_ASSET_SWEEP_SECONDS": str(SWEEP_SECONDS),
        "TROUPE_CHAOS_PLANTED": shape.planted,
        "OMP_NUM_THREADS": "1",
    }
    module = "tests.chaos.planted" if shape.planted else "controlplane"
    for server in made.servers:
        data = str(made.folder / "data")
        server.arguments = (
            *(sys.executable, "-m", module, "serve", "--port", str(server.port), "--data", data),
            *("--parent-pid", str(os.getpid())),
        )
        server.environment = common
    return made.servers


def _pods(made: World) -> list[Program]:
    interpreter = made.folder / "trainer-python"
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{TRAINER}" "$@"\n')
    interpreter.chmod(interpreter.stat().st_mode | stat.S_IXUSR)
    nothing = made.folder / "no-models"
    nothing.mkdir(exist_ok=True)
    for pod, hall in zip(made.pods, made.halls, strict=True):
        data = made.folder / "pods" / pod.name
        pod.arguments = (
            *(sys.executable, "-m", "tests.chaos.pod", "--threads", "1"),
            *(("--engine", "tiny") if pod.name == "trainer" else ("--models", str(nothing))),
            *("--node-pack", str(HERE / "nodes"), "--data", str(data), "--port", str(pod.port)),
            *("--control-plane", hall.url, "--name", pod.name, "--parent-pid", str(os.getpid())),
            *("--labels", "train" if pod.name == "trainer" else "image,video"),
        )
        pod.environment = {
            "TROUPE_JOIN_TOKEN": JOIN_TOKEN,
            "TROUPE_CHAOS_JOURNAL": str(made.folder / f"{pod.name}.journal"),
            "TROUPE_SKETCH_PYTHON": str(interpreter),
            "OMP_NUM_THREADS": "1",
        }
    return made.pods


def _templates(folder: Path) -> Path:
    """The shipped catalogue, and beside it the template whose graph needs no model."""
    if not folder.exists():
        shutil.copytree(REPOSITORY / "workflow_templates", folder)
        shutil.copytree(HERE / "workflow", folder / "chaos_image")
        recipes = {"sketch": {"fast": {"params": {"steps": 4}}, "standard": {"params": {"steps": 4}}}}
        (folder / "recipes.yaml").write_text(yaml.safe_dump(recipes), encoding="utf-8")
    return folder


async def pods_joined(made: World, count: int, seconds: float = 60.0) -> None:
    """Wait until so many pods are ready in the eyes of the control planes. TimeoutError."""
    import aiohttp

    async with asyncio.timeout(seconds), aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{made.doors[0].url}/pods") as response:
                    items = (await response.json())["items"]
                if sum(pod["state"] in ("ready", "busy") for pod in items) >= count:
                    return
            await asyncio.sleep(0.1)
