"""Telling the control plane about a pod: registration with backoff, heartbeats with jitter, and what it answers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

log = logging.getLogger(__name__)

PROTOCOL = 1
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
HEARTBEAT_JITTER = 0.2
REQUEST_SECONDS = 20
LORA_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")

Body = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Registration:
    """What the control plane answered: who this pod is there, its key (never shown), and the heartbeat's pace."""

    pod_id: str
    heartbeat_seconds: float


@dataclass(frozen=True)
class PodIdentity:
    """What a pod says of itself and cannot see in its own parts."""

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
    """The id a pod registers under, the same after a restart on the same data folder."""
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


def drop_revoked(folder: Path, digests: Iterable[object]) -> None:
    """Deletes the LoRA files of these digests from a content-addressed folder; what is no digest is ignored."""
    for digest in digests:
        if not LORA_NAME.fullmatch(name := f"{digest}.safetensors"):
            continue
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:  # a read-only disk is no reason to stop reporting
            log.warning("a revoked LoRA could not be deleted: %s", error)


def storable(value: Any) -> Any:
    """A JSON value without what no control plane stores, for one such text would cost the whole report: a NUL, and half
    a surrogate pair, as in the name of a file that is no UTF-8."""
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {storable(name): storable(one) for name, one in value.items()}
    return [storable(one) for one in value] if isinstance(value, list | tuple) else value


class Registrar:
    """Keeps one pod registered until it is cancelled.

    `body` and `heartbeat` make the bodies of POST /pods and of a heartbeat; they are called in a thread. `obey` is
    given every answer to a heartbeat. `on_contact` is called after every request that the control plane took, with
    the pod key where a new one was given. The key goes into a file that the node pack reads at each use, because
    registration happens after the nodes are imported and may happen again.
    """

    def __init__(
        self,
        control_plane: str,
        join_token: str,
        key_file: Path,
        body: Body,
        heartbeat: Body,
        obey: Callable[[Mapping[str, Any]], None],
        on_contact: Callable[[str | None], None] = lambda pod_key: None,
    ) -> None:
        self._url = control_plane.rstrip("/")
        self._join_token = join_token
        self._key_file = key_file
        self._body = body
        self._heartbeat = heartbeat
        self._obey = obey
        self._on_contact = on_contact
        self._wake = asyncio.Event()
        self._again = asyncio.Event()
        self._key = ""
        self.registration: Registration | None = None

    def tell_now(self) -> None:
        """Sends the next heartbeat at once (the state changed)."""
        self._wake.set()

    def register_again(self) -> None:
        """Registers anew at once (the facts changed)."""
        self._again.set()
        self._wake.set()

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                self.registration = await self._register(session)
                log.info("registered as %s", self.registration.pod_id)
                await self._beat(session, self.registration)

    async def _register(self, session: aiohttp.ClientSession) -> Registration:
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            self._again.clear()
            try:
                body = await asyncio.to_thread(self._body)
                answer = await self._post(session, "/pods", self._join_token, body)
                self._key = str(answer["pod_key"])
                write_secret(self._key_file, self._key)
                registration = Registration(str(answer["pod"]["id"]), float(answer["heartbeat_seconds"]))
            except (aiohttp.ClientError, OSError, RefusedError, KeyError, TypeError, ValueError) as exc:
                log.warning("not registered at %s: %s", self._url, exc or type(exc).__name__)
            else:
                self._on_contact(self._key)
                return registration
            await asyncio.sleep(backoff * random.uniform(0.5, 1))
            backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)

    async def _beat(self, session: aiohttp.ClientSession, registration: Registration) -> None:
        """Heartbeats until the control plane no longer knows this pod, or the pod has new facts to tell."""
        pause = registration.heartbeat_seconds
        path = f"/pods/{registration.pod_id}/heartbeat"
        while not self._again.is_set():
            await self._pause(pause * random.uniform(1 - HEARTBEAT_JITTER, 1))
            if self._again.is_set():
                return
            try:
                body = await asyncio.to_thread(self._heartbeat)
                answer = await self._post(session, path, self._key, body)
                pause = float(answer.get("heartbeat_seconds", pause))
            except RefusedError as exc:
                if exc.status in (401, 404):
                    return
                log.warning("heartbeat refused: %s", exc)
            except (aiohttp.ClientError, OSError, AttributeError, TypeError, ValueError) as exc:
                log.warning("heartbeat lost: %s", exc or type(exc).__name__)
            else:
                self._on_contact(None)
                self._obey(answer)

    async def _pause(self, seconds: float) -> None:
        # Not wait_for: before Python 3.12 it swallows a cancellation that arrives together with the wake-up.
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _post(self, session: aiohttp.ClientSession, path: str, token: str, body: dict[str, Any]) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        async with session.post(
            self._url + path, json=storable(body), headers=headers, allow_redirects=False
        ) as response:
            text = await response.text()
            if response.status >= 300:
                raise RefusedError(response.status, text)
            return json.loads(text)
