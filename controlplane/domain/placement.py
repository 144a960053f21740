"""Placement: which waiting job goes to which pod next, as pure functions of what waits and what the pods are doing."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from controlplane.domain.pods import (
    CAPACITY,
    PREFETCH_DEPTH,
    SHOWN_PODS,
    Choice,
    Live,
    Load,
    Needs,
    Pod,
    is_open,
    lacks,
    serves,
    verdict,
    warmth,
)

Policy = Literal["switch_cost", "round_robin"]

AGE_BOUND_SECONDS = 60.0
PREFETCH_REST_SECONDS = 30.0
"""A prompt may wait on a pod only while that has less work than this left, by estimate."""
SHORT_SECONDS = 1.0
"""Several prompts may wait on one pod only while they need less than this together."""
COMPARED_PODS = 64
"""A job that no pod is warm for compares so many of those that could take it, longest idle first."""
SHOWN_RIVALS = 3
"""In a fleet too large to name every pod, so many of those that were free as well."""
TRAIN = "train"

Resident = tuple[str | None, str | None]
"""A base model and a LoRA, as the newest attempt on a pod left them in its memory."""

Share = tuple[str, bool]
"""What fairness weighs: a project, and whether it is its trainings; they seldom want the pods that pictures want."""


@dataclass(frozen=True)
class Waiting:
    """A job that waits for a pod, as far as placement looks at it.

    ``needs`` may leave the LoRA out, so that all jobs of a lane share one; ``tried`` names the pods where the job
    failed before.
    """

    id: str
    project_id: str
    kind: str
    lane: str
    needs: Needs
    base_model: str | None
    lora_sha256: str | None
    priority: int
    created_at: float
    estimate_seconds: float
    tried: frozenset[str] = frozenset()

    @property
    def share(self) -> Share:
        """Whose turn it is when this job gets a pod."""
        return self.project_id, self.kind == TRAIN


@dataclass(frozen=True)
class Assignment:
    """One job's place: slot 0 of a pod runs it at once, in a further slot it waits there."""

    job_id: str
    pod_id: str
    slot: int
    choice: Choice


Lacking = Callable[[Waiting, Pod], str]
"""What a pod misses for a job, in words; empty where it misses nothing."""


def lane_of(project_id: str, kind: str, needs: Mapping[str, Any], base_model: str | None) -> str:
    """A short digest of all that a job asks of a pod but its LoRA: what one job of a lane can use, all can."""
    asked = {name: value for name, value in needs.items() if name != "lora_sha256"}
    told = json.dumps([project_id, kind, asked, base_model], sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(told.encode(), digest_size=12).hexdigest()


def lacking(job: Waiting, pod: Pod) -> str:
    """What a pod misses for a job, in words; empty where it misses nothing."""
    return lacks(job.needs, pod)


def has_place_behind(load: Load) -> bool:
    """Whether a prompt may wait behind what a pod has, however long that takes: never behind a training."""
    behind = len(load.live) - CAPACITY
    if behind < 0 or behind >= PREFETCH_DEPTH or any(one.kind == TRAIN for one in load.live):
        return False
    return behind == 0 or _waiting_seconds(load) < SHORT_SECONDS


def takes_more(load: Load, now: float) -> bool:
    """Whether any prompt at all may be sent to a pod to wait there: not where it would wait long."""
    return has_place_behind(load) and load.rest(now) < PREFETCH_REST_SECONDS


def may_wait_behind(load: Load, job: Waiting, now: float) -> bool:
    """Whether this job may wait there: one prompt does, more only where all that wait are over in a moment."""
    if job.kind == TRAIN or not takes_more(load, now):
        return False
    return len(load.live) == CAPACITY or _waiting_seconds(load) + job.estimate_seconds < SHORT_SECONDS


def _waiting_seconds(load: Load) -> float:
    return sum(one.estimate_seconds for one in load.live[CAPACITY:])


def running_work(loads: Mapping[str, Load]) -> Counter[Share]:
    """Seconds of work, by estimate, that are in the pods' hands for each share."""
    work: Counter[Share] = Counter()
    for load in loads.values():
        for one in load.live:
            work[one.project_id, one.kind == TRAIN] += one.estimate_seconds  # type: ignore[assignment]
    return work


def assign(
    waiting: Sequence[Waiting],
    pods: Sequence[Pod],
    loads: Mapping[str, Load],
    now: float,
    policy: Policy = "switch_cost",
    *,
    age_bound: float = AGE_BOUND_SECONDS,
    work: Mapping[Share, float] | None = None,
    known: Sequence[Pod] | None = None,
    copies: Mapping[Resident, int] | None = None,
    lacking: Lacking = lacking,
    limit: int | None = None,
) -> list[Assignment]:
    """Give waiting jobs to pods, idle pods first, then places behind short work; at most ``limit`` of them.

    The project with the least ``work`` (default: what runs) has the next turn. Inside it priority counts, then age;
    but under ``switch_cost`` a pod takes the job whose base model and LoRA it has resident before an older one that
    came less than ``age_bound`` seconds earlier. So no job is overtaken by one that came so much later, however long
    the queue. ``round_robin`` gives every job in turn to the pod that is idle longest.

    ``known`` and ``copies`` tell of the whole fleet where ``pods`` are only those that may have room: all pods, and
    on how many of them a (base model, LoRA) is resident. Jobs and pods may come in any order.
    """
    fleet = _Fleet(known if known is not None else pods, copies if copies is not None else resident_copies(loads))
    board = _Board(waiting, pods, loads, now, policy == "round_robin", age_bound, fleet, lacking)
    work = running_work(loads) if work is None else work
    most = len(waiting) if limit is None else limit
    made: list[Assignment] = []
    for behind in (False, True):
        if len(made) == most or not any(board.queues.values()):
            break
        board.open_pods(behind)
        made += islice(_turns(board, dict(work)), most - len(made))
    return made


def resident_copies(loads: Mapping[str, Load]) -> Counter[Resident]:
    """On how many pods each (base model, LoRA) is resident."""
    return Counter((load.base_model, load.lora_sha256) for load in loads.values())


@dataclass(frozen=True)
class _Fleet:
    known: Sequence[Pod]
    copies: Mapping[Resident, int]


def _turns(board: _Board, work: dict[Share, float]) -> Iterator[Assignment]:
    """One assignment after another, the project with the least work first."""
    turns = [(work.get(share, 0.0), queue[0].created_at, share) for share, queue in board.queues.items() if queue]
    heapq.heapify(turns)
    while turns and board.has_room:
        spent, _, share = heapq.heappop(turns)
        queue = board.queues[share]
        found = board.pick(queue)
        if found is None:
            continue
        job, pod = found
        queue.remove(job)
        yield board.give(job, pod)
        if queue:
            heapq.heappush(turns, (spent + max(job.estimate_seconds, 0.01), queue[0].created_at, share))


class _Board:
    """What is still to be given away while assignments are made. ``queues`` holds each share's jobs, next one first."""

    def __init__(
        self,
        waiting: Sequence[Waiting],
        pods: Sequence[Pod],
        loads: Mapping[str, Load],
        now: float,
        plain: bool,
        age_bound: float,
        fleet: _Fleet,
        lacking: Lacking,
    ) -> None:
        self._pods = pods
        self._loads = dict(loads)
        self._now = now
        self._plain = plain
        self._age_bound = age_bound
        self._known = fleet.known
        self._copies, self._moved = fleet.copies, Counter[Resident]()
        self._lacking = lacking
        self._behind = False
        self._open: dict[str, Pod] = {}
        self._by_lane: dict[str, dict[str, Pod]] = {}
        self._warm: dict[Resident, dict[str, Pod]] = {}
        self._wanted = Counter((job.base_model, job.lora_sha256) for job in waiting)
        self.queues: dict[Share, list[Waiting]] = {}
        for job in sorted(waiting, key=lambda job: (-job.priority, job.created_at, job.id)):
            self.queues.setdefault(job.share, []).append(job)

    @property
    def has_room(self) -> bool:
        """Whether any pod may be given something."""
        return bool(self._open)

    def open_pods(self, behind: bool) -> None:
        """Offer the idle pods, longest idle first, or places ``behind`` running work, shortest first."""
        self._behind = behind
        offered = []
        for pod in self._pods:
            load = self._load(pod)
            if is_open(pod) and (takes_more(load, self._now) if behind else not load.live):
                offered.append((load.rest(self._now) if behind else load.idle_since, pod.id, pod))
        self._by_lane, self._warm, self._open = {}, {}, {pod_id: pod for _, pod_id, pod in sorted(offered)}
        for pod in self._open.values():
            self._warm.setdefault(self._resident(pod), {})[pod.id] = pod

    def pick(self, queue: Sequence[Waiting]) -> tuple[Waiting, Pod] | None:
        """The next job of a queue and its pod: the first that a pod is warm for, else the first; None without room.

        Jobs that nothing open can do are passed over; no job of lower priority, and none that came the age bound
        later than the first one, is looked at.
        """
        near: dict[tuple[str, str | None, str | None], Waiting] = {}
        wanted = Counter[Resident]()
        first: Waiting | None = None
        for job in queue:
            if first is not None and self._is_beyond(first, job):
                break
            wanted[job.base_model, job.lora_sha256] += 1
            key = (job.lane, job.base_model, job.lora_sha256)
            if key in near and not job.tried:
                continue  # an older job wants the same
            pod = self._first_room(job)
            if pod is None:
                continue
            if self._plain:
                return job, pod
            warm = self._warm_pod(job)
            if warm is not None:
                return job, warm
            first = first or job
            near.setdefault(key, job)
        if not near:
            return None
        # No base model is loaded while another one's work is there; one LoRA for as many jobs as may have it now;
        # of equally many the oldest.
        bases = {self._resident(pod)[0] for pod in self._open.values()}

        def gain(job: Waiting) -> tuple[bool, float]:
            return job.base_model in bases, self._worth((job.base_model, job.lora_sha256), wanted)

        job = max(near.values(), key=gain)
        return job, self._least_costly(job)

    def give(self, job: Waiting, pod: Pod) -> Assignment:
        """Take note that a pod has a job more."""
        load = self._load(pod)
        choice = self._choice(job, pod, load)
        taken = {one.slot for one in load.live}
        slot = next(number for number in range(len(taken) + 1) if number not in taken)
        self._close(pod)
        live = Live("", job.id, job.project_id, slot, job.kind, job.estimate_seconds, self._now)
        given = replace(load, live=(*load.live, live), base_model=job.base_model, lora_sha256=job.lora_sha256)
        self._loads[pod.id] = given
        self._wanted[job.base_model, job.lora_sha256] -= 1
        self._moved[load.base_model, load.lora_sha256] -= 1
        self._moved[job.base_model, job.lora_sha256] += 1
        if self._behind and takes_more(given, self._now):
            self._reopen(pod)
        return Assignment(job.id, pod.id, slot, choice)

    def _worth(self, resident: Resident, wanted: Mapping[Resident, int]) -> float:
        """What it is worth that one more pod has this: how many jobs want it, by the square of how many pods have it.

        The square spreads what is resident over the fleet, so that most jobs find a warm pod.
        """
        pods = 1 + max(0, self._copies.get(resident, 0) + self._moved[resident])
        return wanted.get(resident, 0) / pods**2

    def _is_beyond(self, first: Waiting, job: Waiting) -> bool:
        return job.priority != first.priority or job.created_at > first.created_at + self._age_bound

    def _room(self, job: Waiting) -> Iterator[Pod]:
        """The open pods that may be given this job, best kind of turn first."""
        avoided = job.tried if job.tried and self._has_other(job) else frozenset()
        for pod in self._able(job).values():
            if pod.id not in avoided and (not self._behind or may_wait_behind(self._load(pod), job, self._now)):
                yield pod

    def _first_room(self, job: Waiting) -> Pod | None:
        if job.tried or self._behind:
            return next(self._room(job), None)
        return next(iter(self._able(job).values()), None)

    def _able(self, job: Waiting) -> dict[str, Pod]:
        """The open pods that have all that jobs of this lane need."""
        able = self._by_lane.get(job.lane)
        if able is None:
            able = {pod.id: pod for pod in self._open.values() if self._can(job, pod)}
            self._by_lane[job.lane] = able
        return able

    def _can(self, job: Waiting, pod: Pod) -> bool:
        return serves(pod, job.project_id) and not self._lacking(job, pod)

    def _has_other(self, job: Waiting) -> bool:
        """Whether a pod is known, busy as it may be, that could do the job and did not fail at it yet."""
        return any(is_open(pod) and pod.id not in job.tried and self._can(job, pod) for pod in self._known)

    def _warm_pod(self, job: Waiting) -> Pod | None:
        warm = self._warm.get((job.base_model, job.lora_sha256))
        if not warm or (job.base_model is None and job.lora_sha256 is None):
            return None
        if not job.tried and not self._behind:
            able = self._able(job)
            return next((pod for pod in warm.values() if pod.id in able), None)
        return next((pod for pod in self._room(job) if pod.id in warm), None)

    def _least_costly(self, job: Waiting) -> Pod:
        """Where it costs least to load what is missing, and where what is thrown out is wanted least."""
        return min(islice(self._room(job), COMPARED_PODS), key=lambda pod: self._cost(job, pod))

    def _cost(self, job: Waiting, pod: Pod) -> tuple[bool, bool, float]:
        resident = self._resident(pod)
        base_cold = job.base_model is not None and resident[0] != job.base_model
        not_on_disk = job.lora_sha256 is not None and job.lora_sha256 not in pod.loras
        return base_cold, not_on_disk, self._worth(resident, self._wanted)

    def _load(self, pod: Pod) -> Load:
        return self._loads.get(pod.id) or Load(pod.id)

    def _resident(self, pod: Pod) -> Resident:
        load = self._loads.get(pod.id)
        return (load.base_model, load.lora_sha256) if load is not None else (None, None)

    def _close(self, pod: Pod) -> None:
        self._open.pop(pod.id, None)
        for able in self._by_lane.values():
            able.pop(pod.id, None)
        self._warm.get(self._resident(pod), {}).pop(pod.id, None)

    def _reopen(self, pod: Pod) -> None:
        self._open[pod.id] = pod
        self._by_lane = {}
        self._warm.setdefault(self._resident(pod), {})[pod.id] = pod

    def _choice(self, job: Waiting, pod: Pod, load: Load) -> Choice:
        """The decision in words: the chosen pod first in a fleet that is too large to name every pod."""
        needs = replace(job.needs, base_model=job.base_model, lora_sha256=job.lora_sha256)
        shown = self._known
        if len(shown) > SHOWN_PODS:
            others = islice((one for one in self._able(job).values() if one.id != pod.id), SHOWN_RIVALS)
            shown = [pod, *others]
        told = []
        for one in shown:
            missing = self._lacking(job, one)
            told.append({"pod": one.id, "verdict": verdict(needs, one, self._loads.get(one.id), missing)})
        return Choice(pod.id, self._reason(needs, pod, load), tuple(told), max(0, len(self._known) - len(shown)))

    def _reason(self, needs: Needs, pod: Pod, load: Load) -> str:
        if not load.live:
            return verdict(needs, pod, load, "")
        jobs = f"{len(load.live)} job{'s' if len(load.live) > 1 else ''}"
        return f"next behind {jobs} with about {load.rest(self._now):.0f} s left; {warmth(needs, pod, load)}"
