"""The webhooks table's statements."""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from controlplane.db.rows import values_of
from controlplane.db.tables import installation, webhooks
from controlplane.domain.webhooks import Webhook


def add(c: Connection, webhook: Webhook) -> Webhook:
    """Write a new webhook."""
    c.execute(insert(webhooks).values(**{**vars(webhook), "types": list(webhook.types)}))
    return webhook


def get(c: Connection, project_id: str, webhook_id: str, *, locked: bool = False) -> Webhook | None:
    """One webhook."""
    query = select(webhooks).where(webhooks.c.project_id == project_id, webhooks.c.id == webhook_id)
    row = c.execute(query.with_for_update() if locked else query).one_or_none()
    return _webhook(row) if row else None


def of_project(c: Connection, project_id: str) -> list[Webhook]:
    """The webhooks of a project, oldest first."""
    query = select(webhooks).where(webhooks.c.project_id == project_id)
    return [_webhook(row) for row in c.execute(query.order_by(webhooks.c.created_at, webhooks.c.id))]


def count(c: Connection, project_id: str) -> int:
    """How many a project has."""
    query = select(func.count()).select_from(webhooks).where(webhooks.c.project_id == project_id)
    return int(c.execute(query).scalar_one())


def enabled(c: Connection) -> dict[str, Webhook]:
    """Every webhook that is told of things, whatever its project, by id."""
    return {row.id: _webhook(row) for row in c.execute(select(webhooks).where(webhooks.c.enabled))}


def change(c: Connection, webhook: Webhook, **values: Any) -> None:
    """Write columns of a webhook."""
    c.execute(update(webhooks).where(webhooks.c.id == webhook.id).values(**values))


def remove(c: Connection, webhook: Webhook) -> None:
    """Delete a webhook."""
    c.execute(delete(webhooks).where(webhooks.c.id == webhook.id))


def renew_version(c: Connection) -> None:
    """Say that which webhooks there are, or what they want to hear of, has changed."""
    c.execute(update(installation).values(webhooks=secrets.token_hex(8)))


def forget_previous_secrets(c: Connection, now: float) -> None:
    """Drop secrets that sign no longer."""
    c.execute(update(webhooks).where(webhooks.c.previous_until < now).values(previous_secret=None, previous_until=None))


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(**values_of(row))
