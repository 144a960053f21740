"""How ComfyUI is started: its arguments, its environment without our secrets, its folders, and our node pack in it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .options import Options

PACK_LINK = "troupe"
# All that the node pack reads of ours; nothing else that is called TROUPE_* reaches ComfyUI.
FOR_THE_PACK = (
    "TROUPE_LORA_CACHE_BYTES",
    "TROUPE_SKETCH_PYTHON",
    "TROUPE_TRAINER_THREADS",
    "TROUPE_UPLOAD_WAITING_BYTES",
)
OURS = ("TROUPE_", "RUNPOD_", "HF_TOKEN")
MODEL_FOLDERS = (
    "checkpoints", "clip", "clip_vision", "controlnet", "diffusion_models", "embeddings", "loras", "text_encoders",
    "unet", "upscale_models", "vae",
)  # fmt: skip
LOCAL = "127.0.0.1"


@dataclass(frozen=True)
class Command:
    """One start of ComfyUI: its argument list, folder and environment, and the address it will answer at."""

    argv: tuple[str, ...]
    cwd: Path
    environment: Mapping[str, str]
    url: str


def prepare(options: Options) -> None:
    """Makes the folders, links the node pack into one of ours, and writes the file that names all model folders.

    The ComfyUI checkout and the model folders are only read.
    """
    for folder in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (options.base_directory / folder).mkdir(parents=True, exist_ok=True)
    _link_pack(options)
    model_paths_file(options).write_text(json.dumps(model_paths(options), indent=1))


def sweep(options: Options) -> None:
    """Empties the folder that trainings work in: what is there before a start was left behind by a killed one."""
    shutil.rmtree(work_dir(options), ignore_errors=True)
    work_dir(options).mkdir(parents=True, exist_ok=True)


def command(options: Options, environment: Mapping[str, str] = os.environ) -> Command:
    """The command of one start, on a loopback port that is free now."""
    port = _free_port()
    # Ours come last where they must win: nobody but this agent may reach ComfyUI.
    argv = [
        options.comfyui_python, str(options.comfyui_dir / "main.py"),
        "--base-directory", str(options.base_directory),
        "--database-url", f"sqlite:///{options.base_directory / 'user' / 'comfyui.db'}",
        "--disable-auto-launch", "--disable-api-nodes",
        *options.comfyui_args,
        "--extra-model-paths-config", str(model_paths_file(options)),
        "--listen", LOCAL, "--port", str(port),
    ]  # fmt: skip
    return Command(tuple(argv), options.comfyui_dir, child_environment(options, environment), f"http://{LOCAL}:{port}")


def child_environment(options: Options, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of ComfyUI: the agent's own without everything of ours, and what the node pack needs."""
    kept = {name: value for name, value in environment.items() if not name.startswith(OURS) or name in FOR_THE_PACK}
    repository = str(Path(__file__).resolve().parents[2])
    paths = [path for path in kept.pop("PYTHONPATH", "").split(os.pathsep) if path and path != repository]
    if paths:
        kept["PYTHONPATH"] = os.pathsep.join(paths)
    kept["PYTHONUNBUFFERED"] = "1"
    kept["TROUPE_WORK_DIR"] = str(work_dir(options))
    kept["TROUPE_LORA_CACHE_DIR"] = str(lora_cache(options))
    if options.control_plane:
        kept["TROUPE_CONTROL_PLANE_URL"] = options.control_plane
        kept["TROUPE_POD_KEY_FILE"] = str(pod_key_file(options))
    return kept


def model_paths(options: Options) -> dict[str, dict[str, str]]:
    """ComfyUI's extra_model_paths file (JSON is YAML): our node pack, the checkout's own folders, the given ones."""
    sections: dict[str, dict[str, str]] = {"troupe": {"custom_nodes": str(options.data / "custom_nodes")}}
    for number, folder in enumerate(model_roots(options)[1:]):
        present = [path.name for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
        kinds = sorted({*MODEL_FOLDERS, *present} - {"custom_nodes"})
        sections[f"models_{number}"] = {kind: str(folder / kind) for kind in kinds if not kind.startswith(".")}
    theirs = options.comfyui_dir / "custom_nodes"
    if options.base_directory != options.comfyui_dir and theirs.is_dir():
        sections["checkout"] = {"custom_nodes": str(theirs)}
    return sections


def model_roots(options: Options) -> list[Path]:
    """Every folder of model folders, ComfyUI's own first."""
    checkout = options.comfyui_dir / "models"
    roots = [options.base_directory / "models", *options.models, checkout]
    return list(dict.fromkeys(roots))


def lora_cache(options: Options) -> Path:
    """Where the node pack keeps the LoRAs it downloads."""
    return options.data / "loras"


def pod_key_file(options: Options) -> Path:
    return options.data / "pod_key"


def work_dir(options: Options) -> Path:
    return options.data / "work"


def model_paths_file(options: Options) -> Path:
    return options.data / "model_paths.yaml"


def _link_pack(options: Options) -> None:
    """A link to the node pack in a folder of ours, unless the pack is already installed where ComfyUI looks."""
    folder = options.data / "custom_nodes"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / PACK_LINK
    link.unlink(missing_ok=True)
    installed = [options.base_directory / "custom_nodes" / PACK_LINK, options.comfyui_dir / "custom_nodes" / PACK_LINK]
    if any((path / "__init__.py").is_file() for path in installed):
        return  # two copies would both want the route /troupe/state
    found = importlib.util.find_spec("comfy_nodes")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("the package comfy_nodes is not installed beside this agent")
    link.symlink_to(Path(next(iter(found.submodule_search_locations))).resolve(), target_is_directory=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOCAL, 0))
        return int(listener.getsockname()[1])
