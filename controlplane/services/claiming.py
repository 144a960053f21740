"""Claiming: the transaction that gives a waiting job a pod, a claim and an attempt, before the pod hears of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from controlplane.db import attempts as attempt_rows
from controlplane.db import jobs as job_rows
from controlplane.db import pods as pod_rows
from controlplane.domain.ids import new_prompt_id
from controlplane.domain.jobs import Attempt, Job
from controlplane.domain.pods import CAPACITY, Choice, Load, Needs, Pod, choose
from controlplane.services.outcomes import Hooks, fail

JOBS_PER_GROUP = 8
OVERDUE_PER_PASS = 50


@dataclass(frozen=True)
class Claimed:
    """A job in this process's hands, with its newest attempt and that attempt's pod where there are any."""

    job: Job
    attempt: Attempt | None
    pod: Pod | None
    resumed: bool = False
    """Whether another claim worked on it before: its attempt may be known to the pod, whatever our rows say."""


def take_over(c: Connection, owner: str, lease_until: float, now: float, except_for: Collection[str]) -> Claimed | None:
    """Claim one job whose owner fell silent, keeping its attempt."""
    job = job_rows.take_over(c, owner, lease_until, now, except_for)
    if job is None:
        return None
    attempt = attempt_rows.current(c, job.project_id, job.id)
    pod = pod_rows.get(c, job.project_id, attempt.pod_id) if attempt else None
    return Claimed(job, attempt, pod, resumed=True)


def claim_next(c: Connection, owner: str, lease_until: float, now: float) -> Claimed | None:
    """Claim the first waiting job that a pod is free for, and write its attempt; explain why the others wait."""
    fleets: dict[str, _Fleet] = {}
    for job in job_rows.due(c, now, JOBS_PER_GROUP):
        fleet = fleets.get(job.project_id) or _fleet(c, job.project_id)
        fleets[job.project_id] = fleet
        choice = _choose(c, job, fleet)
        if choice.pod_id is None:
            if choice.as_placement() != job.placement:
                job_rows.note_placement(c, job.project_id, job.id, choice.as_placement())
        elif (pod := _locked(c, choice.pod_id, fleet)) is not None:
            claimed = _claim(c, job, choice, pod, owner, lease_until, now)
            if claimed is not None:
                return claimed
    return None


def fail_overdue(c: Connection, hooks: Hooks, now: float) -> int:
    """Fail jobs that no pod took before their deadline, in the words of their placement; returns how many."""
    late = job_rows.overdue(c, now, OVERDUE_PER_PASS)
    for job in late:
        why = _choose(c, job, _fleet(c, job.project_id)).reason
        fail(c, job, "no_pod_in_time", f"No pod took this job before its deadline. {why}", hooks, now)
    return len(late)


@dataclass(frozen=True)
class _Fleet:
    """A project's pods and what they are doing."""

    pods: Sequence[Pod]
    loads: Mapping[str, Load]


def _fleet(c: Connection, project_id: str) -> _Fleet:
    pods = pod_rows.known(c, project_id)
    return _Fleet(pods, attempt_rows.loads(c, project_id, [pod.id for pod in pods]))


def _choose(c: Connection, job: Job, fleet: _Fleet) -> Choice:
    tried = frozenset(attempt.pod_id for attempt in attempt_rows.of_job(c, job.project_id, job.id))
    return choose(Needs.of(job.needs, job.base_model), fleet.pods, fleet.loads, avoid=tried)


def _locked(c: Connection, pod_id: str, fleet: _Fleet) -> Pod | None:
    """Keep other processes from choosing the same pod, then look again: it may be another one than we chose.

    None where somebody gave it work, drained it or lost it a moment ago.
    """
    pod = pod_rows.find_locked(c, pod_id)
    if pod is None or not any(pod.id == one.id and pod.state == one.state for one in fleet.pods):
        return None
    load = attempt_rows.loads(c, pod.project_id, [pod.id]).get(pod.id)
    return pod if load is None or load.running < CAPACITY else None


def _claim(
    c: Connection, job: Job, choice: Choice, pod: Pod, owner: str, lease_until: float, now: float
) -> Claimed | None:
    claimed = job_rows.claim(c, job.project_id, job.id, owner, lease_until)
    if claimed is None:
        return None
    attempt = Attempt(
        id=new_prompt_id(),
        project_id=job.project_id,
        job_id=job.id,
        number=1 + len(attempt_rows.of_job(c, job.project_id, job.id)),
        pod_id=pod.id,
        client_id=new_prompt_id(),
        status="created",
        placement=choice.as_placement(),
        base_model=job.base_model,
        lora_sha256=_lora(job.needs),
        created_at=now,
    )
    attempt_rows.add(c, job.project_id, attempt)
    return Claimed(job_rows.change(c, claimed, placement=choice.as_placement()), attempt, pod)


def _lora(needs: Mapping[str, object]) -> str | None:
    sha256 = needs.get("lora_sha256")
    return str(sha256) if sha256 else None
