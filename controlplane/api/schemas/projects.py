"""The caller's project as clients see it."""

from __future__ import annotations

from pydantic import Field

from controlplane.api.schemas.base import Reply, Request, Timestamp


class Project(Reply):
    """A tenant: whose characters, jobs and assets these are."""

    id: str
    name: str
    paused: bool = Field(description="While true, requests are accepted and wait; what runs goes on.")
    paused_at: Timestamp | None = None
    pause_reason: str | None = None
    created_at: Timestamp


class PatchProject(Request):
    """Pause or resume a project."""

    paused: bool
    reason: str | None = Field(None, max_length=500, description="Why it is paused; waiting jobs tell it.")
