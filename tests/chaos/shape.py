"""The shape of a chaos run: what is asked for, how many of everything there are, and the times it goes by."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

SEEDS = 1 << 22
"""Pictures are told apart by their seeds, so that no two jobs of one run share one."""


@dataclass(frozen=True)
class Shape:
    """One run. Times are seconds."""

    database: str
    jobs: int
    seed: int
    times: int = 3
    """How often each failpoint is to fire with each of its kinds."""
    only: tuple[str, ...] | None = None
    """Only points whose step or title is named here, or ``title: kind``; None means all."""
    picture_pods: int = 3
    minutes: float = 60.0
    """After so long no further strike begins; what has not been struck by then is told."""
    lanes: int = 4
    """How many strikes may be under way at once."""
    lease: float = 1.5
    stall: float = 3.0
    """Longer than the lease: whoever is stalled that long comes back to find somebody else at its work."""
    longest_job: float = 1.2
    long_share: float = 0.2
    """Of the jobs; the others are done at once."""
    grace: float = 15.0
    """How old an unclaimed file must be before the sweep may delete it."""
    outstanding: int = 24
    trainings: int = 6
    planted: str = ""
    """A bug that the servers are started with; see ``planted``."""

    servers: int = 0
    """How many control planes; 0 means one on SQLite, three on PostgreSQL."""

    @property
    def replicas(self) -> int:
        return self.servers or (3 if self.database == "postgresql" else 1)

    def wants(self, step: str, title: str, kind: str) -> bool:
        """Whether a failpoint is to fail in this way."""
        return self.only is None or any(one in (step, title, f"{title}: {kind}") for one in self.only)


@dataclass(frozen=True)
class Wish:
    """What one client wants, decided before anything runs."""

    number: int
    key: str
    seed: int
    count: int
    seconds: float
    training: bool = False
    twin: bool = False
    """Sent twice at the same time, to two replicas."""
    again: bool = False
    """Sent again once its job is final."""
    cancel_after: float | None = None
    """Seconds after its acceptance, or after its beginning."""
    cancelled_at_work: bool = False
    """Whether its cancellation waits for its beginning."""
    streamed: bool = False
    """Its events are read to their end."""
    waits: bool = False
    """It asks for the finished job in the answer."""

    @property
    def path(self) -> str:
        return "/characters" if self.training else "/generate-image"

    @property
    def body(self) -> dict[str, object]:
        """The request, as JSON or as the fields of a form."""
        if self.training:
            return {"name": f"Nell {self.number}", "base_model": "sketch", "recipe": "fast"}
        return {
            "workflow": "chaos_image",
            "prompt": f"picture {self.number}",
            "seed": self.seed,
            "count": self.count,
            "seconds": self.seconds,
        }


@dataclass
class Wishes:
    """An endless row of wishes, the same for the same seed."""

    shape: Shape
    made: int = 0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(f"wishes {self.shape.seed}")

    def next(self) -> Wish:
        """The next one; every so many is a training."""
        roll, number = self._random.random, self.made
        self.made += 1
        every = max(2, self.shape.jobs // max(1, self.shape.trainings))
        training = self.shape.trainings > 0 and number % every == every // 2
        long = roll() < self.shape.long_share
        return Wish(
            number=number,
            key=f"chaos-{self.shape.seed}-{number}",
            seed=number * 3 % SEEDS,
            count=self._random.choice((1, 1, 1, 2, 3)),
            seconds=round(roll() * (self.shape.longest_job if long else 0.05), 3),
            training=training,
            twin=roll() < 0.15,
            again=roll() < 0.1,
            cancel_after=round(roll() * 1.5, 2) if roll() < 0.08 and not training else None,
            streamed=roll() < 0.15,
            waits=roll() < 0.1,
        )


PLANTED = {
    "no claim check": Shape(
        "sqlite", jobs=24, seed=1, times=3, only=("a control plane: stall",), servers=3, planted="no claim check",
        picture_pods=2, trainings=0, lanes=1, stall=4.0, grace=6.0, longest_job=2.5, long_share=0.8,
    ),
    "no key row": Shape(
        "sqlite", jobs=20, seed=1, only=(), servers=2, planted="no key row", picture_pods=1, trainings=0, grace=1.0,
    ),
}  # fmt: skip
"""Runs in which a server that lacks one safety cannot but show it."""
