"""The pods table's statements."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from controlplane.db.rows import values_of
from controlplane.db.tables import pods
from controlplane.domain.pods import LOST, Pod

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
    """Every pod that is not lost, oldest first."""
    return [pod for pod in list_all(c, project_id) if pod.state != LOST]
