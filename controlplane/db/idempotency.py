"""SQL of Idempotency-Keys: what the first request with a key led to, and what it was answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, insert, select, tuple_, update

from controlplane.db.tables import idempotency_keys as _keys


class Address(NamedTuple):
    """What a key belongs to: the same key means something else in another project or at another address."""

    project_id: str
    key: str
    method: str
    path: str


@dataclass(frozen=True)
class Answer:
    """An answer as it was sent: HTTP's status, the headers with a meaning of their own, and the JSON text."""

    status: int
    headers: Mapping[str, str]
    text: str


@dataclass(frozen=True)
class Kept:
    """The first request with a key: what it led to, and its answer once there is one."""

    payload_digest: str
    led_to: Mapping[str, Any]
    answer: Answer | None = None


# Made once: every request with a key runs them.
_FIND = select(_keys.c.payload_digest, _keys.c.status, _keys.c.body, _keys.c.headers, _keys.c.answer).where(
    *(_keys.c[name] == bindparam(name) for name in Address._fields)
)
_KEEP = insert(_keys)


def find(c: Connection, address: Address) -> Kept | None:
    """The first request with this key, None where there was none."""
    row = c.execute(_FIND, address._asdict()).mappings().first()
    if row is None:
        return None
    answer = None if row["answer"] is None else Answer(row["status"], row["headers"] or {}, row["answer"])
    return Kept(row["payload_digest"], row["body"] or {}, answer)


def keep(c: Connection, address: Address, kept: Kept, now: float) -> None:
    """Keep a request, in the transaction that made true what it led to."""
    values = {
        **address._asdict(),
        "payload_digest": kept.payload_digest,
        "body": dict(kept.led_to),
        "created_at": now,
        **_columns(kept.answer),
    }
    c.execute(_KEEP, values)


def keep_answer(c: Connection, address: Address, given: Answer) -> bool:
    """Keep an answer; False where there is one already, or no such key."""
    waiting = update(_keys).where(_at(address), _keys.c.answer.is_(None))
    return c.execute(waiting.values(**_columns(given))).rowcount == 1


def drop_unanswered(c: Connection, address: Address) -> None:
    """Forget a key whose request came to nothing."""
    c.execute(delete(_keys).where(_at(address), _keys.c.answer.is_(None)))


def forget(c: Connection, created_before: float, limit: int) -> int:
    """Drop old keys, at most so many; says how many. Two processes drop different ones."""
    columns = (_keys.c.project_id, _keys.c.key, _keys.c.method, _keys.c.path)
    old = select(*columns).where(_keys.c.created_at < created_before).order_by(_keys.c.created_at).limit(limit)
    found = [tuple(row) for row in c.execute(old.with_for_update(skip_locked=True))]
    if found:
        c.execute(delete(_keys).where(tuple_(*columns).in_(found)))
    return len(found)


def _at(address: Address) -> ColumnElement[bool]:
    return and_(*(_keys.c[name] == value for name, value in address._asdict().items()))


def _columns(given: Answer | None) -> dict[str, Any]:
    if given is None:
        return {"status": None, "headers": None, "answer": None}
    return {"status": given.status, "headers": dict(given.headers), "answer": given.text}
