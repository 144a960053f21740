"""Events: what happened, in the order in which it happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

JOB_QUEUED = "job.queued"
JOB_STARTED = "job.started"
JOB_PROGRESS = "job.progress"
JOB_WARNING = "job.warning"
JOB_RETRYING = "job.retrying"
JOB_SUCCEEDED = "job.succeeded"
JOB_FAILED = "job.failed"
JOB_CANCELLED = "job.cancelled"
CHARACTER_CREATED = "character.created"
CHARACTER_READY = "character.ready"
CHARACTER_FAILED = "character.failed"
VERSION_READY = "version.ready"
POD_JOINING = "pod.joining"
POD_READY = "pod.ready"
POD_RESTARTED = "pod.restarted"
POD_LOST = "pod.lost"
PROJECT_PAUSED = "project.paused"
PROJECT_RESUMED = "project.resumed"
WEBHOOK_DISABLED = "webhook.disabled"

TYPES = (
    JOB_QUEUED, JOB_STARTED, JOB_PROGRESS, JOB_WARNING, JOB_RETRYING, JOB_SUCCEEDED, JOB_FAILED, JOB_CANCELLED,
    CHARACTER_CREATED, CHARACTER_READY, CHARACTER_FAILED, VERSION_READY,
    POD_JOINING, POD_READY, POD_RESTARTED, POD_LOST, PROJECT_PAUSED, PROJECT_RESUMED, WEBHOOK_DISABLED,
)  # fmt: skip
"""Everything that may happen."""

STREAM_GAP = "stream.gap"
"""Told by a stream only: what lay between the id it was to go on behind and what follows is no longer kept."""

JOB_FINAL = frozenset({JOB_SUCCEEDED, JOB_FAILED, JOB_CANCELLED})


@dataclass(frozen=True)
class Event:
    """One row of the event log. ``id`` only grows; ``created_at`` is seconds since the epoch."""

    id: int
    project_id: str
    type: str
    data: Mapping[str, Any]
    created_at: float
    job_id: str | None = None
    character_id: str | None = None
