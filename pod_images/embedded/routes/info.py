"""Handlers that describe the pod: /object_info, /system_stats, /models, /features, /troupe/state, /troupe/uploads."""

from __future__ import annotations

import os
import sys

from aiohttp import web

from ..folders import MODEL_KINDS
from ..keys import POD
from ..pod import PROTOCOL_VERSION
from ..sockets import FEATURES


async def object_info(request: web.Request) -> web.Response:
    registry = request.app[POD].registry
    return web.json_response({name: registry.describe(name) for name in registry.classes})


async def object_info_class(request: web.Request) -> web.Response:
    registry = request.app[POD].registry
    name = request.match_info["name"]
    return web.json_response({name: registry.describe(name)} if name in registry.classes else {})


def memory_bytes() -> tuple[int, int]:
    """(all, free) main memory; zeros where the system does not say."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    except (ValueError, OSError):  # macOS has no SC_AVPHYS_PAGES
        return 0, 0


async def system_stats(request: web.Request) -> web.Response:
    import torch

    total, free = memory_bytes()
    system = {
        "os": sys.platform,
        "ram_total": total,
        "ram_free": free,
        "comfyui_version": PROTOCOL_VERSION,
        "python_version": sys.version,
        "pytorch_version": torch.__version__,
        "embedded_python": False,
        "argv": ["pod_images.embedded"],
    }
    device = {
        "name": "cpu", "type": "cpu", "index": None, "vram_total": total, "vram_free": free,
        "torch_vram_total": total, "torch_vram_free": free,
    }  # fmt: skip
    return web.json_response({"system": system, "devices": [device]})


async def models(request: web.Request) -> web.Response:
    return web.json_response(list(MODEL_KINDS))


async def models_of_kind(request: web.Request) -> web.Response:
    kind = request.match_info["kind"]
    if kind not in MODEL_KINDS:
        return web.Response(status=404)
    return web.json_response(request.app[POD].folders.model_files(kind))


async def features(request: web.Request) -> web.Response:
    return web.json_response(FEATURES)


async def state(request: web.Request) -> web.Response:
    """Whether the prompt worker lives and what it does: what an agent asks a pod."""
    from comfy_nodes.lora_cache import digests_in
    from comfy_nodes.state import Machine, snapshot
    from comfy_nodes.training.trainers import TRAINERS

    pod = request.app[POD]
    obstacles = {name: trainer.obstacle() for name, trainer in TRAINERS.items()}
    loras = digests_in(pod.folders.lora_cache())
    return web.json_response(snapshot(pod.worker.alive(), obstacles, loras, Machine()))


async def uploads(request: web.Request) -> web.Response:
    """What has become of the files that a prompt promised: the control plane asks while it waits for them."""
    from comfy_nodes.hand_over import hand_over

    return web.json_response(hand_over().told(request.match_info["prompt_id"]))
