"""Jobs, attempts and events as clients see them."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import AwareDatetime, Field

from controlplane.api.schemas.assets import Asset
from controlplane.api.schemas.base import FreeJson, Links, PageQuery, Reply, Timestamp

JobKind = Literal["image", "video", "train"]
JobStatus = Literal[
    "queued",
    "claimed",
    "submitted",
    "submit_unknown",
    "running",
    "collecting",
    "succeeded",
    "failed",
    "cancelling",
    "cancelled",
]


_ANY_STATUS = "|".join(get_args(JobStatus))


class ProgressSample(Reply):
    """A picture that a training made on its way."""

    asset_id: str
    url: str = Field(description="Signed; made anew whenever the job is read.")


class JobProgress(Reply):
    """How far a job is; everything is null until it is known."""

    phase: str | None = Field(None, examples=["training"])
    percent: float | None = Field(None, ge=0, le=100)
    eta_seconds: float | None = None
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    preview_url: str | None = Field(
        None, description="What it looks like so far: a small JPEG, signed, gone when the pod has finished."
    )
    samples: list[ProgressSample] = Field(
        default_factory=list, description="The newest pictures that a training made on its way, newest last."
    )


class Fault(Reply):
    """Why something failed."""

    code: str
    detail: str
    log_tail: list[str] = Field(
        default_factory=list, description="What the pod logged last, newest last; absent where it keeps no log."
    )


class JobAttempt(Reply):
    """One try of a job's work on one pod."""

    id: str = Field(description="ComfyUI's prompt_id.")
    number: int
    pod_id: str
    status: str
    error: Fault | None = None
    placement: dict[str, Any] | None = Field(None, description="Why this pod.")
    created_at: Timestamp
    submitted_at: Timestamp | None = None
    started_at: Timestamp | None = None
    finished_at: Timestamp | None = None


class Job(Reply):
    """One accepted request and what became of it."""

    id: str
    kind: JobKind
    status: JobStatus
    progress: JobProgress
    character_id: str | None = None
    version: int | None = None
    base_model: str | None = None
    workflow: str
    seed: int | None = None
    request: FreeJson
    assets: list[Asset]
    error: Fault | None = None
    warnings: list[str]
    attempts: list[JobAttempt]
    placement: dict[str, Any] | None = Field(
        None, description="Why this pod, or why none yet: `{pod_id, reason, considered}`."
    )
    result: dict[str, Any] | None = None
    metadata: FreeJson
    end_user: str | None = None
    rating: str | None = None
    created_at: Timestamp
    started_at: Timestamp | None = None
    finished_at: Timestamp | None = None
    deadline_at: Timestamp
    priority: int = Field(description="Among a project's waiting jobs a higher one goes first.")


class JobPage(Reply):
    """One page of jobs, newest first."""

    items: list[Job]
    next_cursor: str | None = None


class JobReply(Reply):
    """A job and where to follow it."""

    job: Job
    links: Links


class JobsQuery(PageQuery):
    """Which jobs to list."""

    character_id: str | None = Field(None, max_length=80)
    kind: JobKind | None = None
    status: str | None = Field(
        None,
        pattern=rf"^({_ANY_STATUS})(,({_ANY_STATUS}))*$",
        description="One status or several, separated by commas.",
        examples=["queued,running"],
    )
    created_from: AwareDatetime | None = Field(None, description="Not older than this (RFC 3339).")
    created_before: AwareDatetime | None = Field(None, description="Older than this (RFC 3339).")

    @property
    def statuses(self) -> tuple[str, ...]:
        """The statuses that are asked for, none for any."""
        return tuple(self.status.split(",")) if self.status else ()
