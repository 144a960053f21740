"""What the agent says of its pod: to the control plane at registration and in heartbeats, and to whoever asks it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from typing import Any

from ..registration import PROTOCOL, PodIdentity
from .facts import Facts
from .incidents import Incidents
from .keeper import Keeper
from .options import Options

LONGEST_REASON = 500
"""The control plane's limit for a reason."""


@dataclass
class Draining:
    """Why no new prompt is taken: each reason by itself, as the last can go away again."""

    leaving: bool = False
    ordered: bool = False
    cut_off: bool = False

    def __bool__(self) -> bool:
        return self.leaving or self.ordered or self.cut_off


@dataclass(frozen=True)
class Report:
    """The parts that are reported on."""

    options: Options
    token: str = field(repr=False)
    identity: PodIdentity
    keeper: Keeper
    incidents: Incidents
    draining: Draining
    began: float = field(default_factory=time.time)

    def registration(self) -> dict[str, Any]:
        """The body of POST /pods."""
        place, keeper = self.options.on_runpod, self.keeper
        return {
            "protocol": PROTOCOL,
            "instance_id": self.identity.instance_id,
            "address": self.identity.address,
            "token": self.token,
            "kind": "comfyui",
            "name": self.identity.name,
            "labels": list(self.identity.labels),
            # Registering ends a drain, so one that drains does not call itself ready.
            "state": "ready" if keeper.ready and not self.draining else "joining",
            "boot": keeper.boot.body() if keeper.boot else None,
            "provider": "runpod" if place else "",
            "provider_id": place.pod_id if place else "",
            **(keeper.facts or Facts()).body(),
        }

    def heartbeat(self) -> dict[str, Any]:
        """The body of POST /pods/{id}/heartbeat."""
        keeper, reason = self.keeper, self.incidents.last_restart
        return {
            "state": self._state(),
            "boot": keeper.boot.body() if keeper.boot else None,
            "queue_running": len(keeper.seen.running),
            "queue_pending": len(keeper.seen.pending),
            "loras": [str(digest) for digest in keeper.state.get("loras") or ()],
            "vram_free_bytes": keeper.state.get("vram_free_bytes"),
            "disk_free_bytes": shutil.disk_usage(self.options.base_directory).free,
            "restarts": self.incidents.restart_count,
            "restart_reason": f"{reason.code}: {reason.detail}"[:LONGEST_REASON] if reason else "",
        }

    def to_callers(self, pod_id: str | None, silent_seconds: float | None) -> dict[str, Any]:
        """The answer of GET /troupe/agent."""
        keeper = self.keeper
        return {
            "state": self._state(),
            "boot": keeper.boot.body() if keeper.boot else None,
            "comfyui_pid": keeper.pid,
            "draining": bool(self.draining),
            "restarts": [incident.shown() for incident in self.incidents.restarts()],
            "restart_count": self.incidents.restart_count,
            "queue_running": list(keeper.seen.running),
            "queue_pending": list(keeper.seen.pending),
            "pod_id": pod_id,
            "control_plane_silent_seconds": silent_seconds,
            "started_at": self.began,
        }

    def _state(self) -> str:
        return "draining" if self.draining else "ready" if self.keeper.ready else "joining"
