"""``troupe serve``: the server in this process and, on request, pods of this machine as its children."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console

from controlplane.cli.children import Command, importable, kept
from controlplane.errors import Conflict, NotFound
from controlplane.settings import REPOSITORY, Settings

EMBEDDED_PODS = {"pictures": "image,video", "training": "train"}
"""Names and labels: a training never shares a pod's queue with pictures."""
COMFYUI_POD = "comfyui"
TRAINING_NICENESS = 5
"""Pictures that are asked for during a training come first; an idle machine loses nothing by it."""
PARENT_POLL_SECONDS = 1.0
EMBEDDED_MODELS = REPOSITORY / "pod_images" / "embedded" / "models"
CHECKPOINT = "checkpoints/sketch_base.safetensors"


async def run(options: argparse.Namespace, console: Console) -> int:
    """Serve until a signal arrives, or until the parent process is gone where one was named."""
    # Here, so that the commands that only speak HTTP start without the server's packages.
    from controlplane import app

    given = {"host": options.host, "port": options.port, "data": options.data}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    if options.embedded_pod:
        check_weights(options)
    logging.getLogger().setLevel(settings.log_level.upper())
    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(app.running(settings))
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise Conflict(f"Cannot listen on {where}: {error.strerror}. A free port: --port 0") from None
        console.print(f"Troupe listens on {url} (API: {url}/docs)", soft_wrap=True)
        await stack.enter_async_context(kept(_pods(options, settings.data, url, app.join_token(settings))))
        await _parent_gone(options.parent_pid)
    return 0


async def migrate(options: argparse.Namespace, console: Console) -> int:
    """Bring the database to this version's shape."""
    from controlplane import app

    settings = Settings(**({"data": options.data} if options.data is not None else {}))
    await asyncio.to_thread(app.migrate_database, settings)
    console.print("The database has this version's shape.")
    return 0


def check_weights(options: argparse.Namespace) -> None:
    """NotFound where the embedded pods could not paint, before anything is started."""
    folders: list[Path] = options.models or [EMBEDDED_MODELS]
    if options.engine == "sketch" and not any((folder / CHECKPOINT).is_file() for folder in folders):
        looked = ", ".join(str(folder / CHECKPOINT) for folder in folders)
        raise NotFound(f"There are no weights of the sketch base at {looked}; make them with: make sketch-base")


def free_port(host: str) -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _pods(options: argparse.Namespace, data: Path, url: str, join_token: str) -> list[Command]:
    """The pods that were asked for; their join token travels in the environment, never in an argument."""
    threads = options.threads or os.cpu_count() or 1
    environment = {"TROUPE_JOIN_TOKEN": join_token, "OMP_NUM_THREADS": str(threads), **importable()}
    embedded = _embedded_pods(options, data, url, environment, threads) if options.embedded_pod else []
    return [*embedded, *([_comfyui_pod(options, data, url, environment, threads)] if options.comfyui_dir else [])]


def _embedded_pods(
    options: argparse.Namespace, data: Path, url: str, environment: Mapping[str, str], threads: int
) -> list[Command]:
    return [
        Command(
            name=f"pod {name}",
            arguments=[
                sys.executable, "-m", "pod_images.embedded", "--control-plane", url,
                "--name", name, "--labels", labels, "--data", str(_folder(data, "pods", name)),
                "--threads", str(threads), "--engine", options.engine, "--parent-pid", str(os.getpid()),
                *(part for folder in options.models for part in ("--models", str(folder.resolve()))),
            ],
            log_file=_folder(data, "logs") / f"pod-{name}.log",
            environment=environment,
            niceness=TRAINING_NICENESS if labels == "train" else 0,
        )
        for name, labels in EMBEDDED_PODS.items()
    ]  # fmt: skip


def _comfyui_pod(
    options: argparse.Namespace, data: Path, url: str, environment: Mapping[str, str], threads: int
) -> Command:
    """One pod for all work on the ComfyUI of this machine; its agent reads COMFYUI_PYTHON and COMFYUI_ARGS itself."""
    return Command(
        name=f"pod {COMFYUI_POD}",
        arguments=[
            sys.executable, "-m", "pod_images.agent", "--comfyui-dir", str(options.comfyui_dir.resolve()),
            "--control-plane", url, "--name", COMFYUI_POD, "--labels", "image,video,train",
            "--data", str(_folder(data, "pods", COMFYUI_POD)), "--parent-pid", str(os.getpid()),
            *(part for folder in options.models or [EMBEDDED_MODELS] for part in ("--models", str(folder.resolve()))),
        ],
        log_file=_folder(data, "logs") / f"pod-{COMFYUI_POD}.log",
        environment={
            # This interpreter has what the sketch trainer needs; ComfyUI's own may not.
            "TROUPE_SKETCH_PYTHON": os.environ.get("TROUPE_SKETCH_PYTHON") or sys.executable,
            "TROUPE_TRAINER_THREADS": str(threads),
            **environment,
        },
    )  # fmt: skip


def _folder(data: Path, *parts: str) -> Path:
    return data.resolve().joinpath(*parts)


async def _parent_gone(parent: int) -> None:
    """Return when the named parent process is gone; never, where none was named."""
    while not parent or os.getppid() == parent:  # noqa: ASYNC110 - no system tells a child that its parent ended
        await asyncio.sleep(PARENT_POLL_SECONDS)
