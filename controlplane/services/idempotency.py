"""Idempotency-Keys: a repeated request gets the first one's answer, byte for byte, instead of new work.

The key is kept in the transaction that stores the work, so there is never a key without its work or the other way
round; of simultaneous requests one commits and the others find its row. The answer is kept once, by whoever has one
first, before it is sent: whoever comes later gets that one. A first request that died between its work and its answer
leaves a row without an answer; the next request with the key answers for it. The same key with another payload is
refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection

from controlplane.db import idempotency as key_rows
from controlplane.db.database import Database
from controlplane.db.idempotency import Address, Answer
from controlplane.errors import IdempotencyMismatch
from controlplane.ports import Clock

__all__ = ["Answer", "AnsweredBefore", "Claim", "Repeats", "claim", "digest_of"]

T = TypeVar("T")

KEPT_SECONDS = 24 * 3600.0


class AnsweredBefore(Exception):
    """This request was made before and has its answer; not an error: whoever answers sends ``answer`` again."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        super().__init__(answer.status)


@dataclass(frozen=True)
class Claim:
    """One request that may have been made before: its key, its address and the digest of what it asks for.

    ``at_once`` makes the answer of what the request made, where the first request is answered without waiting for
    anything: it is then kept with the key, in one transaction.
    """

    project_id: str
    key: str
    path: str
    payload_digest: str
    method: str = "POST"
    at_once: Callable[[Any], Answer] | None = None

    @property
    def address(self) -> Address:
        """What the row of this request is found by."""
        return Address(self.project_id, self.key, self.method, self.path)

    def first_answer(self, c: Connection) -> Mapping[str, Any] | None:
        """What the first request with this key led to (its ids), None where this is the first.

        Raises AnsweredBefore where that one has its answer, and IdempotencyMismatch for another payload.
        """
        kept = key_rows.find(c, self.address)
        if kept is None:
            return None
        if kept.payload_digest != self.payload_digest:
            raise IdempotencyMismatch("this Idempotency-Key was used before with other values; use a new key")
        if kept.answer is not None:
            raise AnsweredBefore(kept.answer)
        return kept.led_to

    def keep(self, c: Connection, led_to: Mapping[str, Any], now: float, made: Any = None) -> None:
        """Keep what this request led to, in the transaction that makes it so; ``made`` is what ``at_once`` takes."""
        answer = self.at_once(made) if self.at_once is not None and made is not None else None
        key_rows.keep(c, self.address, key_rows.Kept(self.payload_digest, led_to, answer), now)

    def drop(self, c: Connection) -> None:
        """Let the next request with this key be the first one: nothing came of this one. An answer stays."""
        key_rows.drop_unanswered(c, self.address)


class Repeats:
    """The edge's part: looking before the work, and keeping the answer after it."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def look(self, once: Claim) -> None:
        """Raise AnsweredBefore or IdempotencyMismatch, before anything is read or fetched for the work."""
        await self._db.read(once.first_answer)

    async def around(self, once: Claim, work: Callable[[], Awaitable[T]]) -> T:
        """Do work that no transaction of ours stores, and that may be done twice without harm, with its key kept.

        The key comes first: of two payloads at once only one is worked on. Refused work keeps no key. Raises what
        ``look`` and ``work`` raise.
        """

        def begin_request(c: Connection) -> None:
            if once.first_answer(c) is None:
                once.keep(c, {}, self._clock.now())

        await self._db.write(begin_request)
        try:
            return await work()
        except BaseException:
            await self._db.write(once.drop)
            raise

    async def settle(self, once: Claim, answer: Answer) -> Answer:
        """Keep an answer unless there is one; returns the one that is kept, the very object where it is the given."""

        def keep_answer(c: Connection) -> Answer:
            if key_rows.keep_answer(c, once.address, answer):
                return answer
            kept = key_rows.find(c, once.address)
            return kept.answer if kept is not None and kept.answer is not None else answer

        return await self._db.write_fenced(keep_answer)


def claim(
    project_id: str,
    key: str | None,
    path: str,
    *payload: Any,
    method: str = "POST",
    at_once: Callable[[Any], Answer] | None = None,
) -> Claim | None:
    """The claim of a request; None where it came without a key. ``payload`` are dataclasses or JSON values."""
    if key is None:
        return None
    return Claim(project_id, key, path, digest_of(*payload), method, at_once)


def digest_of(*payload: Any) -> str:
    """sha256 (hex) of some values, the same for equal values whatever the order of their members."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True, default=_members).encode()).hexdigest()


def _members(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return vars(value)
    return dict(value) if isinstance(value, Mapping) else str(value)
