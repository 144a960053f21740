"""SQL of Idempotency-Keys: which answer a repeated request gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, select

from controlplane.db.tables import idempotency_keys as _keys


@dataclass(frozen=True)
class Kept:
    """The first request with a key, and what it was answered."""

    payload_digest: str
    status: int
    body: Mapping[str, Any]


def find(c: Connection, project_id: str, key: str, method: str, path: str) -> Kept | None:
    """The first request with this key, None where there was none."""
    query = select(_keys).where(
        and_(_keys.c.project_id == project_id, _keys.c.key == key, _keys.c.method == method, _keys.c.path == path)
    )
    row = c.execute(query).mappings().first()
    return Kept(row["payload_digest"], row["status"], row["body"]) if row is not None else None


def keep(c: Connection, project_id: str, key: str, method: str, path: str, kept: Kept, now: float) -> None:
    """Keep an answer, in the transaction that made it true."""
    c.execute(
        insert(_keys).values(
            project_id=project_id,
            key=key,
            method=method,
            path=path,
            payload_digest=kept.payload_digest,
            status=kept.status,
            body=dict(kept.body),
            created_at=now,
        )
    )


def forget(c: Connection, created_before: float) -> None:
    """Drop old answers."""
    c.execute(delete(_keys).where(_keys.c.created_at < created_before))
