"""Projects: the tenants, and the pause that keeps a project's waiting work from being begun."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from controlplane.errors import Unprocessable

MAX_REASON_CHARS = 500


@dataclass(frozen=True)
class Project:
    """One tenant. Times are seconds since the epoch; ``paused_at`` is None while its work goes on."""

    id: str
    name: str
    created_at: float
    paused_at: float | None = None
    pause_reason: str = ""

    @property
    def is_paused(self) -> bool:
        """Whether nothing new of it is begun; what runs goes on."""
        return self.paused_at is not None


def pause_words(project: Project) -> str:
    """Why a job of a paused project waits, one sentence; empty where the project is not paused."""
    if project.paused_at is None:
        return ""
    since = datetime.fromtimestamp(project.paused_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"the project is paused since {since}{f': {project.pause_reason}' if project.pause_reason else ''}"


def checked_reason(text: str) -> str:
    """The reason of a pause as one line; Unprocessable where it is too long."""
    line = " ".join(text.split())
    if len(line) > MAX_REASON_CHARS:
        detail = f"has {len(line)} characters, at most {MAX_REASON_CHARS} are kept"
        raise Unprocessable(f"The reason {detail}.", errors=[{"pointer": "/reason", "detail": detail}])
    return line
