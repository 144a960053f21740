"""The pods table's statements."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from controlplane.db.rows import values_of
from controlplane.db.tables import pods
from controlplane.domain.pods import LOST, READY, Pod, serves

_OWNER_OF_KEY = select(pods.c.project_id, pods.c.id).where(pods.c.key_hash == bindparam("key_hash"))


def add(c: Connection, project_id: str, pod: Pod) -> Pod:
    """Write a pod that registers for the first time."""
    c.execute(insert(pods).values(**{**vars(pod), "project_id": project_id}))
    return pod


def change(c: Connection, project_id: str, pod_id: str, **values: Any) -> None:
    """Write columns of one pod."""
    c.execute(update(pods).where(pods.c.project_id == project_id, pods.c.id == pod_id).values(**values))


def get(c: Connection, project_id: str, pod_id: str) -> Pod | None:
    """One pod."""
    row = c.execute(select(pods).where(pods.c.project_id == project_id, pods.c.id == pod_id)).one_or_none()
    return Pod(**values_of(row)) if row else None


def find(c: Connection, pod_id: str) -> Pod | None:
    """One pod of whatever project; its id is random, and a pod knows no project."""
    row = c.execute(select(pods).where(pods.c.id == pod_id)).one_or_none()
    return Pod(**values_of(row)) if row else None


def find_locked(c: Connection, pod_id: str) -> Pod | None:
    """One pod that nobody else changes or gives work until the transaction ends (SQLite has one writer anyway)."""
    row = c.execute(select(pods).where(pods.c.id == pod_id).with_for_update()).one_or_none()
    return Pod(**values_of(row)) if row else None


def by_instance(c: Connection, project_id: str, instance_id: str) -> Pod | None:
    """The pod that registered with this instance id, locked as with ``find_locked``."""
    query = select(pods).where(pods.c.project_id == project_id, pods.c.instance_id == instance_id)
    row = c.execute(query.with_for_update()).one_or_none()
    return Pod(**values_of(row)) if row else None


def by_key_hash(c: Connection, key_hash: str) -> Pod | None:
    """The pod whose key has this sha256 (hex), of whatever project."""
    row = c.execute(select(pods).where(pods.c.key_hash == key_hash)).one_or_none()
    return Pod(**values_of(row)) if row else None


def owner_of_key(c: Connection, key_hash: str) -> tuple[str, str] | None:
    """Project and id of the pod whose key has this sha256, for requests that need nothing else of it."""
    row = c.execute(_OWNER_OF_KEY, {"key_hash": key_hash}).first()
    return (row.project_id, row.id) if row is not None else None


def list_all(c: Connection, project_id: str | None = None) -> list[Pod]:
    """Every pod, oldest first; of every project where none is named."""
    query = select(pods).order_by(pods.c.created_at, pods.c.id)
    if project_id is not None:
        query = query.where(pods.c.project_id == project_id)
    return [Pod(**values_of(row)) for row in c.execute(query)]


def known(c: Connection, project_id: str) -> list[Pod]:
    """Every pod that works for a project and is not lost, oldest first."""
    return [pod for pod in list_all(c) if pod.state != LOST and serves(pod, project_id)]


_MARKS = select(pods.c.id, pods.c.state, pods.c.draining, pods.c.key_hash, pods.c.last_heartbeat_at)


def marks(c: Connection) -> dict[str, tuple[Any, ...]]:
    """What shows, for each pod, whether its row was written since somebody last looked: cheaper than reading it."""
    return {row[0]: tuple(row[1:]) for row in c.execute(_MARKS)}


_SOME = select(pods).where(pods.c.id.in_(bindparam("ids", expanding=True))).order_by(pods.c.created_at, pods.c.id)


def of_ids(c: Connection, pod_ids: Collection[str]) -> list[Pod]:
    """Some pods, oldest first."""
    return [Pod(**values_of(row)) for row in c.execute(_SOME, {"ids": list(pod_ids)})] if pod_ids else []


_OPEN = (
    select(pods.c.id, pods.c.key_hash)
    .where(pods.c.id.in_(bindparam("ids", expanding=True)), pods.c.state == READY)
    .order_by(pods.c.id)
    .with_for_update(read=True)
)


def still_open(c: Connection, pod_ids: Collection[str]) -> dict[str, str]:
    """Those of the pods that may be given work, which nobody drains before the transaction ends: id -> key hash.

    The key hash tells whether the pod has registered again since somebody looked, perhaps at another address.
    """
    return {row[0]: row[1] for row in c.execute(_OPEN, {"ids": list(pod_ids)})} if pod_ids else {}
