"""Reports: what pods tell by themselves of their trainings, gathered so that many cost one transaction a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from controlplane.db import assets as asset_rows
from controlplane.db import attempts as attempt_rows
from controlplane.db import jobs as job_rows
from controlplane.db import reports as report_rows
from controlplane.db.database import Database
from controlplane.domain import events
from controlplane.domain.jobs import CANCELLING, Job, is_final
from controlplane.domain.pods import Pod
from controlplane.errors import NotFound
from controlplane.ports import Clock
from controlplane.services.events import Hints, append_of_job

log = logging.getLogger(__name__)

WRITE_SECONDS = 1.0
"""What the trainings of a process report is written at most so often."""
SAMPLES_SHOWN = 4
"""So many of the newest samples stand in a job's progress."""
REPORTING_KEPT = 10_000

PHASE_PERCENT: Mapping[str, float] = {"downloading": 1.0, "preparing": 3.0, "verifying": 92.0, "uploading": 95.0}
TRAINING_PERCENT = (5.0, 90.0)
"""Where the training phase begins and ends within the whole job."""


@dataclass(frozen=True)
class Report:
    """One report as it came in."""

    pod_id: str
    project_id: str
    prompt_id: str
    job_id: str
    body: Mapping[str, Any] = field(repr=False)

    @property
    def seq(self) -> int:
        """Grows with every report of an attempt."""
        return int(self.body["seq"])

    @property
    def must_not_wait(self) -> bool:
        """Whether it tells what no later report tells again."""
        return any(self.body.get(name) for name in ("sample_asset_id", "checkpoint_asset_id", "note"))


class Reports:
    """The reports of one process's pods; call it from the event loop.

    A report that only says how far a training is waits for at most ``WRITE_SECONDS`` for the newest one, and for those
    of others. One that begins a phase, or brings a file or a warning, is stored before it is answered.
    """

    def __init__(self, db: Database, clock: Clock, hints: Hints) -> None:
        self._db = db
        self._clock = clock
        self._hints = hints
        self._phases: dict[str, str] = {}
        self._waiting: dict[str, Report] = {}
        self._writing: asyncio.Task[None] | None = None

    async def take(self, pod: Pod, prompt_id: str, body: Mapping[str, Any]) -> bool:
        """Take a report; whether the pod should stop. Idempotent by ``seq``. NotFound where it has no such attempt."""
        seen = await self._db.read(report_rows.look, pod.project_id, prompt_id)
        if seen is None or seen.pod_id != pod.id:
            raise NotFound(f"This pod has no attempt {prompt_id}.")
        if not seen.is_newest or not seen.live or is_final(seen.status):
            self._phases.pop(prompt_id, None)
            return True
        report = Report(pod.id, pod.project_id, prompt_id, seen.job_id, dict(body))
        if report.must_not_wait or self._phases.get(prompt_id) != report.body["phase"]:
            await self._write_now(report)
        else:
            self._gather(report)
        return seen.status == CANCELLING

    def _gather(self, report: Report) -> None:
        before = self._waiting.get(report.prompt_id)
        if before is None or before.seq < report.seq:
            self._waiting[report.prompt_id] = report
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_soon())

    async def _write_now(self, report: Report) -> None:
        await self._db.write_fenced(self._attempt_progress, [report])
        if len(self._phases) >= REPORTING_KEPT:
            self._phases.clear()
        self._phases[report.prompt_id] = str(report.body["phase"])
        self._hints.wake(Hints.EVENTS)

    async def _write_soon(self) -> None:
        await asyncio.sleep(WRITE_SECONDS)
        gathered, self._waiting, self._writing = list(self._waiting.values()), {}, None
        try:
            await self._db.write_fenced(self._attempt_progress, gathered)
        except Exception:  # the next report says the same, and more
            log.exception("reports of %d trainings were not written", len(gathered))
            return
        self._hints.wake(Hints.EVENTS)

    def _attempt_progress(self, c: Connection, reports: Sequence[Report]) -> None:
        # In one order, so that two processes do not wait for each other.
        for report in sorted(reports, key=lambda one: one.job_id):
            job = job_rows.get_locked(c, report.project_id, report.job_id)
            newest = attempt_rows.current(c, report.project_id, report.job_id)
            if job is None or newest is None or newest.id != report.prompt_id or not newest.live:
                continue
            if not is_final(job.status) and attempt_rows.raise_progress_seq(
                c, report.project_id, report.prompt_id, report.seq
            ):
                self._note(c, job, report)

    def _note(self, c: Connection, job: Job, report: Report) -> None:
        body, now = report.body, self._clock.now()
        progress = reported_progress(job.progress, body)
        sample = _sample(c, job, body.get("sample_asset_id"))
        if sample is not None:
            progress["samples"] = [*progress.get("samples", ()), sample][-SAMPLES_SHOWN:]
        # The report itself is the sign of life: a step may take minutes. A trainer that hangs is noticed on its
        # pod, which knows how long a step takes there.
        job_rows.note_progress(c, job.project_id, job.id, {**progress, "reported_at": now})
        self._note_warning(c, job, str(body.get("note") or ""))
        files = {name: body[name] for name in ("sample_asset_id", "checkpoint_asset_id") if body.get(name)}
        if files or any(job.progress.get(name) != value for name, value in progress.items()):
            append_of_job(c, job, events.JOB_PROGRESS, now, **{"progress": progress, **files})

    def _note_warning(self, c: Connection, job: Job, note: str) -> None:
        """What people should know of a training on its way: an easier try, a resume; each text once."""
        if note and note not in job.warnings:
            job_rows.note_warnings(c, job.project_id, job.id, [*job.warnings, note])
            append_of_job(c, job, events.JOB_WARNING, self._clock.now(), warning=note)


def reported_progress(before: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """A job's ``progress`` after a pod's report; the percentage never goes back within an attempt."""
    phase, step, total = str(body["phase"]), body.get("step"), body.get("total_steps")
    percent = PHASE_PERCENT.get(phase, 0.0)
    if phase == "training" and step is not None and total:
        begin, end = TRAINING_PERCENT
        percent = begin + (end - begin) * min(step / total, 1.0)
    progress = {
        "phase": phase,
        "percent": round(max(percent, float(before.get("percent") or 0.0)), 1),
        "eta_seconds": body.get("eta_seconds"),
        "step": step if step is not None else before.get("step"),
        "total_steps": total if total is not None else before.get("total_steps"),
        "loss": body.get("loss") if body.get("loss") is not None else before.get("loss"),
    }
    if before.get("samples"):
        progress["samples"] = list(before["samples"])
    return progress


def _sample(c: Connection, job: Job, asset_id: Any) -> dict[str, str] | None:
    """A sample as it is kept in a job's progress; None where it is no sample of this training."""
    asset = asset_rows.get(c, job.project_id, str(asset_id)) if asset_id else None
    if asset is None or asset.job_id != job.id or asset.kind != "sample":
        return None
    return {"asset_id": asset.id, "key": asset.key}
