"""SQL of assets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import (
    Connection,
    Select,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.engine import RowMapping

from controlplane.db import tables
from controlplane.db.rows import merged, newest_first
from controlplane.domain.assets import Asset
from controlplane.domain.jobs import ATTEMPT_OPEN, FINAL, is_final
from controlplane.domain.pages import Position
from controlplane.errors import Conflict

_assets = tables.assets
_attempts = tables.attempts
_characters = tables.characters
_jobs = tables.jobs

# In literals, as the partial indexes have it.
_STORED = _assets.c.status == literal_column("'stored'")
_UNSETTLED = _assets.c.status != literal_column("'stored'")
_FAVOURITE = _assets.c.favourite == true()
LISTED_KINDS = ("image", "video")

# What every picture asks is composed once, not each time.
_INSERT = insert(_assets)
_CHANGE = update(_assets).where(_assets.c.project_id == bindparam("of_project"), _assets.c.id == bindparam("of_id"))
_OF_ATTEMPT = (
    select(_assets)
    .where(_assets.c.attempt_id == bindparam("attempt"), _assets.c.status != "deleted")
    .order_by(_assets.c.kind, _assets.c.position)
)
_BY_UPLOAD = select(_assets.c.upload, _assets.c.id).where(
    _assets.c.attempt_id == bindparam("attempt"), _assets.c.upload.is_not(None), _assets.c.status != "deleted"
)
_OF_JOBS = (
    select(_assets)
    .where(_assets.c.project_id == bindparam("project"), _assets.c.job_id.in_(bindparam("jobs", expanding=True)))
    .where(_assets.c.status == "stored")
    .order_by(_assets.c.job_id, _assets.c.position)
)
_other = _attempts.alias("other")
_MAKER = (
    select(
        _attempts.c.id.label("attempt_id"),
        _attempts.c.number.label("attempt_number"),
        _attempts.c.status.label("attempt_status"),
        select(func.max(_other.c.number))
        .where(_other.c.job_id == _attempts.c.job_id)
        .scalar_subquery()
        .label("newest"),
        _jobs.c.id.label("job_id"),
        _jobs.c.status.label("job_status"),
        *(_jobs.c[name] for name in ("project_id", "character_id", "version", "seed", "rating", "metadata")),
        _jobs.c.created_at,
    )
    .join(_jobs, _jobs.c.id == _attempts.c.job_id)
    .where(_attempts.c.id == bindparam("attempt"), _attempts.c.project_id == bindparam("project"))
    .where(_attempts.c.pod_id == bindparam("pod"))
    .with_for_update(of=(_attempts, _jobs))
)


@dataclass(frozen=True)
class Maker:
    """An attempt that makes files, and what its files take over from its job."""

    attempt_id: str
    attempt_number: int
    attempt_status: str
    newest: int
    """The number of the job's newest attempt."""
    job_id: str
    job_status: str
    project_id: str
    character_id: str | None
    version: int | None
    seed: int | None
    rating: str | None
    metadata: Mapping[str, Any]
    created_at: float
    """The job's."""

    @property
    def is_current(self) -> bool:
        """Whether the job still waits for what this attempt makes."""
        alive = self.attempt_status in ATTEMPT_OPEN and not is_final(self.job_status)
        return alive and self.attempt_number == self.newest


def maker(c: Connection, project_id: str, pod_id: str, attempt_id: str) -> Maker | None:
    """An attempt of a pod, which nobody else ends until the transaction does; None where it is none of this pod's."""
    row = c.execute(_MAKER, {"attempt": attempt_id, "project": project_id, "pod": pod_id}).first()
    return Maker(**row._mapping) if row is not None else None


def insert_assets(c: Connection, assets: Iterable[Asset]) -> None:
    """Write new assets; keys must be free."""
    rows = [vars(asset) for asset in assets]
    if rows:
        c.execute(_INSERT, rows)


def confirm(c: Connection, asset_ids: Sequence[str]) -> None:
    """Say that pending assets are stored. Conflict where the sweep has given up on one of them."""
    if asset_ids:
        waiting = _assets.c.id.in_(asset_ids), _assets.c.status == "pending"
        if c.execute(update(_assets).where(*waiting).values(status="stored")).rowcount != len(asset_ids):
            raise Conflict("storing the images took so long that they have been swept away; send them again")


def drop_pending(c: Connection, asset_ids: Sequence[str]) -> None:
    """Delete the rows of pending assets whose blobs are gone."""
    c.execute(delete(_assets).where(_assets.c.id.in_(asset_ids), _assets.c.status == "pending"))


def get(c: Connection, project_id: str, asset_id: str) -> Asset | None:
    """One asset, pending ones included; a deleted one is none."""
    query = select(_assets).where(_is(project_id, asset_id), _assets.c.status != "deleted")
    row = c.execute(query).mappings().first()
    return _asset(row) if row is not None else None


def get_locked(c: Connection, project_id: str, asset_id: str) -> Asset | None:
    """The same, and nobody else deletes or changes it until the transaction ends."""
    query = select(_assets).where(_is(project_id, asset_id), _assets.c.status != "deleted")
    row = c.execute(query.with_for_update()).mappings().first()
    return _asset(row) if row is not None else None


def page(c: Connection, project_id: str, filters: Mapping[str, Any], after: Position | None, limit: int) -> list[Asset]:
    """Stored assets whose columns equal ``filters``, newest first; pictures and videos unless a kind is asked for."""
    query = select(_assets).where(_assets.c.project_id == project_id)
    rest = {name: value for name, value in filters.items() if name != "kind"}
    if rest.get("favourite"):
        query = query.where(_FAVOURITE)
        del rest["favourite"]
    for name, value in rest.items():
        query = query.where(_assets.c[name] == value)
    kinds = (filters["kind"],) if "kind" in filters else LISTED_KINDS
    if filters.get("favourite") or "job_id" in filters:
        few = query.where(_assets.c.status == "stored", _assets.c.kind.in_(kinds))
        return _all(c, newest_first(few, _assets, after, limit))
    # One stretch of an index for each kind, and the newest of all of them.
    stretches = (newest_first(query.where(_STORED, _assets.c.kind == kind), _assets, after, limit) for kind in kinds)
    found = (_all(c, stretch) for stretch in stretches)
    return merged(found, limit, lambda asset: (asset.created_at, asset.id))


def of_jobs(c: Connection, project_id: str, job_ids: Sequence[str]) -> list[Asset]:
    """The stored results of some jobs, in order."""
    return [_asset(row) for row in c.execute(_OF_JOBS, {"project": project_id, "jobs": list(job_ids)}).mappings()]


def of_ids(c: Connection, project_id: str, asset_ids: Sequence[str]) -> list[Asset]:
    """Some assets that are not deleted, in no order."""
    if not asset_ids:
        return []
    query = select(_assets).where(
        _assets.c.project_id == project_id, _assets.c.id.in_(asset_ids), _assets.c.status != "deleted"
    )
    return [_asset(row) for row in c.execute(query).mappings()]


def of_attempt(c: Connection, attempt_id: str) -> list[Asset]:
    """What an attempt was given tickets for, in order."""
    return [_asset(row) for row in c.execute(_OF_ATTEMPT, {"attempt": attempt_id}).mappings()]


def ids_by_upload(c: Connection, attempt_id: str) -> dict[str, str]:
    """The files of an attempt that were promised: reference -> asset id."""
    return {upload: asset_id for upload, asset_id in c.execute(_BY_UPLOAD, {"attempt": attempt_id})}


def change(c: Connection, project_id: str, asset_id: str, values: Mapping[str, Any]) -> None:
    """Set columns of an asset."""
    c.execute(_CHANGE, {"of_project": project_id, "of_id": asset_id, **values})


def counts(c: Connection, project_id: str, character_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many stored pictures and videos some characters have: character id -> kind -> number."""
    query = (
        select(_assets.c.character_id, _assets.c.kind, func.count())
        .where(
            _assets.c.project_id == project_id,
            _assets.c.character_id.in_(character_ids),
            _assets.c.status == "stored",
            _assets.c.kind.in_(LISTED_KINDS),
        )
        .group_by(_assets.c.character_id, _assets.c.kind)
    )
    found: dict[str, dict[str, int]] = {}
    for character_id, kind, number in c.execute(query):
        found.setdefault(character_id, {})[kind] = number
    return found


def newest_of(c: Connection, project_id: str, character_ids: Sequence[str], kind: str) -> dict[str, Asset]:
    """The newest stored asset of a kind for each of some characters that has one; of one moment's the first."""
    newest = _assets.alias("newest")
    theirs = (newest.c.project_id == _characters.c.project_id, newest.c.character_id == _characters.c.id)
    moment = (
        select(func.max(newest.c.created_at))
        .where(*theirs, newest.c.kind == kind, newest.c.status == "stored")
        .scalar_subquery()
    )
    mine = (_assets.c.project_id == _characters.c.project_id, _assets.c.character_id == _characters.c.id)
    query = (
        select(_assets)
        .select_from(_characters)
        # An outer join, so that SQLite begins with the few characters; those without are left out below.
        .outerjoin(
            _assets, and_(*mine, _assets.c.kind == kind, _assets.c.status == "stored", _assets.c.created_at == moment)
        )
        .where(_characters.c.project_id == project_id, _characters.c.id.in_(character_ids))
        .order_by(_assets.c.position.desc())
    )
    found = (_asset(row) for row in c.execute(query).mappings() if row["id"] is not None)
    return {cast(str, asset.character_id): asset for asset in found}


def mark_deleted(c: Connection, project_id: str, asset_ids: Sequence[str]) -> None:
    """Take assets out of every list; their rows stay until their blobs are gone."""
    where = and_(_assets.c.project_id == project_id, _assets.c.id.in_(asset_ids))
    c.execute(update(_assets).where(where).values(status="deleted"))


def mark_character_deleted(c: Connection, project_id: str, character_id: str) -> list[Asset]:
    """Take every asset of a character out of every list, and return them."""
    where = and_(_assets.c.project_id == project_id, _assets.c.character_id == character_id)
    c.execute(update(_assets).where(where).values(status="deleted"))
    return [_asset(row) for row in c.execute(select(_assets).where(where)).mappings()]


def abandon_pending(c: Connection, created_before: float) -> None:
    """Mark as deleted the tickets of jobs that ended without them, and the images of requests that came to nothing."""
    of_ended = select(_jobs.c.id).where(_jobs.c.id == _assets.c.job_id, _jobs.c.status.in_(FINAL)).exists()
    ended = or_(of_ended, _assets.c.job_id.is_(None))
    pending = and_(_UNSETTLED, _assets.c.status == "pending", _assets.c.created_at < created_before)
    c.execute(update(_assets).where(pending, ended).values(status="deleted"))


def deleted(c: Connection, limit: int) -> list[Asset]:
    """Assets whose blobs are still to be deleted, of every project."""
    return _all(c, select(_assets).where(_UNSETTLED, _assets.c.status == "deleted").limit(limit))


def remove(c: Connection, asset_ids: Sequence[str]) -> None:
    """Delete rows whose blobs are gone."""
    c.execute(delete(_assets).where(_assets.c.id.in_(asset_ids), _assets.c.status == "deleted"))


def _is(project_id: str, asset_id: str) -> Any:
    return and_(_assets.c.project_id == project_id, _assets.c.id == asset_id)


def _all(c: Connection, query: Select[Any]) -> list[Asset]:
    return [_asset(row) for row in c.execute(query).mappings()]


def _asset(row: RowMapping) -> Asset:
    return Asset(**cast("dict[str, Any]", dict(row)))
