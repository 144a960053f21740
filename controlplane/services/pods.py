"""Pods: who may join, who is alive, who leaves, and what pods report of the work in their hands."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection

from controlplane.db import attempts as attempt_rows
from controlplane.db import pods as pod_rows
from controlplane.db.database import Database
from controlplane.domain import events
from controlplane.domain.ids import new_id
from controlplane.domain.pods import DRAINING, JOINING, LOST, READY, SUSPECT, Pod, state_shown
from controlplane.errors import BadJoinToken, NotFound, Unauthorized, UnknownProtocol, Unprocessable
from controlplane.ports import Clock
from controlplane.services.events import Hints, append
from controlplane.services.reports import Reports
from controlplane.settings import Settings

PROTOCOL = 1
DEFAULT_PROJECT = "default"


class Pods:
    """The pods service. ``join_token`` is what a pod must show to register."""

    def __init__(self, db: Database, clock: Clock, hints: Hints, settings: Settings, join_token: str) -> None:
        self._db = db
        self._clock = clock
        self._hints = hints
        self._settings = settings
        self._join_token = join_token
        self._reports = Reports(db, clock, hints)
        self._listening_since = clock.now()

    def check_join_token(self, token: str) -> None:
        """Raise BadJoinToken unless this is ours."""
        if not hmac.compare_digest(token.encode(), self._join_token.encode()):
            raise BadJoinToken("The join token is not valid here; see TROUPE_JOIN_TOKEN.")

    async def register(self, body: Mapping[str, Any], join_token: str) -> tuple[Pod, str]:
        """Register a pod (or the same instance again) and return it with its new key, which is shown only here.

        A pod that is still loading registers as joining, gets no work, and registers again as ready with all it has.
        Otherwise registering again ends a drain: the process behind it is a new one. Raises BadJoinToken,
        UnknownProtocol, or Unprocessable where the pod could not reach us.
        """
        self.check_join_token(join_token)
        self._check_protocol(body["protocol"])
        self._check_reachable(str(body["address"]))
        key = secrets.token_urlsafe(32)
        pod = await self._db.write_fenced(self._register, dict(body), _hash(key))
        self._hints.wake()
        return pod, key

    async def heartbeat(self, pod_id: str, key: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Note a sign of life; answers ``{drain, heartbeat_seconds, revoked}``. Unauthorized, NotFound."""
        drain, revived = await self._db.write_fenced(self._heartbeat, pod_id, _hash(key), dict(body))
        if revived:
            self._hints.wake()
        return {"drain": drain, "heartbeat_seconds": self._settings.heartbeat_seconds, "revoked": []}

    async def drain(self, pod_id: str) -> Pod:
        """Give a pod no further work; what it has it may finish. NotFound where there is none."""

        def write(c: Connection) -> Pod:
            pod = _locked(c, pod_id)
            state = DRAINING if pod.state in (READY, SUSPECT) else pod.state
            pod_rows.change(c, pod.project_id, pod.id, draining=True, state=state)
            return _get(c, pod_id)

        pod = await self._db.write(write)
        self._hints.wake()
        return pod

    async def list(self, project_id: str) -> Sequence[Pod]:
        """Every pod as people see it, oldest first: a ready one with work of ours in hand is busy."""

        def list_pods(c: Connection) -> Sequence[Pod]:
            occupied = attempt_rows.occupied_pods(c)
            pods = pod_rows.list_all(c, project_id)
            return [replace(pod, state=state_shown(pod.state, pod.id in occupied)) for pod in pods]

        return await self._db.read(list_pods)

    async def authenticate(self, key: str) -> Pod:
        """The pod that owns this key; Unauthorized where none does."""
        pod = await self._db.read(pod_rows.by_key_hash, _hash(key))
        if pod is None:
            raise Unauthorized("The pod key is not known here; register again.")
        return pod

    async def sweep(self) -> Sequence[Pod]:
        """Mark pods that are silent as suspect, and after longer silence as lost; returns those newly lost."""
        lost = await self._db.write(self._sweep)
        if lost:
            self._hints.wake()
        return lost

    async def attempt_progress(self, pod: Pod, prompt_id: str, body: Mapping[str, Any]) -> dict[str, bool]:
        """Note how far an attempt is; answers ``{cancel}``: whether the pod should stop. Idempotent by ``seq``.

        NotFound where this pod has no such attempt.
        """
        return {"cancel": await self._reports.take(pod, prompt_id, body)}

    def _check_protocol(self, protocol: int) -> None:
        if protocol != PROTOCOL:
            older = "pod" if protocol < PROTOCOL else "control plane"
            raise UnknownProtocol(
                f"The pod speaks protocol {protocol}, this control plane {PROTOCOL}: upgrade the {older}.",
                errors=[{"pointer": "/protocol", "detail": f"must be {PROTOCOL}"}],
            )

    def _check_reachable(self, address: str) -> None:
        public = self._settings.effective_public_url
        if _is_loopback(public) and not _is_loopback(address):
            raise Unprocessable(
                f"The pod is at {address}, but this control plane tells pods to call {public}, which only reaches "
                "itself from there. Set TROUPE_PUBLIC_URL to an address that the pod can reach.",
                errors=[{"pointer": "/address", "detail": "not on loopback, while TROUPE_PUBLIC_URL is"}],
            )

    def _register(self, c: Connection, body: dict[str, Any], key_hash: str) -> Pod:
        now = self._clock.now()
        known = pod_rows.by_instance(c, DEFAULT_PROJECT, body["instance_id"])
        values = _registered(body, key_hash, now)
        if known is not None and known.state == JOINING and known.draining and values["state"] == READY:
            values.update(state=DRAINING, draining=True)
        if known is None:
            pod_id = new_id("pod")
            pod = Pod(id=pod_id, project_id=DEFAULT_PROJECT, created_at=now, loras=(), **values)
            pod_rows.add(c, DEFAULT_PROJECT, pod)
        else:
            pod_id = known.id
            pod_rows.change(c, known.project_id, known.id, **values)
        told = events.POD_JOINING if values["state"] == JOINING else events.POD_READY
        append(c, DEFAULT_PROJECT, told, {"pod_id": pod_id, "name": values["name"]}, now=now)
        return _get(c, pod_id)

    def _heartbeat(self, c: Connection, pod_id: str, key_hash: str, body: dict[str, Any]) -> tuple[bool, bool]:
        pod = _locked(c, pod_id)
        if not hmac.compare_digest(pod.key_hash, key_hash):
            raise Unauthorized("The pod key is not this pod's; register again.")
        now = self._clock.now()
        # What a pod drains for by itself ends when it says so; what we asked of it does not.
        draining = pod.draining or body.get("state") == DRAINING
        joining = body.get("state") == JOINING
        values = {
            "state": DRAINING if draining else JOINING if joining else READY,
            "boot": body.get("boot") if joining else None,
            **_restarts(pod, body),
            "queue_length": body.get("queue_running", 0) + body.get("queue_pending", 0),
            "loras": list(body.get("loras", ())),
            "vram_free_bytes": body.get("vram_free_bytes"),
            "disk_free_bytes": body.get("disk_free_bytes"),
        }
        changed = {name: value for name, value in values.items() if _differs(getattr(pod, name), value)}
        pod_rows.change(c, pod.project_id, pod.id, last_heartbeat_at=now, **changed)
        if changed.get("restarts", 0) > pod.restarts:
            told = {"restarts": values["restarts"], "reason": values["restart_reason"]}
            append(c, pod.project_id, events.POD_RESTARTED, {"pod_id": pod.id, "name": pod.name, **told}, now=now)
        revived = values["state"] == READY and pod.state != READY
        if revived:
            append(c, pod.project_id, events.POD_READY, {"pod_id": pod.id, "name": pod.name}, now=now)
        return pod.draining, revived

    def _sweep(self, c: Connection) -> Sequence[Pod]:
        now = self._clock.now()
        lost = []
        patience = min(self._settings.suspect_after_seconds, self._settings.lost_after_seconds)
        quiet = [pod.id for pod in pod_rows.list_all(c) if pod.state != LOST and self._silence(pod, now) > patience]
        for pod in (_locked(c, pod_id) for pod_id in quiet):
            silent = self._silence(pod, now)
            if pod.state != LOST and silent > self._settings.lost_after_seconds:
                pod_rows.change(c, pod.project_id, pod.id, state=LOST)
                told = {"pod_id": pod.id, "name": pod.name, "silent_seconds": round(silent)}
                append(c, pod.project_id, events.POD_LOST, told, now=now)
                lost.append(pod)
            elif pod.state == READY and silent > self._settings.suspect_after_seconds:
                pod_rows.change(c, pod.project_id, pod.id, state=SUSPECT)
        return lost

    def _silence(self, pod: Pod, now: float) -> float:
        # While we were away nobody could be heard; whoever is there gets the time to speak up again.
        return now - max(pod.last_heartbeat_at, self._listening_since)


def _registered(body: Mapping[str, Any], key_hash: str, now: float) -> dict[str, Any]:
    return {
        "instance_id": body["instance_id"],
        "name": body.get("name") or body["instance_id"][:8],
        "kind": body["kind"],
        "address": str(body["address"]).rstrip("/"),
        "token": body["token"],
        "key_hash": key_hash,
        "state": body.get("state", READY),
        "draining": False,
        "boot": body.get("boot") if body.get("state") == JOINING else None,
        "provider": body.get("provider", ""),
        "provider_id": body.get("provider_id", ""),
        "price_per_hour": body.get("price_per_hour"),
        "gpu": body.get("gpu", ""),
        "vram_bytes": body.get("vram_bytes", 0),
        "comfyui_version": body.get("comfyui_version", ""),
        "protocol": body["protocol"],
        "node_pack_digest": body.get("node_pack_digest", ""),
        "node_classes": tuple(body.get("node_classes", ())),
        "models": {folder: list(files) for folder, files in body.get("models", {}).items()},
        "trainers": tuple(body.get("trainers", ())),
        "trainer_obstacles": dict(body.get("trainer_obstacles", {})),
        "labels": tuple(body.get("labels", ())),
        "last_heartbeat_at": now,
    }


def _restarts(pod: Pod, body: Mapping[str, Any]) -> dict[str, Any]:
    """What a heartbeat says of restarts; an agent that began anew counts from 0 again, a pod without one says none."""
    restarts = body.get("restarts")
    if restarts is None:
        return {}
    kept = pod.restart_reason if restarts == pod.restarts else ""
    return {"restarts": restarts, "restart_reason": body.get("restart_reason") or kept}


def _differs(before: Any, after: Any) -> bool:
    return bool((list(before) if isinstance(before, tuple) else before) != after)


def _get(c: Connection, pod_id: str) -> Pod:
    pod = pod_rows.find(c, pod_id)
    if pod is None:
        raise NotFound(f"There is no pod {pod_id}.")
    return pod


def _locked(c: Connection, pod_id: str) -> Pod:
    """The pod as it is and stays until we have written; a drain and a heartbeat must not undo each other."""
    pod = pod_rows.find_locked(c, pod_id)
    if pod is None:
        raise NotFound(f"There is no pod {pod_id}.")
    return pod


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
