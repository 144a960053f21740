"""SQL of characters and versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, update
from sqlalchemy.engine import RowMapping

from controlplane.db import tables
from controlplane.db.rows import newest_first
from controlplane.domain.characters import Character, Consent, Version
from controlplane.domain.jobs import FINAL
from controlplane.domain.pages import Position

_characters = tables.characters
_versions = tables.versions

# What every request for a picture asks is composed once, not each time.
_ONE = and_(_characters.c.project_id == bindparam("project"), _characters.c.id == bindparam("id"))
_GET = select(_characters).where(_ONE)
_KEEP = select(_characters.c.id).where(_ONE).with_for_update(read=True, key_share=True)
_GET_VERSION = select(_versions).where(
    _versions.c.project_id == bindparam("project"),
    _versions.c.character_id == bindparam("id"),
    _versions.c.number == bindparam("number"),
)


def insert_character(c: Connection, character: Character) -> None:
    """Write a new character; its slug must be free."""
    values = asdict(character)
    c.execute(insert(_characters).values(**values))


def get(c: Connection, project_id: str, character_id: str) -> Character | None:
    """One character."""
    row = c.execute(_GET, {"project": project_id, "id": character_id}).mappings().first()
    return _character(row) if row is not None else None


def keep(c: Connection, project_id: str, character_id: str) -> None:
    """Let nobody delete a character before the transaction that makes something of it has ended."""
    if c.dialect.name != "sqlite":  # which has one writer anyway
        c.execute(_KEEP, {"project": project_id, "id": character_id})


def lock(c: Connection, project_id: str, character_id: str) -> None:
    """Let nobody else change a character, or make something of it, until the transaction ends."""
    c.execute(select(_characters.c.id).where(_is(project_id, character_id)).with_for_update())


def lock_names(c: Connection, project_id: str) -> None:
    """Let nobody else give a character of the project its id and trigger word until the transaction ends."""
    projects = tables.projects
    c.execute(select(projects.c.id).where(projects.c.id == project_id).with_for_update())


def page(c: Connection, project_id: str, after: Position | None, limit: int) -> list[Character]:
    """Characters, newest first, behind a position."""
    query = select(_characters).where(_characters.c.project_id == project_id)
    return [_character(row) for row in c.execute(newest_first(query, _characters, after, limit)).mappings()]


def is_taken(c: Connection, project_id: str, slug: str) -> bool:
    """Whether a character has this slug."""
    return c.execute(select(_characters.c.id).where(_is(project_id, slug))).first() is not None


@dataclass(frozen=True)
class Triggers:
    """The trigger words of a project's characters; each is looked up, as there may be a hundred thousand."""

    connection: Connection
    project_id: str

    def __contains__(self, word: object) -> bool:
        taken = and_(_characters.c.project_id == self.project_id, _characters.c.trigger_word == word)
        return self.connection.execute(select(_characters.c.id).where(taken).limit(1)).first() is not None


def triggers(c: Connection, project_id: str) -> Triggers:
    """Every trigger word of the project, for as long as the transaction goes on."""
    return Triggers(c, project_id)


def change(c: Connection, project_id: str, character_id: str, values: Mapping[str, Any], now: float) -> None:
    """Set columns of a character."""
    c.execute(update(_characters).where(_is(project_id, character_id)).values(**values, updated_at=now))


def forget_cover(c: Connection, project_id: str, character_id: str, asset_id: str) -> None:
    """Choose no cover any more where this asset was it."""
    where = and_(_is(project_id, character_id), _characters.c.cover_asset_id == asset_id)
    c.execute(update(_characters).where(where).values(cover_asset_id=None))


def unfinished_jobs(c: Connection, project_id: str, character_id: str) -> list[str]:
    """The ids of a character's jobs that are not over."""
    jobs = tables.jobs
    query = select(jobs.c.id).where(
        jobs.c.project_id == project_id, jobs.c.character_id == character_id, jobs.c.status.not_in(FINAL)
    )
    return list(c.execute(query).scalars())


def remove(c: Connection, project_id: str, character_id: str) -> None:
    """Delete a character with its versions."""
    c.execute(delete(_versions).where(_version_of(project_id, character_id)))
    c.execute(delete(_characters).where(_is(project_id, character_id)))


def insert_version(c: Connection, version: Version) -> None:
    """Write a new version."""
    c.execute(insert(_versions).values(**asdict(version)))


def get_version(c: Connection, project_id: str, character_id: str, number: int) -> Version | None:
    """One version of a character."""
    found = c.execute(_GET_VERSION, {"project": project_id, "id": character_id, "number": number})
    row = found.mappings().first()
    return _version(row) if row is not None else None


def version_of_job(c: Connection, project_id: str, job_id: str) -> Version | None:
    """The version that a train job makes."""
    query = select(_versions).where(_versions.c.project_id == project_id, _versions.c.job_id == job_id)
    row = c.execute(query).mappings().first()
    return _version(row) if row is not None else None


def versions(c: Connection, project_id: str, character_ids: Sequence[str]) -> list[Version]:
    """Every version of some characters, by number."""
    query = (
        select(_versions)
        .where(_versions.c.project_id == project_id, _versions.c.character_id.in_(character_ids))
        .order_by(_versions.c.character_id, _versions.c.number)
    )
    return [_version(row) for row in c.execute(query).mappings()]


def last_number(c: Connection, project_id: str, character_id: str) -> int:
    """The highest version number so far, 0 before the first."""
    query = select(func.max(_versions.c.number)).where(_version_of(project_id, character_id))
    return c.execute(query).scalar() or 0


def change_version(c: Connection, project_id: str, character_id: str, number: int, values: Mapping[str, Any]) -> None:
    """Set columns of a version."""
    where = and_(_version_of(project_id, character_id), _versions.c.number == number)
    c.execute(update(_versions).where(where).values(**values))


def _is(project_id: str, character_id: str) -> Any:
    return and_(_characters.c.project_id == project_id, _characters.c.id == character_id)


def _version_of(project_id: str, character_id: str) -> Any:
    return and_(_versions.c.project_id == project_id, _versions.c.character_id == character_id)


def _character(row: RowMapping) -> Character:
    values = cast("dict[str, Any]", dict(row))
    consent = values.pop("consent")
    return Character(**values, consent=Consent(**consent) if consent else None)


def _version(row: RowMapping) -> Version:
    return Version(**cast("dict[str, Any]", dict(row)))
