"""Rentals: pods that we rent from a provider, what they cost, and the rules that keep provider and books alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

REQUESTED = "requested"
BOOTING = "booting"
JOINED = "joined"
ENDING = "ending"
ENDED = "ended"
FAILED = "failed"

OPEN = (REQUESTED, BOOTING, JOINED, ENDING)
"""States in which a rental may cost money."""


@dataclass(frozen=True)
class Rental:
    """One pod that we asked a provider for, as our books have it. Times are epoch seconds, prices US dollars."""

    id: str
    project_id: str
    provider: str
    name: str
    gpu: str
    state: str
    request: Mapping[str, Any]
    created_at: float
    updated_at: float
    provider_id: str | None = None
    price_per_hour: float | None = None
    reason: str = ""
    pod_id: str | None = None
    ended_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether it may cost money."""
        return self.state in OPEN

    @property
    def max_hours(self) -> float | None:
        """How long it may live, None for as long as it is wanted."""
        hours = self.request.get("max_hours")
        return None if hours is None else float(hours)

    def cost(self, now: float) -> float:
        """What it has cost so far by our own clock: hours since it was asked for, at its price."""
        if self.provider_id is None or self.price_per_hour is None:
            return 0.0
        end = now if self.ended_at is None else self.ended_at
        return max(end - self.created_at, 0.0) / 3600.0 * self.price_per_hour


@dataclass(frozen=True)
class RentedPod:
    """A pod as its provider tells it. ``told`` is the provider's own word for its status; prices are US dollars."""

    id: str
    name: str
    status: Literal["starting", "running", "stopped", "gone"]
    told: str = ""
    gpu: str = ""
    price_per_hour: float | None = None
    created_at: float | None = None


@dataclass(frozen=True)
class Offer:
    """One kind of GPU that a provider rents out; ``obstacle`` says why it does not come into question, if so.

    ``price_per_hour`` (US dollars) is for the whole pod, ``memory_gb`` for one of its GPUs.
    """

    gpu: str
    name: str
    memory_gb: int
    price_per_hour: float
    stock: Literal["none", "low", "medium", "high"]
    obstacle: str = ""


@dataclass(frozen=True)
class PodWish:
    """What kind of pod is wanted. ``gpus`` are the provider's ids, best first; none means any that fits."""

    min_memory_gb: int = 24
    gpus: tuple[str, ...] = ()
    gpu_count: int = 1
    cloud: str = "SECURE"
    data_centres: tuple[str, ...] = ()
    min_cuda: str = ""


@dataclass(frozen=True)
class PodOrder:
    """What a provider is to start. ``env`` may hold secrets; sizes are GB.

    ``volume_gb`` is a disk that survives restarts, ``volume_id`` a network volume of the provider, both at
    ``volume_path``; only one of them may be given.
    """

    name: str
    image: str
    wish: PodWish
    port: int
    env: Mapping[str, str] = field(repr=False)
    disk_gb: int = 50
    volume_gb: int = 0
    volume_id: str = ""
    volume_path: str = "/workspace"
    registry: str = ""


@dataclass(frozen=True)
class Limits:
    """How long things may take, seconds.

    ``grace``: how young a pod is left alone while another process may still be writing it into the books. ``asking``:
    after this a rental without an answer is given up; longer than any process goes on asking. ``join``: from the
    request to the pod's registration. ``silence``: without a heartbeat of a pod that had joined. ``since``, epoch
    seconds: when this process began to listen; that nothing was heard before is not the pods' fault.
    """

    grace: float
    asking: float
    join: float
    silence: float
    since: float = 0.0


@dataclass(frozen=True)
class Step:
    """One thing that brings provider and books together.

    ``adopt``: the pod is the one this rental asked for, write it down. ``end``: terminate the pod, and the rental with
    it where there is one. ``gone``: the provider no longer has the pod. ``give_up``: nothing came of the request.
    """

    kind: Literal["adopt", "end", "gone", "give_up"]
    reason: str
    pod: str | None = None
    rental: str | None = None
    name: str = ""


def tag(installation: str, rental_id: str = "") -> str:
    """The name of a rental's pod at the provider; without a rental, how the names of all our pods begin.

    An installation's id has no hyphen, so that no tag is the beginning of another's.
    """
    return f"troupe-{installation}-{rental_id}"


def tagged_rental(installation: str, name: str) -> str | None:
    """The rental id in a pod's name, None where the pod does not carry this installation's tag."""
    prefix = tag(installation)
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def may_spend(open_rentals: Sequence[Rental], price: float, max_pods: int, max_price: float) -> str:
    """Why one more pod at this price per hour would be too much, in words; empty where it is not."""
    if len(open_rentals) >= max_pods:
        return f"{len(open_rentals)} pods are rented and TROUPE_MAX_PODS is {max_pods}"
    spent = sum(rental.price_per_hour or 0.0 for rental in open_rentals)
    if spent + price > max_price + 1e-9:
        return (
            f"{spent:.2f} dollars per hour are spent already, {price:.2f} more would exceed "
            f"TROUPE_MAX_PRICE_PER_HOUR ({max_price:.2f})"
        )
    return ""


def plan(
    pods: Sequence[RentedPod],
    books: Sequence[Rental],
    heard: Mapping[str, float],
    installation: str,
    now: float,
    limits: Limits,
) -> tuple[Step, ...]:
    """What to do so that provider and books agree; pure.

    ``pods`` must have been listed before ``books`` was read: then every request behind a listed pod is in the books.
    ``books`` are all open rentals and those, open or not, that the pods name. ``heard``: last heartbeat by rental id.
    """
    there = {pod.id: pod for pod in pods if pod.status != "gone"}
    steps: list[Step] = []
    owned = {rental.provider_id for rental in books if rental.is_open and rental.provider_id}
    by_id = {rental.id: rental for rental in books}
    adopted: set[str] = set()
    for pod in there.values():
        rental_id = tagged_rental(installation, pod.name)
        if rental_id is None or pod.id in owned:
            continue
        step = _of_stranger(pod, by_id.get(rental_id), adopted, now, limits)
        if step is not None:
            steps.append(step)
    for rental in books:
        if rental.is_open and rental.id not in adopted:
            steps += _of_rental(rental, there, heard.get(rental.id), now, limits)
    return tuple(steps)


def _of_stranger(pod: RentedPod, rental: Rental | None, adopted: set[str], now: float, limits: Limits) -> Step | None:
    """What becomes of a pod with our tag whose id no open rental has."""
    if rental is not None and rental.provider_id is None and rental.state == REQUESTED and rental.id not in adopted:
        adopted.add(rental.id)
        return Step("adopt", "it was created for this rental", pod.id, rental.id, pod.name)
    if rental is not None and not rental.is_open:
        return Step("end", f"its rental is {rental.state}", pod.id, None, pod.name)
    if rental is not None and rental.state == ENDING and rental.provider_id is None:
        return Step("end", "its rental was ended before it was there", pod.id, rental.id, pod.name)
    if pod.created_at is not None and now - pod.created_at < limits.grace:
        return None
    reason = "it is not in the books" if rental is None else "its rental has another pod"
    return Step("end", reason, pod.id, None, pod.name)


def _of_rental(
    rental: Rental, there: Mapping[str, RentedPod], heard: float | None, now: float, limits: Limits
) -> list[Step]:
    """What becomes of an open rental."""
    if rental.provider_id is None:
        if now - rental.updated_at < limits.asking:
            return []
        reason = "the provider never answered, and has no pod of this name"
        return [Step("give_up", reason, None, rental.id, rental.name)]
    pod = there.get(rental.provider_id)
    if pod is None:
        # A list made before our last write may not have the pod yet.
        settled = now - rental.updated_at >= limits.grace or rental.state == ENDING
        return [Step("gone", "the provider no longer has it", rental.provider_id, rental.id, rental.name)] * settled
    reason = _why_end(rental, pod, heard, now, limits)
    return [Step("end", reason, pod.id, rental.id, rental.name)] if reason else []


def _why_end(rental: Rental, pod: RentedPod, heard: float | None, now: float, limits: Limits) -> str:
    if rental.state == ENDING:
        return rental.reason or "it was asked for"
    if pod.status == "stopped":
        return f"the provider says {pod.told or pod.status}, and a stopped pod still costs money"
    if rental.state == BOOTING and now - max(rental.created_at, limits.since) > limits.join:
        return f"it did not join within {limits.join / 60:g} minutes"
    if rental.max_hours is not None and now - rental.created_at > rental.max_hours * 3600:
        return f"its time of {rental.max_hours:g} hours is over"
    if rental.state == JOINED and heard is not None and now - max(heard, limits.since) > limits.silence:
        return f"nothing was heard of it for {limits.silence / 60:g} minutes"
    return ""
