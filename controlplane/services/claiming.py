"""Claiming: the transaction that gives waiting jobs pods, claims and attempts before any pod hears of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from controlplane.db import attempts as attempt_rows
from controlplane.db import jobs as job_rows
from controlplane.db import pods as pod_rows
from controlplane.db import projects as project_rows
from controlplane.db.attempts import Occupied
from controlplane.domain.ids import new_prompt_id
from controlplane.domain.jobs import QUEUED, Attempt, Job
from controlplane.domain.placement import Assignment, Policy, Waiting, assign
from controlplane.domain.pods import Needs, Pod
from controlplane.domain.projects import Project
from controlplane.ports import PodAddress
from controlplane.services.fleet import LANES_KEPT, Fleet, occupied_by
from controlplane.services.outcomes import Hooks, fail

WINDOW = 128
"""So many jobs of each lane are looked at, for one that suits what a pod has resident."""
LANES_PER_PASS = 256
BATCH = 64
"""At most so many jobs are claimed in one transaction."""
KEPT_SECONDS = 0.05
"""For so long, what was read and not chosen is chosen from again; taking it shows what has become of it."""
KEPT_LEAST = WINDOW // 2
OVERDUE_PER_PASS = 50
TAKEN_OVER_PER_PASS = 256


@dataclass(frozen=True)
class Claimed:
    """A job in this process's hands, with its newest attempt and that attempt's pod where there are any."""

    job: Job
    attempt: Attempt | None
    pod: Pod | None
    resumed: bool = False
    """Whether another claim worked on it before: its attempt may be known to the pod, whatever our rows say."""


@dataclass(frozen=True)
class Chosen:
    """A waiting job and the place it is to have, as placement sees it; whether it gets it is up to the database."""

    assignment: Assignment
    pod: Pod
    client_id: str
    estimate_seconds: float


@dataclass(frozen=True)
class _Lane:
    project_id: str
    kind: str
    base_model: str | None
    needs: Needs


class Claimer:
    """Claims for one process, in three steps: read what waits, choose, take what was chosen.

    ``client_id`` says under which name this process speaks to a pod. What a pass costs depends on what it claims and on
    the lanes in which work waits, not on how many jobs wait, have finished, or how many pods there are.
    """

    def __init__(
        self, fleet: Fleet, owner: str, client_id: Callable[[PodAddress], str], policy: Policy, age_bound: float
    ) -> None:
        self._fleet = fleet
        self._owner = owner
        self._client_id = client_id
        self._policy = policy
        self._age_bound = age_bound
        self._lanes: dict[str, _Lane] = {}
        self._next_lane = ""
        self._kept: Sequence[Waiting] = ()
        self._read_at = float("-inf")

    @property
    def kept(self) -> Sequence[Waiting]:
        """What the last look left over, as long as that is fresh, and enough to choose well from."""
        fresh = time.monotonic() - self._read_at < KEPT_SECONDS
        return self._kept if fresh and len(self._kept) >= KEPT_LEAST else ()

    def choose(self, waiting: Sequence[Waiting], now: float, most: int = BATCH) -> list[Chosen]:
        """Places for some of the waiting jobs, the others being kept for the next time; call it from the event loop."""
        offer = self._fleet.offer(waiting, most)
        assigned = assign(
            waiting,
            offer.pods,
            offer.loads,
            now,
            self._policy,
            age_bound=self._age_bound,
            work=offer.work,
            known=offer.known,
            copies=offer.copies,
            lacking=self._fleet.lacking,
            limit=most,
        )
        gone = {one.job_id for one in assigned}
        self._kept = [job for job in waiting if job.id not in gone]
        estimates = {job.id: job.estimate_seconds for job in waiting if job.id in gone}
        return [self._chosen(one, estimates[one.job_id]) for one in assigned]

    def _chosen(self, assignment: Assignment, estimate: float) -> Chosen:
        pod = self._fleet.pods[assignment.pod_id]
        client_id = self._client_id(PodAddress(pod.id, pod.address, pod.token, pod.kind))
        return Chosen(assignment, pod, client_id, estimate)

    # -- what waits ------------------------------------------------------------------------------------------------

    def candidates(self, c: Connection, now: float) -> list[Waiting]:
        """The next jobs of the lanes that a pod with room could work on."""
        self._read_at = time.monotonic()
        lanes = self._lanes_to_look_at(c)
        paused = project_rows.paused(c) if lanes else frozenset()
        found = []
        for lane_id in lanes:
            lane = self._lane(c, lane_id)
            if lane is None or lane.project_id in paused:
                continue
            if self._fleet.can_take(lane_id, lane.project_id, lane.needs):
                rows = job_rows.first_of_lane(c, lane_id, now, WINDOW)
                tried = attempt_rows.failed_on(c, [job_id for job_id, *_, claim_no in rows if claim_no])
                found += [self._waiting(lane_id, lane, row, tried.get(row[0], frozenset())) for row in rows]
        return found

    def _lanes_to_look_at(self, c: Connection) -> list[str]:
        """The lanes in which jobs wait; where they are many, the next ones in turn."""
        lanes = job_rows.lanes(c, self._next_lane, LANES_PER_PASS)
        if self._next_lane and len(lanes) < LANES_PER_PASS:
            known = set(lanes)
            lanes += [one for one in job_rows.lanes(c, "", LANES_PER_PASS - len(lanes)) if one not in known]
        self._next_lane = lanes[-1] if len(lanes) == LANES_PER_PASS else ""
        return lanes

    def _lane(self, c: Connection, lane_id: str) -> _Lane | None:
        known = self._lanes.get(lane_id)
        if known is None and (row := job_rows.lane(c, lane_id)) is not None:
            if len(self._lanes) >= LANES_KEPT:
                self._lanes.clear()
            needs = Needs.of({**row.needs, "lora_sha256": None}, row.base_model)
            known = self._lanes[lane_id] = _Lane(row.project_id, row.kind, row.base_model, needs)
        return known

    def _waiting(self, lane_id: str, lane: _Lane, row: job_rows.Candidate, tried: frozenset[str]) -> Waiting:
        job_id, priority, created_at, estimate, lora_sha256, _ = row
        return Waiting(
            job_id,
            lane.project_id,
            lane.kind,
            lane_id,
            lane.needs,
            lane.base_model,
            lora_sha256,
            priority,
            created_at,
            self._fleet.estimate(lane_id, estimate),
            tried,
        )

    # -- taking it -------------------------------------------------------------------------------------------------

    def take(self, c: Connection, chosen: Sequence[Chosen], lease_until: float, now: float) -> list[Claimed]:
        """Claim what is still to be had. The unique slots keep two processes from filling one place twice."""
        jobs = job_rows.queued_locked(c, [one.assignment.job_id for one in chosen])
        keys = pod_rows.still_open(c, sorted({one.pod.id for one in chosen}))
        numbers = attempt_rows.newest_numbers(c, [job.id for job in jobs.values() if job.claim_no])
        tries: dict[str, tuple[Job, Attempt, Pod]] = {}
        for one in chosen:
            job = jobs.get(one.assignment.job_id)
            if job is not None and keys.get(one.pod.id) == one.pod.key_hash:
                attempt = _attempt(job, one, 1 + numbers.get(job.id, 0), now)
                tries[attempt.id] = (job, attempt, one.pod)
        got = attempt_rows.take_slots(c, [attempt for _, attempt, _ in tries.values()])
        made = [one for attempt_id, one in tries.items() if attempt_id in got]
        held = job_rows.claim(c, [(job, attempt.placement) for job, attempt, _ in made], self._owner, lease_until)
        return [Claimed(job, attempt, pod) for job, (_, attempt, pod) in zip(held, made, strict=True)]

    def take_over(self, c: Connection, lease_until: float, now: float, except_for: Collection[str]) -> list[Claimed]:
        """Claim jobs whose owner fell silent, keeping their attempts."""
        jobs = job_rows.take_over(c, self._owner, lease_until, now, except_for, TAKEN_OVER_PER_PASS)
        if not jobs:
            return []
        attempts = attempt_rows.newest_of(c, jobs)
        pods = {pod.id: pod for pod in pod_rows.of_ids(c, {attempt.pod_id for attempt in attempts.values()})}
        return list(_resumed(jobs, attempts, pods))


def _resumed(jobs: Sequence[Job], attempts: dict[str, Attempt], pods: dict[str, Pod]) -> Iterator[Claimed]:
    for job in jobs:
        attempt = attempts.get(job.id)
        yield Claimed(job, attempt, pods.get(attempt.pod_id) if attempt else None, resumed=True)


def _attempt(job: Job, chosen: Chosen, number: int, now: float) -> Attempt:
    return Attempt(
        id=new_prompt_id(),
        project_id=job.project_id,
        job_id=job.id,
        number=number,
        pod_id=chosen.pod.id,
        client_id=chosen.client_id,
        status="created",
        placement=chosen.assignment.choice.as_placement(),
        base_model=job.base_model,
        lora_sha256=job.lora_sha256,
        created_at=now,
        slot=chosen.assignment.slot,
    )


def occupied(claimed: Sequence[Claimed], chosen: Sequence[Chosen]) -> list[Occupied]:
    """What the jobs just claimed occupy, with what placement expects of them."""
    estimates = {one.assignment.job_id: one.estimate_seconds for one in chosen}
    return [occupied_by(one.attempt, one.job, estimates[one.job.id]) for one in claimed if one.attempt is not None]


@dataclass(frozen=True)
class Late:
    """A job that no pod took before its deadline, the pods where it failed before, and its project."""

    job: Job
    failed_on: frozenset[str]
    project: Project | None


def overdue(c: Connection, now: float) -> list[Late]:
    """The next jobs that no pod took before their deadline."""
    late = job_rows.overdue(c, now, OVERDUE_PER_PASS)
    tried = attempt_rows.failed_on(c, [job.id for job in late])
    projects = {project_id: project_rows.get(c, project_id) for project_id in {job.project_id for job in late}}
    return [Late(job, tried.get(job.id, frozenset()), projects[job.project_id]) for job in late]


def fail_overdue(c: Connection, late: Sequence[tuple[Job, Mapping[str, Any]]], hooks: Hooks, now: float) -> None:
    """Fail such jobs, each in the words of its placement; one that somebody took in the meantime goes on."""
    for job, placement in late:
        current = job_rows.get_locked(c, job.project_id, job.id)
        if current is not None and current.status == QUEUED:
            told = job_rows.change(c, current, placement=dict(placement))
            detail = f"No pod took this job before its deadline. {placement['reason']}"
            fail(c, told, "no_pod_in_time", detail, hooks, now)
