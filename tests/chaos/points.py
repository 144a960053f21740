"""The failpoints of a job's life: where each is, which kinds of failure it knows, and why it knows no others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

KINDS = ("kill", "stall", "cut", "duplicate")

Where = Literal["inside", "clients", "halls", "pods", "receivers", "world"]
Prelude = Literal["", "pod dies", "server dies", "slow file", "cancel", "training", "stream", "long"]

WAYS = {"clients": "from clients", "halls": "from pods", "pods": "to pods", "receivers": "to webhooks"}
ONE_COMMIT = "a transaction is committed once or not at all"
A_STREAM = "repeating bytes of a connection makes another protocol"


@dataclass(frozen=True, eq=False)
class Point:
    """One place where something may fail.

    ``where``: ``inside`` a control plane (``name`` is its failpoint); on the way from ``clients``, from pods
    (``halls``), to ``pods`` or to the ``receivers`` of webhooks (``name`` is a regular expression for its request); or
    the ``world`` at large.
    ``after``: on the way, whether the other side has had the request by then.
    """

    step: str
    name: str
    where: Where
    kinds: tuple[str, ...]
    why_not: Mapping[str, str] = field(default_factory=dict)
    after: bool = False
    prelude: Prelude = ""
    """What has to happen for it to be reached."""
    postgresql_only: bool = False

    @property
    def title(self) -> str:
        if self.where in ("inside", "world"):
            return self.name
        end = {"clients": "from clients", "halls": "from pods", "pods": "to pods", "receivers": "to webhooks"}[
            self.where
        ]
        return f"{self.name.strip('^$')} {end}, {'answer' if self.after else 'request'}"


def commit(step: str, name: str, prelude: Prelude = "") -> tuple[Point, ...]:
    """Both sides of a transaction's commit."""
    kinds, why = ("kill", "stall", "cut"), {"duplicate": ONE_COMMIT}
    return tuple(Point(step, f"{name} {side} commit", "inside", kinds, why, prelude=prelude) for side in SIDES)


def call(step: str, name: str, prelude: Prelude = "") -> tuple[Point, ...]:
    """Both sides of a control plane's call to a pod, inside the control plane."""
    kinds, why = ("kill", "stall", "cut"), {"duplicate": "on the way to the pod, below"}
    return tuple(
        Point(step, f"{name} {side}", "inside", kinds, why, prelude=prelude) for side in ("before send", "after answer")
    )


def way(step: str, name: str, where: Where, prelude: Prelude = "") -> tuple[Point, Point]:
    """A request and its answer on their way; ``kill`` hits who is asked, or the pod that asks."""
    before = Point(step, name, where, KINDS, prelude=prelude)
    why = {"stall": "as on its way there", "duplicate": "as on its way there"}
    return before, Point(step, name, where, ("kill", "cut"), why, after=True, prelude=prelude)


SIDES = ("before", "after")

POINTS: tuple[Point, ...] = (
    *way("accept", "^POST /generate-image$", "clients"),
    *commit("accept", "accept_request"),
    *commit("accept", "keep_answer"),
    *commit("claim", "take"),
    *commit("take over", "take_over", "server dies"),
    *way("submit", "^POST /prompt$", "pods"),
    *call("submit", "POST /prompt"),
    *commit("note", "write_notes"),
    Point("message", "socket message", "inside", KINDS),
    Point("message", "^GET /ws$", "pods", KINDS),
    *way("history", "^GET /history/", "pods"),
    *call("history", "GET /history/{id}"),
    *way("history", "^GET /queue$", "pods"),
    *way("ticket", "^POST /pods/self/uploads$", "halls"),
    *commit("ticket", "announced"),
    *way("put", "^PUT /files/", "halls"),
    Point("put", "put before", "inside", ("kill", "stall", "cut"), {"duplicate": "on the way from the pod"}),
    Point("put", "put after", "inside", ("kill", "stall", "cut"), {"duplicate": "on the way from the pod"}),
    Point("verify", "head", "inside", ("kill", "stall", "cut"), {"duplicate": "it reads"}),
    *way("collect", "^GET /troupe/uploads/", "pods", "slow file"),
    *call("collect", "GET /troupe/uploads/{id}", "slow file"),
    *commit("succeed", "succeed"),
    *way("forget", "^POST /history$", "pods"),
    *call("forget", "POST /history"),
    *commit("give up", "give_up_attempt", "pod dies"),
    *commit("lease", "renew"),
    *way("cancel", "^DELETE /jobs/", "clients", "cancel"),
    *commit("cancel", "cancel", "cancel"),
    *commit("cancel", "cancelled", "cancel"),
    *way("cancel", "^POST /interrupt$", "pods", "cancel"),
    *way("stream", "^GET /(jobs/.*/)?events$", "clients", "stream"),
    *way("register", "^POST /pods$", "halls", "pod dies"),
    *commit("register", "register", "pod dies"),
    *way("heartbeat", "^POST /pods/[^/]+/heartbeat$", "halls"),
    *commit("heartbeat", "heartbeat"),
    Point("webhook", "webhook before send", "inside", ("kill", "stall", "cut"), {"duplicate": "webhook send"}),
    Point("webhook", "webhook send", "inside", ("duplicate",),
          {"kill": "before and after", "stall": "before and after", "cut": "before and after"}),
    Point("webhook", "webhook after send", "inside", ("kill", "stall", "cut"), {"duplicate": "webhook send"}),
    Point("webhook", "^POST /(steady|choosy)$", "receivers", ("stall", "cut", "duplicate"), {"kill": "not ours"}),
    Point("webhook", "^POST /(steady|choosy)$", "receivers", ("cut",),
          {"kill": "not ours", "stall": "as on its way there", "duplicate": "as on its way there"}, after=True),
    *commit("webhook", "claim_deliveries"),
    *commit("webhook", "note_outcome"),
    *way("training", "^POST /characters$", "clients", "training"),
    *commit("training", "insert", "training"),
    *way("training", "^POST /pods/self/attempts/", "halls", "training"),
    *commit("training", "attempt_progress", "training"),
    Point("anywhere", "a control plane", "world", ("kill", "stall"), {"cut": "below", "duplicate": "it is a process"}),
    Point("anywhere", "a pod", "world", ("kill", "stall"), {"cut": "below", "duplicate": "it is a process"}),
    Point("anywhere", "connections of clients", "world", ("cut",),
          {"kill": "above", "stall": "request by request", "duplicate": "request by request"}),
    Point("anywhere", "connections to pods", "world", ("cut",),
          {"kill": "above", "stall": "request by request", "duplicate": "request by request"}),
    Point("anywhere", "the database server", "world", ("kill", "stall"),
          {"cut": "below", "duplicate": A_STREAM}, postgresql_only=True),
    Point("anywhere", "connections to the database", "world", ("cut", "stall"),
          {"kill": "above", "duplicate": A_STREAM}, postgresql_only=True),
    Point("anywhere", "the files' folder", "world", ("cut",),
          {"kill": "the store is no process", "stall": "put before", "duplicate": "it is a folder"}),
)  # fmt: skip


def points_of(database: str) -> tuple[Point, ...]:
    """The points that a run on this database has."""
    return tuple(point for point in POINTS if database == "postgresql" or not point.postgresql_only)
