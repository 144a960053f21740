"""The rentals table's statements, and the installation's own id."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, and_, func, insert, or_, select, update

from controlplane.db.rows import values_of
from controlplane.db.tables import installation, pods, rentals
from controlplane.domain.pages import Position
from controlplane.domain.pods import Pod
from controlplane.domain.rentals import BOOTING, JOINED, OPEN, Rental

_SAME = and_(pods.c.provider == rentals.c.provider, pods.c.provider_id == rentals.c.provider_id)
"""Where a pod has registered from a rental."""


def installation_id(c: Connection) -> str:
    """The id that was made with the database."""
    return str(c.execute(select(installation.c.id)).scalar_one())


def lock_books(c: Connection) -> None:
    """Keep other requests for pods waiting until the transaction ends (SQLite has one writer anyway)."""
    c.execute(select(installation.c.id).with_for_update()).scalar_one()


def add(c: Connection, project_id: str, rental: Rental) -> Rental:
    """Write a new rental."""
    c.execute(insert(rentals).values(**{**vars(rental), "project_id": project_id}))
    return rental


def change(c: Connection, rental_id: str, states: Collection[str], **values: Any) -> bool:
    """Write columns of a rental that is in one of these states; False where it is not."""
    statement = update(rentals).where(rentals.c.id == rental_id, rentals.c.state.in_(tuple(states))).values(**values)
    return bool(c.execute(statement).rowcount)


def find(c: Connection, rental_id: str) -> Rental | None:
    """One rental of whatever project."""
    row = c.execute(select(rentals).where(rentals.c.id == rental_id)).one_or_none()
    return Rental(**values_of(row)) if row else None


def get(c: Connection, project_id: str, rental_id: str) -> Rental | None:
    """One rental."""
    found = find(c, rental_id)
    return found if found is not None and found.project_id == project_id else None


def page(c: Connection, project_id: str, limit: int, before: Position | None = None) -> list[Rental]:
    """Rentals, newest first, strictly after ``before``."""
    query = select(rentals).where(rentals.c.project_id == project_id)
    if before is not None:
        same_moment = and_(rentals.c.created_at == before.created_at, rentals.c.id < before.id)
        query = query.where(or_(rentals.c.created_at < before.created_at, same_moment))
    query = query.order_by(rentals.c.created_at.desc(), rentals.c.id.desc()).limit(limit)
    return [Rental(**values_of(row)) for row in c.execute(query)]


def books(c: Connection, provider: str, ids: Collection[str] = (), provider_ids: Collection[str] = ()) -> list[Rental]:
    """Every open rental of a provider, and those with these ids or provider's ids in any state; oldest first."""
    wanted = or_(
        rentals.c.state.in_(OPEN), rentals.c.id.in_(tuple(ids)), rentals.c.provider_id.in_(tuple(provider_ids))
    )
    query = select(rentals).where(rentals.c.provider == provider, wanted)
    return [Rental(**values_of(row)) for row in c.execute(query.order_by(rentals.c.created_at, rentals.c.id))]


def newly_registered(c: Connection) -> list[tuple[str, str]]:
    """(rental, pod) where the newest pod that registered from a rental is not written down in both yet.

    A container that starts anew registers as another pod of the same rental.
    """
    query = (
        select(rentals.c.id, rentals.c.pod_id, rentals.c.price_per_hour, pods.c.id, pods.c.price_per_hour)
        .join(pods, _SAME)
        .where(rentals.c.state.in_((BOOTING, JOINED)))
        .order_by(pods.c.created_at, pods.c.id)
    )
    newest = {str(row[0]): row for row in c.execute(query)}
    return [
        (rental_id, str(pod_id))
        for rental_id, (_, noted, rent, pod_id, told) in newest.items()
        if noted != pod_id or (told is None and rent is not None)
    ]


def heard(c: Connection) -> dict[str, float]:
    """The last heartbeat of every joined rental's pod, by rental id."""
    query = select(rentals.c.id, func.max(pods.c.last_heartbeat_at)).join(pods, _SAME)
    rows = c.execute(query.where(rentals.c.state == JOINED).group_by(rentals.c.id))
    return {str(rental_id): float(at) for rental_id, at in rows}


def pods_of(c: Connection, rental: Rental) -> list[Pod]:
    """Every pod that registered from a rental."""
    if rental.provider_id is None:
        return []
    query = select(pods).where(pods.c.provider == rental.provider, pods.c.provider_id == rental.provider_id)
    return [Pod(**values_of(row)) for row in c.execute(query.order_by(pods.c.created_at, pods.c.id))]
