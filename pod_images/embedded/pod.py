"""One embedded pod put together: folders, nodes, queue, worker, host; everything a handler may ask for."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .executor import Executor
from .folders import Folders
from .graph import Prompt
from .host import EmbeddedHost
from .models import CheckpointStore, write_tiny_checkpoint
from .prompt_queue import PromptQueue, QueuedPrompt
from .registry import NodeRegistry, full_registry
from .sockets import Hub
from .wire import status
from .worker import Worker

PROTOCOL_VERSION = "0.8.0"  # the ComfyUI whose protocol this pod speaks
TINY_CHECKPOINT = "sketch_base.safetensors"


class ProbeFailedError(RuntimeError):
    """The picture that a pod must paint before it calls itself ready did not come out."""


@dataclass
class Pod:
    """The running parts of one pod."""

    folders: Folders
    registry: NodeRegistry
    queue: PromptQueue
    hub: Hub
    worker: Worker
    host: EmbeddedHost
    token: str
    engine: str
    draining: threading.Event = field(default_factory=threading.Event)

    def submit(self, prompt: Prompt, outputs: list[str], extra_data: dict[str, Any]) -> QueuedPrompt:
        """Queues a validated graph under a fresh id."""
        number = self.queue.next_number()
        item = QueuedPrompt(number, str(uuid.uuid4()), prompt, extra_data, outputs, arrival=number)
        self.queue.put(item)
        return item

    def busy(self) -> bool:
        return self.queue.remaining() > 0

    def start(self) -> None:
        from comfy_nodes.host import set_host

        set_host(self.host)
        self.worker.start()

    def stop(self) -> None:
        self.worker.stop()
        self.worker.join(5)

    def probe(self, timeout: float = 120) -> None:
        """Paints one tiny picture through the executor. Raises ProbeFailedError."""
        names = self.folders.model_files("checkpoints")
        if not names:
            raise ProbeFailedError("no checkpoint in " + ", ".join(str(root) for root in self.folders.model_roots()))
        item = self.submit(_probe_graph(names[0]), ["7"], {})
        deadline = time.monotonic() + timeout
        while not (entry := self.queue.history(item.prompt_id).get(item.prompt_id)):
            if time.monotonic() > deadline:
                raise ProbeFailedError(f"the probe picture took longer than {timeout:.0f} s")
            time.sleep(0.02)
        self.queue.forget(item.prompt_id)
        if entry["status"]["status_str"] != "success":
            failure = entry["status"]["messages"][-1][1]
            raise ProbeFailedError(f"{failure['node_type']}: {failure['exception_message'].strip()}")


def _probe_graph(checkpoint: str) -> Prompt:
    prompt = {"text": "", "clip": ["1", 1]}
    sampler = {
        "seed": 0, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0],
    }  # fmt: skip
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": {"class_type": "CLIPTextEncode", "inputs": prompt},
        "3": {"class_type": "CLIPTextEncode", "inputs": dict(prompt)},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5": {"class_type": "KSampler", "inputs": sampler},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }


def build_pod(data: Path, models: list[Path], token: str, engine: str = "sketch", packs: Sequence[Path] = ()) -> Pod:
    """Puts a pod together; nothing runs yet.

    Args:
        engine: `sketch` reads checkpoints from `models`; `tiny` paints noise with a random checkpoint of its own.
        packs: folders of further node packs.
    """
    tiny = engine == "tiny"
    folders = Folders(data.resolve(), () if tiny else tuple(root.resolve() for root in models))
    folders.prepare()
    if tiny and TINY_CHECKPOINT not in folders.model_files("checkpoints"):
        write_tiny_checkpoint(folders.data / "models" / "checkpoints" / TINY_CHECKPOINT)
    hub = Hub()
    queue = PromptQueue(lambda: hub.broadcast(status(queue.remaining())))
    host = EmbeddedHost(folders, CheckpointStore())
    registry = full_registry(list(packs))
    executor = Executor(registry, hub)
    worker = Worker(queue, hub, executor, _inference, host.free_memory, host.enter)
    return Pod(folders, registry, queue, hub, worker, host, token, engine)


def _inference() -> contextlib.AbstractContextManager[object]:
    import torch

    return torch.inference_mode()
