"""Starting and ending a real ComfyUI of one's own for a test: its own base folder, a free port, the packs asked for."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACK = REPOSITORY / "comfy_nodes"
SKETCH_MODELS = REPOSITORY / "pod_images" / "embedded" / "models"
START_SECONDS = 180
NO_COMFYUI = "no real ComfyUI: set COMFYUI_DIR (and COMFYUI_PYTHON, COMFYUI_ARGS)"
# What a developer's own shell may hold must not reach the pack under test.
_OURS = ("TROUPE_",)


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI that listens."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path
    base: Path

    def log_tail(self, characters: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-characters:]


def checkout() -> Path | None:
    """The ComfyUI that the environment names, or None."""
    given = os.environ.get("COMFYUI_DIR", "").strip()
    return Path(given) if given else None


@contextmanager
def start_comfyui(
    base: Path,
    environment: Mapping[str, str] | None = None,
    packs: Mapping[str, Path] | None = None,
    options: Sequence[str] = (),
    checkpoints: Sequence[Path] = (),
) -> Iterator[ComfyUI]:
    """A ComfyUI on the CPU with `base` as its base directory, ended with the block.

    Args:
        environment: added to this process's own, of which TROUPE_* is left out.
        packs: folder names in custom_nodes and what they are links to; None: our own pack as `troupe`.
        options: further arguments of main.py.
        checkpoints: files that are linked into models/checkpoints.

    Raises RuntimeError with the log's end where it does not start.
    """
    _furnish(base, {"troupe": PACK} if packs is None else packs, checkpoints)
    address, command = _command(base, options)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    log = base / "log.txt"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=checkout(),
            env={**inherited, "OMP_NUM_THREADS": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        running = ComfyUI(address, process, log, base)
        try:
            _await_answer(running)
            yield running
        finally:
            end(process)


def _furnish(base: Path, packs: Mapping[str, Path], checkpoints: Sequence[Path]) -> None:
    for folder in ("custom_nodes", "models/checkpoints", "models/loras", "input", "output"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    links = {base / "custom_nodes" / name: target for name, target in packs.items()}
    links |= {base / "models" / "checkpoints" / path.name: path for path in checkpoints}
    for link, target in links.items():
        if not link.exists():
            link.symlink_to(target)


def _command(base: Path, options: Sequence[str]) -> tuple[str, list[str]]:
    folder = checkout()
    assert folder is not None, NO_COMFYUI
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), str(folder / "main.py")]
    command += ["--cpu", "--port", str(port), "--base-directory", str(base), "--disable-auto-launch"]
    command += ["--disable-api-nodes", "--database-url", f"sqlite:///{base}/comfyui.db", "--preview-method", "none"]
    return f"http://127.0.0.1:{port}", [*command, *shlex.split(os.environ.get("COMFYUI_ARGS", "")), *options]


def _await_answer(comfyui: ComfyUI) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and comfyui.process.poll() is None:
        try:
            with urllib.request.urlopen(comfyui.address + "/system_stats", timeout=5):
                return
        except OSError:
            time.sleep(0.25)
    raise RuntimeError(f"ComfyUI did not start (exit code {comfyui.process.poll()}):\n{comfyui.log_tail()}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process politely, then for certain."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
