"""The deliveries' statements: noting what webhooks are to be told of, taking what is due, and what became of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, text, update

from controlplane.db.rows import values_of
from controlplane.db.tables import WAITING_ROWS, webhook_deliveries, webhooks
from controlplane.domain.ids import new_id
from controlplane.domain.pages import Position
from controlplane.domain.webhooks import FAILED, WAITING, Delivery

_KNOWN = "webhooks in force"
_WAITING = text(WAITING_ROWS)


class Told(NamedTuple):
    """What writing an event answers: its id, and which set of webhooks was in force at that moment."""

    id: int
    project_id: str
    type: str
    webhooks: str


def note(c: Connection, told: Sequence[Told], now: float) -> None:
    """Write a delivery for every webhook that wants one of these events, in the events' own transaction.

    The set of webhooks is read once for each of its versions and connection; a version is random, so one that a
    rolled back transaction made never comes again.
    """
    version = told[0].webhooks
    if not version:
        return
    known = c.info.get(_KNOWN)
    if known is None or known[0] != version:
        known = c.info[_KNOWN] = (version, _wishes(c))
    rows = [
        {**_NEW, "id": new_id("msg"), "project_id": one.project_id, "webhook_id": webhook_id, "event_id": one.id,
         "type": one.type, "next_at": now, "created_at": now}
        for one in told
        for webhook_id in known[1].get((one.project_id, one.type), ())
    ]  # fmt: skip
    if rows:
        c.execute(insert(webhook_deliveries), rows)


_NEW: Mapping[str, Any] = {"state": WAITING, "tries": 0, "claim_no": 0, "attempts": []}


def _wishes(c: Connection) -> dict[tuple[str, str], list[str]]:
    """Who wants to be told, by project and type of event."""
    found: dict[tuple[str, str], list[str]] = {}
    query = select(webhooks.c.id, webhooks.c.project_id, webhooks.c.types).where(webhooks.c.enabled)
    for webhook_id, project_id, types in c.execute(query):
        for type_ in types:
            found.setdefault((project_id, type_), []).append(webhook_id)
    return found


def add(c: Connection, delivery: Delivery) -> Delivery:
    """Write a delivery that stands for no event."""
    c.execute(insert(webhook_deliveries).values(**vars(delivery)))
    return delivery


def get(c: Connection, webhook_id: str, delivery_id: str, *, locked: bool = False) -> Delivery | None:
    """One delivery of a webhook."""
    query = select(webhook_deliveries).where(
        webhook_deliveries.c.id == delivery_id, webhook_deliveries.c.webhook_id == webhook_id
    )
    row = c.execute(query.with_for_update() if locked else query).one_or_none()
    return _delivery(row) if row else None


def page(
    c: Connection, webhook_id: str, limit: int, before: Position | None = None, state: str | None = None
) -> list[Delivery]:
    """The deliveries of a webhook, newest first, strictly after ``before``."""
    created, own_id = webhook_deliveries.c.created_at, webhook_deliveries.c.id
    query = select(webhook_deliveries).where(webhook_deliveries.c.webhook_id == webhook_id)
    if state is not None:
        query = query.where(webhook_deliveries.c.state == state)
    if before is not None:
        same_moment = and_(created == before.created_at, own_id < before.id)
        query = query.where(or_(created < before.created_at, same_moment))
    return [_delivery(row) for row in c.execute(query.order_by(created.desc(), own_id.desc()).limit(limit))]


def due(c: Connection, now: float, except_for: Collection[str], limit: int) -> list[Delivery]:
    """What is to be tried now, the longest waiting first, nothing of the webhooks ``except_for``."""
    query = select(webhook_deliveries).where(_WAITING, webhook_deliveries.c.next_at <= now)
    if except_for:
        query = query.where(webhook_deliveries.c.webhook_id.not_in(sorted(except_for)))
    return [_delivery(row) for row in c.execute(query.order_by(webhook_deliveries.c.next_at).limit(limit))]


def next_due(c: Connection, except_for: Collection[str]) -> float | None:
    """When the next try is due, None where nothing waits."""
    query = select(func.min(webhook_deliveries.c.next_at)).where(_WAITING)
    if except_for:
        query = query.where(webhook_deliveries.c.webhook_id.not_in(sorted(except_for)))
    found = c.execute(query).scalar()
    return None if found is None else float(found)


def take(c: Connection, wanted: Sequence[Delivery], until: float, now: float) -> list[Delivery]:
    """Claim deliveries, with the body that each is sent with from now on, until a moment.

    What somebody else has claimed since it was read is left out.
    """
    query = select(webhook_deliveries.c.id, webhook_deliveries.c.claim_no).where(
        webhook_deliveries.c.id.in_([one.id for one in wanted]), _WAITING, webhook_deliveries.c.next_at <= now
    )
    free = {row.id: row.claim_no for row in c.execute(query.with_for_update(skip_locked=True))}
    taken = [one for one in wanted if free.get(one.id) == one.claim_no]
    for one in taken:
        values = {"claim_no": one.claim_no + 1, "next_at": until, "body": one.body}
        c.execute(update(webhook_deliveries).where(webhook_deliveries.c.id == one.id).values(**values))
    return taken


def change(c: Connection, delivery: Delivery, **values: Any) -> None:
    """Write columns of a delivery that the caller has locked."""
    c.execute(update(webhook_deliveries).where(webhook_deliveries.c.id == delivery.id).values(**values))


def give_up(c: Connection, webhook_id: str, now: float) -> None:
    """End everything that waits for a webhook."""
    waiting = and_(webhook_deliveries.c.webhook_id == webhook_id, _WAITING)
    c.execute(update(webhook_deliveries).where(waiting).values(state=FAILED, finished_at=now))


def drop_of(c: Connection, webhook_id: str) -> None:
    """Forget all deliveries of a webhook."""
    c.execute(delete(webhook_deliveries).where(webhook_deliveries.c.webhook_id == webhook_id))


def drop_older(c: Connection, before: float, limit: int) -> int:
    """Forget ended deliveries that were made before a moment, oldest first, at most so many; returns how many went."""
    old = and_(webhook_deliveries.c.created_at < before, webhook_deliveries.c.state != WAITING)
    query = select(webhook_deliveries.c.id).where(old).order_by(webhook_deliveries.c.created_at).limit(limit)
    ids = list(c.execute(query).scalars())
    return c.execute(delete(webhook_deliveries).where(webhook_deliveries.c.id.in_(ids))).rowcount if ids else 0


def waiting(c: Connection) -> int:
    """How many wait for their next try."""
    return int(c.execute(select(func.count()).select_from(webhook_deliveries).where(_WAITING)).scalar_one())


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(**values_of(row))
