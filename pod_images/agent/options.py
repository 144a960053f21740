"""What an agent is told on its command line and in its environment; secrets leave the environment here."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import runpod
from .memory import memory_of_this_machine

MEMORY_SHARE = 0.9
"""A ComfyUI that holds more than this share of the memory while it has nothing to do is restarted."""


@dataclass(frozen=True)
class Secrets:
    """What must never be shown: in a log, an argument, an answer, or ComfyUI's environment."""

    pod_token: str = field(default="", repr=False)
    join_token: str = field(default="", repr=False)
    runpod_key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Options:
    """Everything an agent is told. Folders are absolute; times are in seconds; 0 bytes of memory mean no limit."""

    comfyui_dir: Path
    comfyui_python: str
    comfyui_args: tuple[str, ...]
    base_directory: Path
    data: Path
    control_plane: str
    host: str
    port: int
    public_address: str
    labels: tuple[str, ...]
    name: str
    models: tuple[Path, ...]
    models_manifest: Path | None
    dead_man_seconds: float
    job_deadline_seconds: float
    hung_seconds: float
    memory_limit: int
    boot_seconds: float
    poll_seconds: float
    collect_seconds: float
    parent_pid: int
    secrets: Secrets
    on_runpod: runpod.Place | None = None


def parse(arguments: Sequence[str] | None = None, environment: MutableMapping[str, str] = os.environ) -> Options:
    """The options; ends the process with code 2 and a sentence where they make no sense. Takes secrets out of
    `environment`, so that no child inherits them."""
    parser = _parser(environment)
    given = parser.parse_args(arguments)
    secrets = Secrets(
        environment.pop("TROUPE_POD_TOKEN", ""),
        environment.pop("TROUPE_JOIN_TOKEN", "") if not given.token else given.token,
        environment.pop("RUNPOD_API_KEY", ""),
    )
    environment.pop("TROUPE_JOIN_TOKEN", None)
    place = runpod.place_in(environment)
    _check(parser, given, place)
    data = given.data.expanduser().resolve()
    return Options(
        comfyui_dir=given.comfyui_dir.expanduser().resolve(),
        comfyui_python=_absolute(given.comfyui_python),
        comfyui_args=tuple(shlex.split(given.comfyui_args)),
        base_directory=(given.base_directory or data / "comfyui").expanduser().resolve(),
        data=data,
        control_plane=given.control_plane.rstrip("/"),
        host=given.host,
        port=given.port,
        public_address=given.public_address.rstrip("/") or (place.address(given.port) if place else ""),
        labels=tuple(part.strip() for part in given.labels.split(",") if part.strip()),
        name=given.name or (place.pod_id if place else ""),
        models=tuple(folder.expanduser().resolve() for folder in given.models),
        models_manifest=given.models_manifest,
        dead_man_seconds=given.dead_man_minutes * 60,
        job_deadline_seconds=given.job_deadline_minutes * 60,
        hung_seconds=given.hung_seconds,
        memory_limit=int(memory_of_this_machine() * MEMORY_SHARE) if given.memory_limit is None else given.memory_limit,
        boot_seconds=given.boot_seconds,
        poll_seconds=given.poll_seconds,
        collect_seconds=given.collect_seconds,
        parent_pid=given.parent_pid,
        secrets=secrets,
        on_runpod=place,
    )


def _absolute(program: str) -> str:
    """A path from the current folder, because ComfyUI is started in its own. Links stay: a venv's python is one."""
    return os.path.abspath(os.path.expanduser(program)) if os.sep in program else program


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace, place: runpod.Place | None) -> None:
    if given.comfyui_dir is None:
        parser.error("where is ComfyUI? --comfyui-dir DIR, or COMFYUI_DIR")
    if not (given.comfyui_dir.expanduser() / "main.py").is_file():
        parser.error(f"there is no ComfyUI at {given.comfyui_dir}: it has no main.py")
    if given.control_plane and not given.control_plane.startswith(("http://", "https://")):
        parser.error("--control-plane takes a URL: http://... or https://...")
    if place is not None and not given.port and not given.public_address:
        parser.error("on RunPod the port is part of the public address: --port N, as exposed (N/http)")
    for number in ("dead_man_minutes", "job_deadline_minutes", "hung_seconds", "boot_seconds", "poll_seconds"):
        if getattr(given, number) <= 0:
            parser.error(f"--{number.replace('_', '-')} must be more than 0")


def _parser(environment: MutableMapping[str, str]) -> argparse.ArgumentParser:
    def from_environment(name: str) -> Path | None:
        return Path(environment[name]) if environment.get(name) else None

    parser = argparse.ArgumentParser(
        prog="python -m pod_images.agent", description="Runs ComfyUI as a pod: starts it, guards it, speaks for it."
    )
    add = parser.add_argument
    add("--comfyui-dir", type=Path, default=from_environment("COMFYUI_DIR"), help="a ComfyUI checkout (COMFYUI_DIR)")
    add(
        "--comfyui-python",
        default=environment.get("COMFYUI_PYTHON") or sys.executable,
        help="the interpreter that has ComfyUI's packages (COMFYUI_PYTHON, this one)",
    )
    add(
        "--comfyui-args",
        default=environment.get("COMFYUI_ARGS", ""),
        help='ComfyUI\'s own options in one string, such as "--cpu" where there is no accelerator (COMFYUI_ARGS)',
    )
    add("--base-directory", type=Path, help="ComfyUI's input, output, temp and own models (DATA/comfyui)")
    add("--data", type=Path, default=Path("troupe-pod"), help="what the agent keeps (./troupe-pod)")
    add("--control-plane", default=environment.get("TROUPE_CONTROL_PLANE_URL", ""), help="URL to register at")
    add("--token", default="", help="join token; better given as TROUPE_JOIN_TOKEN, which no process list shows")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0 takes a free one")
    add("--public-address", default="", help="URL the control plane reaches this pod at; on RunPod it is known")
    add("--labels", default="", help="comma separated: image,video,train")
    add("--name", default="")
    add("--models", type=Path, action="append", default=[], help="a folder of model folders, read only; repeat")
    add("--models-manifest", type=Path, help="YAML list of model files to have before ComfyUI starts")
    add("--dead-man-minutes", type=float, default=15, help="end this pod when the control plane is silent so long (15)")
    add("--job-deadline-minutes", type=float, default=120, help="what a running job is then given to finish (120)")
    add("--hung-seconds", type=float, default=120, help="a node without a sign of life for so long hangs (120)")
    add("--memory-limit", type=int, help="bytes of memory past which an idle ComfyUI is restarted; 0: none (90 %%)")
    add("--boot-seconds", type=float, default=900, help="longest start of ComfyUI, first painting included (900)")
    add("--poll-seconds", type=float, default=2, help="how often ComfyUI is looked at (2)")
    add("--collect-seconds", type=float, default=10, help="wait so long at the end for results to be collected (10)")
    add("--parent-pid", type=int, default=0, help="end when this process is no longer the parent")
    return parser
