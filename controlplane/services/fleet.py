"""The fleet as one process sees it: pods and what they have in hand, kept in memory. Advice; the database decides."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from sqlalchemy import Connection

from controlplane.db import attempts as attempt_rows
from controlplane.db import pods as pod_rows
from controlplane.db.attempts import Occupied
from controlplane.db.database import Database
from controlplane.domain.jobs import Attempt, Job
from controlplane.domain.placement import TRAIN, Resident, Share, Waiting, has_place_behind, takes_more
from controlplane.domain.pods import CAPACITY, LOST, Live, Load, Needs, Pod, explain, is_open, lacks, serves
from controlplane.ports import Clock
from controlplane.services.durations import Outlook
from controlplane.services.events import Hints
from controlplane.settings import Settings

HINT_SECONDS = 0.1
"""However often pods change, they are not read again sooner than this after the last time."""
SPARE_PODS = 16
"""Of the idle pods, and of those with room behind running work, so many more are offered than there are jobs."""
FORGET_SECONDS = 60.0
"""After this, what a project got from the pods counts half in whose turn it is."""
PACE_WEIGHT = 0.3
MOST_UNUSUAL = 8.0
"""A job of a lane is not taken for more, or less, than so many times the usual one."""
LANES_KEPT = 4096


@dataclass(frozen=True)
class Offer:
    """The pods that some lanes may be given places on, and what placement wants to know of the whole fleet."""

    pods: Sequence[Pod]
    loads: Mapping[str, Load]
    known: Sequence[Pod]
    copies: Mapping[Resident, int]
    work: Mapping[Share, float]


@dataclass(frozen=True)
class _Seen:
    """What one look at the database brought: marks of all pods, the changed ones in full, and what is live."""

    marks: Mapping[str, tuple[Any, ...]]
    pods: Sequence[Pod]
    last: Mapping[str, Load]
    live: set[str]
    occupied: Sequence[Occupied]


class Fleet:
    """Pods and loads of all projects. Only the event loop changes it; threads may ask ``can_take`` and ``explain``.

    What this process gives and ends it notes at once; what others do it learns by ``refresh``, when told of it or at
    most every ``poll_seconds``. No step but the refresh costs more with more pods.
    """

    def __init__(self, db: Database, clock: Clock, hints: Hints, settings: Settings) -> None:
        self._db = db
        self._clock = clock
        self._hints = hints
        self._settings = settings
        self._lock = asyncio.Lock()
        self._looked_at = float("-inf")
        self._heard = -1
        self._pods: dict[str, Pod] = {}
        self._marks: dict[str, tuple[Any, ...]] = {}
        self._known: tuple[Pod, ...] = ()
        self._loads: dict[str, Load] = {}
        self._pod_of: dict[str, str] = {}
        self._idle: dict[str, None] = {}
        self._roomy: dict[str, None] = {}
        self._stacked: dict[str, None] = {}
        self._warm: dict[Resident, dict[str, None]] = {}
        self._copies: Counter[Resident] = Counter()
        self._holders: dict[str, dict[str, None]] = {}
        self._lacking: dict[str, dict[str, str]] = {}
        self._spent: dict[Share, tuple[float, float]] = {}
        self._pace: dict[str, tuple[float, float]] = {}
        self._given: dict[str, Occupied] = {}
        self._ended: set[str] = set()
        self._changes = 0
        self._explained: dict[tuple[str, frozenset[str]], Mapping[str, Any]] = {}
        self._explained_at = -1

    @property
    def pods(self) -> Mapping[str, Pod]:
        """Every pod by its id, lost ones too."""
        return self._pods

    @property
    def has_room(self) -> bool:
        """Whether any pod might be given something."""
        return bool(self._idle or self._roomy)

    @property
    def stacked(self) -> Iterator[Load]:
        """The loads of the pods on which prompts wait behind others."""
        return (self._loads[pod_id] for pod_id in self._stacked)

    def seconds_fresh(self) -> float:
        """After how long ``refresh`` will look again."""
        wanted = HINT_SECONDS if self._hints.count(Hints.PODS) != self._heard else self._settings.poll_seconds
        return max(0.0, self._looked_at + wanted - time.monotonic())

    def load(self, pod_id: str) -> Load:
        """What a pod has in hand."""
        return self._loads.get(pod_id) or Load(pod_id)

    # -- learning what others do -----------------------------------------------------------------------------------

    async def refresh(self, at_once: bool = False) -> None:
        """Look at the database where somebody told of pods, or where the last look is too long ago."""
        if not at_once and self.seconds_fresh() > 0:
            return
        async with self._lock:
            if not at_once and self.seconds_fresh() > 0:
                return  # somebody else has looked while we waited
            heard = self._hints.count(Hints.PODS)
            self._given, self._ended = {}, set()
            self._take_note(await self._db.read(_look, dict(self._marks), set(self._pod_of)))
            self._heard, self._looked_at = heard, time.monotonic()

    def _take_note(self, seen: _Seen) -> None:
        for pod_id in [pod_id for pod_id in self._pods if pod_id not in seen.marks]:
            self._drop(pod_id)
        for pod in seen.pods:
            before = self._pods.get(pod.id)
            self._pods[pod.id] = pod
            self._note_disk(pod.id, before.loras if before is not None else (), pod.loras)
            if before is None or before.key_hash != pod.key_hash:
                self._lacking.pop(pod.id, None)
            if pod.id not in self._loads:
                self._set_load(seen.last.get(pod.id) or Load(pod.id))
            self._sort_in(pod.id)
        self._marks = dict(seen.marks)
        if seen.pods or len(self._known) > len(self._pods):
            self._known = tuple(pod for pod in self._pods.values() if pod.state != LOST)
        # What was given or ended while we looked may be missing there, or be there still.
        for attempt_id in [one for one in self._pod_of if one not in seen.live and one not in self._given]:
            self._remove(attempt_id)
        for occupied in seen.occupied:
            if occupied.live.attempt_id not in self._ended and occupied.live.attempt_id not in self._pod_of:
                self._add(occupied)

    # -- noting what we do -----------------------------------------------------------------------------------------

    def gave(self, occupied: Iterable[Occupied]) -> None:
        """This process has given pods these attempts."""
        for one in occupied:
            self._given[one.live.attempt_id] = one
            self._add(one)

    def ended(self, attempt_id: str, lane: str = "", estimate: float = 0.0) -> None:
        """An attempt of this process occupies its pod no more; with a lane and an estimate its pace is learned from."""
        pod_id = self._pod_of.get(attempt_id)
        if pod_id is None:
            return
        load = self.load(pod_id)
        first = load.live[0]
        if lane and estimate > 0 and first.attempt_id == attempt_id:
            took = max(0.0, self._clock.now() - max(first.since, load.idle_since))
            self._learn(lane, estimate, took)
        self._ended.add(attempt_id)
        self._remove(attempt_id)

    def estimate(self, lane: str, told: float) -> float:
        """How long a job will take: what was expected of it, corrected by what jobs of its lane took.

        What jobs are expected to take may be far from what it was for those that wait since before: then only what
        others took counts, within bounds.
        """
        pace = self._pace.get(lane)
        if pace is None:
            return told
        usual, took = pace
        return took * min(max(told / usual, 1.0 / MOST_UNUSUAL), MOST_UNUSUAL)

    def _learn(self, lane: str, told: float, took: float) -> None:
        if len(self._pace) >= LANES_KEPT:
            self._pace.clear()
        usual, before = self._pace.get(lane, (told, told))
        self._pace[lane] = (usual + PACE_WEIGHT * (told - usual), before + PACE_WEIGHT * (took - before))

    def _add(self, occupied: Occupied) -> None:
        live = occupied.live
        if live.attempt_id in self._pod_of:
            return
        load = self.load(occupied.pod_id)
        self._pod_of[live.attempt_id] = occupied.pod_id
        self._spend((live.project_id, live.kind == TRAIN), live.estimate_seconds)
        resident = {"base_model": occupied.base_model, "lora_sha256": occupied.lora_sha256}
        self._set_load(replace(load, live=(*load.live, live), **resident))  # type: ignore[arg-type]
        self._sort_in(occupied.pod_id)

    def _remove(self, attempt_id: str) -> None:
        pod_id = self._pod_of.pop(attempt_id)
        load = self.load(pod_id)
        left = tuple(one for one in load.live if one.attempt_id != attempt_id)
        self._set_load(replace(load, live=left, idle_since=self._clock.now()))
        self._sort_in(pod_id)

    def _drop(self, pod_id: str) -> None:
        self._note_disk(pod_id, self._pods[pod_id].loras, ())
        del self._pods[pod_id]
        self._lacking.pop(pod_id, None)
        self._sort_in(pod_id)

    def _set_load(self, load: Load) -> None:
        before = self._loads.get(load.pod_id)
        if before is not None:
            self._copies[before.base_model, before.lora_sha256] -= 1
            if not self._copies[before.base_model, before.lora_sha256]:
                del self._copies[before.base_model, before.lora_sha256]
            self._cool((before.base_model, before.lora_sha256), load.pod_id)
        self._copies[load.base_model, load.lora_sha256] += 1
        self._loads[load.pod_id] = load
        if len(load.live) > CAPACITY:
            self._stacked[load.pod_id] = None
        else:
            self._stacked.pop(load.pod_id, None)

    def _sort_in(self, pod_id: str) -> None:
        """Keep the pods that have room: the idle ones, longest idle first, and those with room behind their work."""
        self._changes += 1
        pod, load = self._pods.get(pod_id), self.load(pod_id)
        resident = (load.base_model, load.lora_sha256)
        opened = pod is not None and is_open(pod)
        for shelf, fits in ((self._idle, not load.live), (self._roomy, has_place_behind(load))):
            if opened and fits:
                shelf.setdefault(pod_id)
            else:
                shelf.pop(pod_id, None)
        if pod_id in self._idle or pod_id in self._roomy:
            self._warm.setdefault(resident, {})[pod_id] = None
        else:
            self._cool(resident, pod_id)

    def _note_disk(self, pod_id: str, before: Sequence[str], now: Sequence[str]) -> None:
        for sha256 in set(before) - set(now):
            holders = self._holders.get(sha256, {})
            holders.pop(pod_id, None)
            if not holders:
                self._holders.pop(sha256, None)
        for sha256 in set(now) - set(before):
            self._holders.setdefault(sha256, {})[pod_id] = None

    def _cool(self, resident: Resident, pod_id: str) -> None:
        warm = self._warm.get(resident, {})
        warm.pop(pod_id, None)
        if not warm:
            self._warm.pop(resident, None)

    # -- whose turn it is ------------------------------------------------------------------------------------------

    def _spend(self, share: Share, seconds: float) -> None:
        now = self._clock.now()
        self._spent[share] = (self._faded(share, now) + seconds, now)

    def _faded(self, share: Share, now: float) -> float:
        spent, at = self._spent.get(share, (0.0, now))
        return float(spent * 0.5 ** (max(0.0, now - at) / FORGET_SECONDS))

    # -- answering -------------------------------------------------------------------------------------------------

    def lacking(self, job: Waiting, pod: Pod) -> str:
        """What a pod misses for a lane, in words, worked out once."""
        return self._lacks(job.lane, job.needs, pod)

    def _lacks(self, lane: str, needs: Needs, pod: Pod) -> str:
        of_pod = self._lacking.setdefault(pod.id, {})
        told = of_pod.get(lane)
        if told is None:
            if len(of_pod) >= LANES_KEPT:
                of_pod.clear()
            told = of_pod[lane] = lacks(needs, pod)
        return told

    def can_take(self, lane: str, project_id: str, needs: Needs) -> bool:
        """Whether a pod with room could do the work of a lane."""
        return next(self._able(lane, project_id, needs, chain(tuple(self._idle), tuple(self._roomy))), None) is not None

    def offer(self, waiting: Sequence[Waiting], most: int) -> Offer:
        """What may be given to these jobs: for each lane the pods idle longest, and those that are warm for a job."""
        now = self._clock.now()
        lanes = {job.lane: job for job in waiting}
        offered = min(most, len(waiting)) + SPARE_PODS
        pods: dict[str, Pod] = {}
        for job in lanes.values():
            roomy = (pod_id for pod_id in self._roomy if takes_more(self.load(pod_id), now))
            for shelf in (self._idle, roomy):
                able = self._able(job.lane, job.project_id, job.needs, shelf)
                pods.update((pod.id, pod) for pod in islice(able, offered))
        self._add_warm(pods, waiting, offered)
        work = {share: self._faded(share, now) for share in {job.share for job in waiting}}
        loads = {pod_id: self.load(pod_id) for pod_id in pods}
        return Offer(tuple(pods.values()), loads, self._known, self._copies, work)

    def _add_warm(self, pods: dict[str, Pod], waiting: Sequence[Waiting], most: int) -> None:
        """Add pods that have what the next jobs want in memory, or on their disk; ``most`` for each share."""
        found: Counter[Share] = Counter()
        looked_for: set[Resident] = set()
        for job in waiting:
            resident = (job.base_model, job.lora_sha256)
            if resident in looked_for or found[job.share] >= most:
                continue
            looked_for.add(resident)
            on_disk = (pod_id for pod_id in self._holders.get(job.lora_sha256 or "", ()) if pod_id in self._idle)
            for pod_id in chain(islice(self._warm.get(resident, ()), most), islice(on_disk, 1)):
                pods[pod_id] = self._pods[pod_id]
                found[job.share] += 1

    def _able(self, lane: str, project_id: str, needs: Needs, pod_ids: Iterable[str]) -> Iterator[Pod]:
        for pod_id in pod_ids:
            pod = self._pods.get(pod_id)
            if pod is not None and serves(pod, project_id) and not self._lacks(lane, needs, pod):
                yield pod

    def idle_for(self, job: Job, avoid: Collection[str]) -> Pod | None:
        """An idle pod that could do a job."""
        if len(self._idle) <= len(avoid) and not self._idle.keys() - set(avoid):
            return None
        able = self._able(job.lane, job.project_id, Needs.of(job.needs, job.base_model), tuple(self._idle))
        return next((pod for pod in able if pod.id not in avoid), None)

    def outlook(self, job: Job) -> Outlook | None:
        """How soon the pods could turn to a job, from what is known already; None where nobody has looked at them."""
        if self._heard < 0:
            return None
        now, needs = self._clock.now(), Needs.of(job.needs, job.base_model)
        able = self._able(job.lane, job.project_id, needs, [pod.id for pod in self._known if is_open(pod)])
        rests = [self.load(pod.id).rest(now) for pod in able]
        return Outlook(len(rests), sum(rests), min(rests, default=0.0))

    def explain(self, job: Job, failed_on: Collection[str] = ()) -> Mapping[str, Any] | None:
        """Why a waiting job has no pod, from what is known already: the JSON shown as its ``placement``.

        None where nobody has looked at the pods yet.
        """
        if self._heard < 0:
            return None
        if self._explained_at != self._changes:
            self._explained, self._explained_at = {}, self._changes
        key = (job.lane or job.id, frozenset(failed_on))
        told = self._explained.get(key)
        if told is None:
            pods = [pod for pod in self._known if serves(pod, job.project_id)]
            told = explain(Needs.of(job.needs, job.base_model), pods, self._loads, key[1]).as_placement()
            self._explained[key] = told
        return told


def _look(c: Connection, marks: Mapping[str, tuple[Any, ...]], known_live: set[str]) -> _Seen:
    seen = pod_rows.marks(c)
    changed = pod_rows.of_ids(c, [pod_id for pod_id, mark in seen.items() if marks.get(pod_id) != mark])
    last = {pod.id: attempt_rows.last_load(c, pod.id) for pod in changed if pod.id not in marks}
    live = attempt_rows.live(c)
    return _Seen(seen, changed, last, live, attempt_rows.occupying(c, live - known_live))


def occupied_by(attempt: Attempt, job: Job, estimate: float) -> Occupied:
    """What an attempt that was just made occupies."""
    live = Live(attempt.id, job.id, job.project_id, attempt.slot, job.kind, estimate, attempt.created_at)
    return Occupied(live, attempt.pod_id, job.base_model, job.lora_sha256)
