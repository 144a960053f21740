"""Jobs and attempts: their states, what may follow what, and when a failed attempt is tried again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

JobKind = Literal["image", "video", "train"]
KINDS: tuple[JobKind, ...] = ("image", "video", "train")

QUEUED = "queued"
CLAIMED = "claimed"
SUBMITTED = "submitted"
SUBMIT_UNKNOWN = "submit_unknown"
RUNNING = "running"
COLLECTING = "collecting"
CANCELLING = "cancelling"
SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELLED = "cancelled"

FINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})
HELD = frozenset({CLAIMED, SUBMITTED, SUBMIT_UNKNOWN, RUNNING, COLLECTING, CANCELLING})
"""States in which a control-plane process owns the job through a lease."""

NEXT: Mapping[str, frozenset[str]] = {
    # queued -> failed: the deadline passed and no pod could do it.
    QUEUED: frozenset({CLAIMED, FAILED, CANCELLED}),
    # back to queued: the attempt is proven lost and another one is due.
    # succeeded from any of them: what is over within a moment is written with its outcome.
    CLAIMED: frozenset(
        {QUEUED, SUBMITTED, SUBMIT_UNKNOWN, RUNNING, COLLECTING, SUCCEEDED, FAILED, CANCELLING, CANCELLED}
    ),
    SUBMITTED: frozenset({QUEUED, RUNNING, COLLECTING, SUCCEEDED, FAILED, CANCELLING, CANCELLED}),
    SUBMIT_UNKNOWN: frozenset({QUEUED, SUBMITTED, RUNNING, COLLECTING, SUCCEEDED, FAILED, CANCELLING, CANCELLED}),
    RUNNING: frozenset({QUEUED, COLLECTING, SUCCEEDED, FAILED, CANCELLING, CANCELLED}),
    COLLECTING: frozenset({QUEUED, SUCCEEDED, FAILED, CANCELLING, CANCELLED}),
    CANCELLING: frozenset({CANCELLED, FAILED}),
    SUCCEEDED: frozenset(),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
}

ATTEMPT_LIVE = frozenset({"created", "submitted", "running"})
"""Attempts that have a place on their pod."""
ATTEMPT_OPEN = ATTEMPT_LIVE | {COLLECTING}
"""The same and those whose files are still on their way: the pod's GPU is somebody else's by then."""

EMPTY_PROGRESS: Mapping[str, Any] = {
    "phase": QUEUED,
    "percent": 0.0,
    "eta_seconds": None,
    "step": None,
    "total_steps": None,
    "loss": None,
}


def is_final(status: str) -> bool:
    """Whether nothing follows ``status`` any more."""
    return status in FINAL


def may_follow(status: str, following: str) -> bool:
    """Whether a job may go from ``status`` to ``following``; staying where it is always may."""
    return status == following or following in NEXT[status]


@dataclass(frozen=True)
class NewJob:
    """An accepted request, ready to be stored. ``id`` may be chosen beforehand with ``new_id("job")``."""

    kind: JobKind
    template: str
    template_digest: str
    graph: Mapping[str, Any]
    needs: Mapping[str, Any]
    outputs: Sequence[Mapping[str, Any]]
    deadline_seconds: float
    request: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    project_id: str = "default"
    character_id: str | None = None
    version: int | None = None
    base_model: str | None = None
    seed: int | None = None
    files: Sequence[tuple[str, str]] = ()
    estimate_seconds: float = 10.0
    priority: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    end_user: str | None = None
    rating: str | None = None
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Job:
    """One accepted request, as stored. Times are seconds since the epoch."""

    id: str
    project_id: str
    kind: str
    status: str
    template: str
    template_digest: str
    request: Mapping[str, Any]
    graph: Mapping[str, Any]
    files: tuple[tuple[str, str], ...]
    needs: Mapping[str, Any]
    outputs: tuple[Mapping[str, Any], ...]
    estimate_seconds: float
    priority: int
    metadata: Mapping[str, Any]
    progress: Mapping[str, Any]
    warnings: tuple[str, ...]
    claim_no: int
    not_before: float
    deadline_at: float
    created_at: float
    character_id: str | None = None
    version: int | None = None
    base_model: str | None = None
    seed: int | None = None
    end_user: str | None = None
    rating: str | None = None
    placement: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    claimed_by: str | None = None
    lease_until: float | None = None
    cancel_requested_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    lane: str = ""
    """Digest of what it asks of a pod, its LoRA left out; ``db.jobs.add`` writes it."""
    lora_sha256: str | None = None


@dataclass(frozen=True)
class Attempt:
    """One try of a job's GPU work on one pod; ``id`` is ComfyUI's prompt_id.

    ``status``: created (the row exists, the pod may know nothing) | submitted | running | collecting (its files are on
    their way) | succeeded | failed | lost | cancelled.
    """

    id: str
    project_id: str
    job_id: str
    number: int
    pod_id: str
    client_id: str
    status: str
    created_at: float
    placement: Mapping[str, Any] | None = None
    base_model: str | None = None
    lora_sha256: str | None = None
    progress_seq: int = 0
    error: Mapping[str, Any] | None = None
    submitted_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    slot: int = 0
    """Its place on the pod: 0 runs, further ones wait behind it."""

    @property
    def live(self) -> bool:
        """Whether it may still end well: the pod works on it, or hands over what it made."""
        return self.status in ATTEMPT_OPEN


@dataclass(frozen=True)
class JobResult:
    """What a kind's completion made of the outputs; ``result`` is stored on the job."""

    result: Mapping[str, Any]
    warnings: Sequence[str] = ()


LOG_LINES = 40
LOG_LINE_CHARACTERS = 300


def cut_log(lines: Sequence[str]) -> tuple[str, ...]:
    """The newest lines of a pod's log, cut to what is worth keeping with a failure."""
    return tuple(line[:LOG_LINE_CHARACTERS] for line in lines[-LOG_LINES:])


def fault(code: str, detail: str, log_tail: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON stored as the error of a job or an attempt: ``{code, detail}``, and ``log_tail`` where there is one."""
    return {"code": code, "detail": detail, **({"log_tail": list(log_tail)} if log_tail else {})}


FailureKind = Literal["lost", "refused", "error", "interrupted", "outputs", "stalled", "unusable"]


@dataclass(frozen=True)
class Failure:
    """Why an attempt did not succeed.

    ``kind``: ``lost`` (proven absent, or the pod is gone) | ``refused`` (the pod did not take it) | ``error`` (a node
    raised) | ``interrupted`` (somebody else stopped it) | ``outputs`` (finished, but stored files are missing) |
    ``stalled`` (no sign of life) | ``unusable`` (our own side cannot use the result). ``pod_specific`` says that
    another pod may well succeed. ``log_tail`` is what the pod logged last, newest last.
    """

    kind: FailureKind
    code: str
    detail: str
    pod_specific: bool = False
    log_tail: tuple[str, ...] = ()

    def as_error(self) -> dict[str, Any]:
        """The JSON stored on job and attempt."""
        return fault(self.code, self.detail, self.log_tail)


@dataclass(frozen=True)
class Retry:
    """Whether to try again and how long to wait first (seconds)."""

    again: bool
    delay: float = 0.0
    reason: str = ""


RETRY_DELAY_SECONDS = 2.0
ALWAYS_TRIED_AGAIN: frozenset[str] = frozenset({"lost", "interrupted", "outputs", "stalled"})


def decide_retry(failure: Failure, attempt_number: int, max_attempts: int) -> Retry:
    """Decide on another attempt after ``attempt_number`` (from 1) failed.

    A node's own error would come again with the same graph, so it is final unless it is the pod's fault.
    """
    if failure.kind not in ALWAYS_TRIED_AGAIN and not failure.pod_specific:
        return Retry(False, reason="another attempt would fail in the same way")
    if attempt_number >= max_attempts:
        return Retry(False, reason=f"all {max_attempts} attempts are used up")
    return Retry(True, RETRY_DELAY_SECONDS * attempt_number)


STALL_STEPS = 20


def patience_with(kind: str, progress: Mapping[str, Any], seconds: float) -> float:
    """How long a running job may show no progress (seconds): ``seconds``, or 20 of a training's own steps if slower.

    The pace is what the trainer itself says: the time that is left over the steps that are left.
    """
    left = (progress.get("total_steps") or 0) - (progress.get("step") or 0)
    if kind != "train" or left <= 0:
        return seconds
    return max(seconds, STALL_STEPS * (progress.get("eta_seconds") or 0.0) / left)


POD_FAULTS = ("OutOfMemoryError", "AcceleratorError", "ConnectionError", "TimeoutError", "URLError", "TransferFailed")
DEAD_DEVICE_WORDS = ("CUDA error", "device-side assert", "illegal memory access")
OUT_OF_MEMORY = "out_of_memory"
DEAD_DEVICE = "dead_device"
"""After this error of CUDA's every further prompt fails, until ComfyUI is started anew."""


TRAINER_ERROR = "TrainerError"
TRAINER_POD_FAULTS = frozenset(
    {
        "out_of_memory",
        "out_of_host_memory",
        "killed",
        "terminated",
        "crashed",
        "hung",
        "disk_full",
        "missing_package",
        "missing_tokenizer",
        "missing_interpreter",
        "missing_checkpoint",
        "bad_checkpoint",
        "trainer_unavailable",
        "unknown_trainer",
    }
)
"""Codes of a failed training that lie in its pod: memory, disk, files, packages. Another pod may do better."""


def failure_of_error(error: Mapping[str, Any]) -> Failure:
    """Read ``{type, message, node_id, node_type, log_tail}`` of a failed execution: the graph's fault or the pod's?"""
    exception = str(error.get("type") or "")
    message = str(error.get("message") or "").strip()
    where = str(error.get("node_type") or "a node")
    log_tail = error.get("log_tail") or ()
    if exception.rsplit(".", 1)[-1] == TRAINER_ERROR:
        return _failure_of_trainer(message, where, log_tail)
    code = _code_of(exception, message)
    pod_specific = exception.rsplit(".", 1)[-1] in POD_FAULTS or code != "execution_error"
    detail = f"{where} failed: {message or exception or 'no message'}"
    return Failure("error", code, detail, pod_specific, cut_log(log_tail))


def _failure_of_trainer(message: str, where: str, log_tail: Sequence[str]) -> Failure:
    """The pack's TrainerError says ``code: sentence`` and, line by line, what the trainer printed last."""
    first, *printed = message.splitlines() or [""]
    code, separator, sentence = first.partition(": ")
    if not separator:
        code, sentence = "execution_error", first
    detail = f"{where} failed: {sentence}"
    return Failure("error", code, detail, code in TRAINER_POD_FAULTS, cut_log(printed or log_tail))


def _code_of(exception: str, message: str) -> str:
    # CUDA says "CUDA error: out of memory" where torch's own allocator does not; the device outlives both.
    if exception.endswith("OutOfMemoryError") or "CUDA error: out of memory" in message:
        return OUT_OF_MEMORY
    return DEAD_DEVICE if any(words in message for words in DEAD_DEVICE_WORDS) else "execution_error"


def story(attempts: Sequence[Attempt]) -> str:
    """One line that tells how every attempt ended."""
    parts = [
        f"attempt {a.number} on {a.pod_id}: {(a.error or {}).get('detail') or a.status}"
        for a in sorted(attempts, key=lambda a: a.number)
    ]
    return "; ".join(parts)
