"""What an embedded pod tells the control plane of itself, and what it does with the answers."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from typing import Any

from comfy_nodes.state import node_pack_digest
from comfy_nodes.training import trainers

from ..registration import LORA_NAME, PROTOCOL, PodIdentity, Registrar, drop_revoked
from .folders import MODEL_KINDS
from .pod import PROTOCOL_VERSION, Pod
from .routes.info import memory_bytes

log = logging.getLogger(__name__)


def registration_body(pod: Pod, identity: PodIdentity) -> dict[str, Any]:
    """The body of POST /pods."""
    return {
        "protocol": PROTOCOL,
        "instance_id": identity.instance_id,
        "address": identity.address,
        "token": pod.token,
        "kind": "embedded",
        "name": identity.name,
        "gpu": "cpu",
        "vram_bytes": 0,
        "comfyui_version": PROTOCOL_VERSION,
        "node_pack_digest": node_pack_digest(),
        "node_classes": sorted(pod.registry.classes),
        "models": {kind: files for kind in MODEL_KINDS if (files := pod.folders.model_files(kind))},
        "trainers": trainers.available(),
        "trainer_obstacles": trainers.obstacles(),
        "labels": list(identity.labels),
    }


def heartbeat_body(pod: Pod) -> dict[str, Any]:
    """The body of POST /pods/{id}/heartbeat."""
    running, pending = pod.queue.snapshot()
    cached = [path.stem for path in pod.folders.lora_cache().iterdir() if LORA_NAME.fullmatch(path.name)]
    return {
        "state": "draining" if pod.draining.is_set() else "ready",
        "queue_running": len(running),
        "queue_pending": len(pending),
        "loras": sorted(cached),
        "vram_free_bytes": memory_bytes()[1],
        "disk_free_bytes": shutil.disk_usage(pod.folders.data).free,
    }


def registrar_of(pod: Pod, identity: PodIdentity, control_plane: str, join_token: str) -> Registrar:
    """The registrar of this pod; the node pack, which runs in this process, is told where its link leads."""
    key_file = pod.folders.data / "pod_key"
    os.environ["TROUPE_CONTROL_PLANE_URL"] = control_plane.rstrip("/")
    os.environ["TROUPE_POD_KEY_FILE"] = str(key_file)

    def obey(answer: Mapping[str, Any]) -> None:
        if answer.get("drain") and not pod.draining.is_set():
            log.info("the control plane asks this pod to drain")
            pod.draining.set()
            registrar.tell_now()
        drop_revoked(pod.folders.lora_cache(), answer.get("revoked", []))

    registrar = Registrar(
        control_plane,
        join_token,
        key_file,
        body=lambda: registration_body(pod, identity),
        heartbeat=lambda: heartbeat_body(pod),
        obey=obey,
    )
    return registrar
