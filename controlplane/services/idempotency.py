"""Idempotency-Keys: a repeated request gets the work of the first one instead of new work.

The key is kept in the transaction that stores the job, so there is never a key without its job or the other way round;
of two simultaneous requests one commits and the other finds its row. What is kept are the ids: a repeated request is
answered with the first one's job as it is by then. The same key with another payload is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from controlplane.db import idempotency as key_rows
from controlplane.errors import IdempotencyMismatch

KEPT_SECONDS = 24 * 3600.0
ACCEPTED = 202


@dataclass(frozen=True)
class Claim:
    """One request that may have been made before: its key, its address and the digest of what it asks for."""

    project_id: str
    key: str
    path: str
    payload_digest: str
    method: str = "POST"

    def first_answer(self, c: Connection) -> Mapping[str, Any] | None:
        """What the first request with this key led to, None where this is the first. IdempotencyMismatch."""
        kept = key_rows.find(c, self.project_id, self.key, self.method, self.path)
        if kept is None:
            return None
        if kept.payload_digest != self.payload_digest:
            raise IdempotencyMismatch("this Idempotency-Key was used before with other values; use a new key")
        return kept.body

    def keep(self, c: Connection, answer: Mapping[str, Any], now: float) -> None:
        """Keep what this request led to; keys older than a day are dropped on the way."""
        key_rows.forget(c, now - KEPT_SECONDS)
        kept = key_rows.Kept(self.payload_digest, ACCEPTED, answer)
        key_rows.keep(c, self.project_id, self.key, self.method, self.path, kept, now)


def claim(project_id: str, key: str | None, path: str, *payload: Any) -> Claim | None:
    """The claim of a request; None where it came without a key. ``payload`` are dataclasses or JSON values."""
    if key is None:
        return None
    return Claim(project_id, key, path, digest_of(*payload))


def digest_of(*payload: Any) -> str:
    """sha256 (hex) of some values, the same for equal values whatever the order of their members."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True, default=_members).encode()).hexdigest()


def _members(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return dict(value) if isinstance(value, Mapping) else str(value)
