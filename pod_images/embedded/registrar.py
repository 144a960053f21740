"""Telling the control plane about this pod: registration with backoff, heartbeats with jitter, draining."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import logging
import os
import random
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from .folders import MODEL_KINDS
from .pod import PROTOCOL_VERSION, Pod
from .routes.info import memory_bytes

log = logging.getLogger(__name__)

PROTOCOL = 1
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
HEARTBEAT_JITTER = 0.2
REQUEST_SECONDS = 20
_DIGEST_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")


@dataclass(frozen=True)
class Registration:
    """What the control plane answered: who this pod is there, and its key."""

    pod_id: str
    pod_key: str
    heartbeat_seconds: float


@dataclass(frozen=True)
class PodIdentity:
    """What this pod says of itself and cannot see in its own parts."""

    address: str
    name: str
    labels: tuple[str, ...]
    instance_id: str


class RefusedError(RuntimeError):
    """The control plane does not take this request; carries its status and words."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:500]}")
        self.status = status


def kept_instance_id(data: Path) -> str:
    """The id this pod registers under, the same after a restart on the same data folder."""
    path = data / "instance_id"
    if not path.exists():
        path.write_text(str(uuid.uuid4()))
    return path.read_text().strip()


def write_secret(path: Path, secret: str) -> None:
    """Writes a secret that only this user may read, in one step."""
    temporary = path.with_suffix(".part")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secret)
    temporary.replace(path)


def node_pack_digest() -> str:
    """One digest of every source file of the node pack, so that the control plane sees which one a pod runs."""
    found = importlib.util.find_spec("comfy_nodes")
    digest = hashlib.sha256()
    for folder in (found.submodule_search_locations or []) if found else []:
        for path in sorted(Path(folder).rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def trainers() -> list[str]:
    """Base models this pod can train: only what its interpreter really has."""
    needed = ("torch", "peft", "diffusers", "transformers")
    return ["sketch"] if all(importlib.util.find_spec(name) for name in needed) else []


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
        "trainers": trainers(),
        "labels": list(identity.labels),
    }


def heartbeat_body(pod: Pod) -> dict[str, Any]:
    """The body of POST /pods/{id}/heartbeat."""
    running, pending = pod.queue.snapshot()
    cached = [path.stem for path in pod.folders.lora_cache().iterdir() if _DIGEST_NAME.fullmatch(path.name)]
    return {
        "state": "draining" if pod.draining.is_set() else "ready",
        "queue_running": len(running),
        "queue_pending": len(pending),
        "loras": sorted(cached),
        "vram_free_bytes": memory_bytes()[1],
        "disk_free_bytes": shutil.disk_usage(pod.folders.data).free,
    }


class Registrar:
    """Keeps one pod registered until it is cancelled.

    The pod key goes into a file that the node pack reads at each use (TROUPE_POD_KEY_FILE), because registration
    happens after the nodes are imported and may happen again.
    """

    def __init__(self, pod: Pod, identity: PodIdentity, control_plane: str, join_token: str) -> None:
        self._pod = pod
        self._identity = identity
        self._url = control_plane.rstrip("/")
        self._join_token = join_token
        self._key_file = pod.folders.data / "pod_key"
        self._wake = asyncio.Event()
        os.environ["TROUPE_CONTROL_PLANE_URL"] = self._url
        os.environ["TROUPE_POD_KEY_FILE"] = str(self._key_file)

    def tell_now(self) -> None:
        """Sends the next heartbeat at once (the state changed)."""
        self._wake.set()

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                registration = await self._register(session)
                log.info("registered as %s", registration.pod_id)
                await self._beat(session, registration)

    async def _register(self, session: aiohttp.ClientSession) -> Registration:
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            try:
                body = await asyncio.to_thread(registration_body, self._pod, self._identity)
                answer = await self._post(session, "/pods", self._join_token, body)
                write_secret(self._key_file, answer["pod_key"])
                return Registration(answer["pod"]["id"], answer["pod_key"], float(answer["heartbeat_seconds"]))
            except (aiohttp.ClientError, TimeoutError, RefusedError, KeyError, ValueError) as exc:
                log.warning("not registered at %s: %s", self._url, exc)
            await asyncio.sleep(backoff * random.uniform(0.5, 1))
            backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)

    async def _beat(self, session: aiohttp.ClientSession, registration: Registration) -> None:
        """Heartbeats until the control plane no longer knows this pod."""
        pause = registration.heartbeat_seconds
        path = f"/pods/{registration.pod_id}/heartbeat"
        while True:
            await self._pause(pause * random.uniform(1 - HEARTBEAT_JITTER, 1))
            try:
                body = await asyncio.to_thread(heartbeat_body, self._pod)
                answer = await self._post(session, path, registration.pod_key, body)
            except RefusedError as exc:
                if exc.status in (401, 404):
                    return
                log.warning("heartbeat refused: %s", exc)
            except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
                log.warning("heartbeat lost: %s", exc)
            else:
                pause = float(answer.get("heartbeat_seconds", pause))
                self._obey(answer)

    async def _pause(self, seconds: float) -> None:
        # Not wait_for: before Python 3.12 it swallows a cancellation that arrives together with the wake-up.
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _obey(self, answer: dict[str, Any]) -> None:
        if answer.get("drain") and not self._pod.draining.is_set():
            log.info("the control plane asks this pod to drain")
            self._pod.draining.set()
            self._wake.set()
        for digest in answer.get("revoked", []):
            if _DIGEST_NAME.fullmatch(f"{digest}.safetensors"):
                (self._pod.folders.lora_cache() / f"{digest}.safetensors").unlink(missing_ok=True)

    async def _post(self, session: aiohttp.ClientSession, path: str, token: str, body: dict[str, Any]) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        async with session.post(self._url + path, json=body, headers=headers) as response:
            text = await response.text()
            if response.status >= 400:
                raise RefusedError(response.status, text)
            return json.loads(text)
