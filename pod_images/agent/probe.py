"""The picture that ComfyUI must make before a pod calls itself ready."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .comfy_link import ComfyLink, NoAnswerError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
# What no other checkpoint would do better: there is no working device.
_DEVICE = re.compile(r"CUDA|HIP error|device|cuDNN|cuBLAS|driver|OutOfMemory|out of memory", re.IGNORECASE)
Graph = dict[str, Any]


class ProbeFailedError(RuntimeError):
    """The picture did not come out; in ComfyUI's words."""


def plain_graph() -> Graph:
    """The smallest graph with a picture in it; needs no model."""
    colour = random.randrange(1 << 24)  # a new one each time, or ComfyUI would answer from its cache
    empty = {"width": 16, "height": 16, "batch_size": 1, "color": colour}
    return {
        "1": {"class_type": "EmptyImage", "inputs": empty},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


def painting_graph(checkpoint: str) -> Graph:
    """One step of one small painting with a checkpoint."""
    text = {"text": "", "clip": ["1", 1]}
    sampler = {
        "seed": random.randrange(1 << 32), "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal",
        "denoise": 1.0, "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0],
    }  # fmt: skip
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "2": {"class_type": "CLIPTextEncode", "inputs": text},
        "3": {"class_type": "CLIPTextEncode", "inputs": dict(text)},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5": {"class_type": "KSampler", "inputs": sampler},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }


def smallest_first(names: Iterable[str], folders: Sequence[Path]) -> list[str]:
    """The checkpoints that lie in these folders, the smallest first; others may be anything and are left out."""
    sizes: dict[str, int] = {}
    for name in names:
        for folder in folders:
            path = folder / name
            if name not in sizes and path.is_file():
                sizes[name] = path.stat().st_size
    return sorted(sizes, key=lambda name: (sizes[name], name))


async def probe(link: ComfyLink, checkpoints: Sequence[str]) -> str:
    """Makes a picture with the first checkpoint that can paint alone, else without any; returns what was made.

    A checkpoint of another kind (video only, no text encoder) fails without being broken, so the next is tried;
    a device that fails does so with all of them. Raises ProbeFailedError. The caller bounds the time.
    """
    for checkpoint in checkpoints[:3]:
        failure = await _made(link, painting_graph(checkpoint))
        if failure is None:
            return f"painted with {checkpoint}"
        if _DEVICE.search(failure):
            raise ProbeFailedError(f"painting with {checkpoint}: {failure}")
        log.warning("the probe could not paint with %s: %s", checkpoint, failure)
    failure = await _made(link, plain_graph())
    if failure is not None:
        raise ProbeFailedError(failure)
    return "made a plain picture: no checkpoint here can paint by itself"


async def _made(link: ComfyLink, graph: Graph) -> str | None:
    """Runs a graph; None where its picture came out, else ComfyUI's words for what went wrong."""
    prompt_id = f"troupe-probe-{uuid.uuid4().hex}"
    try:
        await link.submit(graph, prompt_id)
    except NoAnswerError as error:
        return str(error)
    while True:
        try:
            entry = await link.history(prompt_id)
        except NoAnswerError:  # loading a model may keep the server from answering
            entry = None
        if entry is not None:
            await link.forget(prompt_id)
            return _failure(entry)
        await asyncio.sleep(POLL_SECONDS)


def _failure(entry: Mapping[str, Any]) -> str | None:
    if entry["status"]["status_str"] == "success":
        images = [image for output in entry["outputs"].values() for image in output.get("images", [])]
        return None if images else "the graph succeeded without a picture"
    for name, said in reversed(entry["status"]["messages"]):
        if name == "execution_error":
            words = str(said.get("exception_message")).strip()
            return f"{said.get('node_type')}: {said.get('exception_type')}: {words}"
    return "the prompt was interrupted"
