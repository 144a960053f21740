"""What this pod's worker does right now, and its signs of life: beats, the running node, a dead device; no routes."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# After one of these the process can compute nothing any more; running out of memory is survivable and not among them.
_DEAD_DEVICE = re.compile(
    r"(CUDA|HIP) error(?!: out of memory)|device-side assert|illegal memory access|CUDA driver error|"
    r"CUBLAS_STATUS_(EXECUTION_FAILED|NOT_INITIALIZED)|unspecified launch failure",
    re.IGNORECASE,
)
MAX_ERROR_CHARACTERS = 500


@dataclass(frozen=True)
class Machine:
    """The accelerator as torch sees it; a CPU has no VRAM and says 0."""

    gpu: str = "cpu"
    vram_bytes: int = 0
    vram_free_bytes: int = 0


@dataclass(frozen=True)
class _Run:
    """The running prompt; times are monotonic seconds. `step` is the last (value, time) of a progress bar."""

    prompt_id: str
    started: float
    beaten: float
    node_id: str | None = None
    node_class: str | None = None
    seconds_per_step: float | None = None
    step: tuple[float, float] | None = None


_lock = threading.Lock()
_run: _Run | None = None
_device_error: str | None = None
_problems: dict[str, str] = {}
_uploads = 0


def beat(seconds_per_step: float | None = None) -> None:
    """A sign of life of the running node, from any thread; a node that knows its pace says it (seconds per step)."""
    global _run
    with _lock:
        if _run is not None:
            pace = _run.seconds_per_step if seconds_per_step is None else seconds_per_step
            _run = replace(_run, beaten=time.monotonic(), seconds_per_step=pace)


def running(prompt_id: str | None) -> None:
    """Which prompt the worker has; a new id starts its clock, None ends it, the same id changes nothing."""
    global _run
    with _lock:
        if prompt_id is None:
            _run = None
        elif _run is None or _run.prompt_id != prompt_id:
            now = time.monotonic()
            _run = _Run(prompt_id, now, now)


def at_node(node_id: str, node_class: str | None) -> None:
    """Which node of the running prompt works; a beat."""
    global _run
    with _lock:
        if _run is not None:
            same = _run.node_id == node_id
            _run = replace(
                _run, node_id=node_id, node_class=node_class, beaten=time.monotonic(), step=_run.step if same else None
            )


def stepped(value: float) -> None:
    """A progress bar stands at `value`: a beat, and with the one before it the pace."""
    global _run
    with _lock:
        if _run is None:
            return
        now = time.monotonic()
        pace, before = _run.seconds_per_step, _run.step
        if before is not None and value > before[0]:
            pace = (now - before[1]) / (value - before[0])
        step = before if before is not None and value == before[0] else (value, now)
        _run = replace(_run, beaten=now, seconds_per_step=pace, step=step)


def note_error(text: str) -> None:
    """Remember the text of an execution error after which the device is dead; any other text is not kept.

    A trainer dies with a context of its own: what its log says of the device is not true of this process.
    """
    global _device_error
    if _DEAD_DEVICE.search(text) and "TrainerError: " not in text.partition("\n")[0]:
        with _lock:
            _device_error = _device_error or text.strip()[:MAX_ERROR_CHARACTERS]


def note_uploads(pending: int) -> None:
    """How many files are on their way to the store; whoever ends this process should wait for them."""
    global _uploads
    with _lock:
        _uploads = pending


def note_problem(part: str, words: str) -> None:
    """Remember that a part of the pack does not work in this process, and why."""
    with _lock:
        _problems[part] = words


@functools.cache
def node_pack_digest() -> str:
    """One digest of every source file of the node pack, as it was when first asked for."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def snapshot(
    worker_alive: bool,
    trainer_obstacles: Mapping[str, str | None],
    loras: Sequence[str],
    machine: Machine | None = None,
) -> dict[str, Any]:
    """The answer of GET /troupe/state.

    Args:
        trainer_obstacles: every trainer by name, with the words for what keeps it from running here, or None.
        loras: the digests of the LoRA files on disk.
        machine: None asks torch, where torch is loaded.
    """
    machine = machine or _machine()
    now = time.monotonic()
    with _lock:
        run, device_error, problems, uploads = _run, _device_error, dict(_problems), _uploads
    return {
        "worker_alive": worker_alive,
        "prompt_id": run.prompt_id if run else None,
        "node_id": run.node_id if run else None,
        "node_class": run.node_class if run else None,
        "running_seconds": round(now - run.started, 3) if run else None,
        "beat_age_seconds": round(now - run.beaten, 3) if run else None,
        "seconds_per_step": run.seconds_per_step if run else None,
        "node_pack_digest": node_pack_digest(),
        "trainers": sorted(name for name, words in trainer_obstacles.items() if words is None),
        "trainer_obstacles": {name: words for name, words in sorted(trainer_obstacles.items()) if words is not None},
        "loras": list(loras),
        "uploads_pending": uploads,
        "device_error": device_error,
        "problems": problems,
        "rss_bytes": rss_bytes(),
        "vram_bytes": machine.vram_bytes,
        "vram_free_bytes": machine.vram_free_bytes,
        "gpu": machine.gpu,
    }


def rss_bytes() -> int:
    """The main memory this process holds; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return _rss_by_psutil()
    import resource

    return pages * resource.getpagesize()


def _rss_by_psutil() -> int:
    try:
        import psutil  # type: ignore[import-untyped, import-not-found]  # ComfyUI brings it; the project does not
    except ImportError:
        return 0
    return int(psutil.Process().memory_info().rss)


def _machine() -> Machine:
    """What torch says of its first accelerator; never loads torch itself."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return Machine()
    try:
        free, total = torch.cuda.mem_get_info()
        return Machine(torch.cuda.get_device_name(), int(total), int(free))
    except RuntimeError as error:  # a dead device answers every call so
        note_error(str(error))
        return Machine("unknown")
