"""Character summaries: what lists show of a character, read in a handful of queries for a whole page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from controlplane.db import assets as asset_rows
from controlplane.db import characters as character_rows
from controlplane.db import jobs as job_rows
from controlplane.domain.assets import Asset
from controlplane.domain.characters import Character, CharacterStatus, Version, status_of
from controlplane.domain.jobs import Job
from controlplane.errors import CharacterNotFound


@dataclass(frozen=True)
class CharacterSummary:
    """A character as lists show it. ``counts`` are images, videos and versions; ``cover`` may be a private asset."""

    character: Character
    status: CharacterStatus
    versions: tuple[Version, ...]
    cover: Asset | None
    counts: Mapping[str, int]
    last_job: Job | None


def character_of(c: Connection, project_id: str, character_id: str) -> Character:
    """One character; CharacterNotFound."""
    character = character_rows.get(c, project_id, character_id)
    if character is None:
        raise CharacterNotFound(f"There is no character {character_id!r}.")
    return character


def summary_of(c: Connection, project_id: str, character_id: str) -> CharacterSummary:
    """One character's summary; CharacterNotFound."""
    return summaries_of(c, project_id, [character_of(c, project_id, character_id)])[0]


def summaries_of(c: Connection, project_id: str, characters: Sequence[Character]) -> list[CharacterSummary]:
    """The summaries of some characters, in their order."""
    ids = [character.id for character in characters]
    versions = character_rows.versions(c, project_id, ids)
    counts = asset_rows.counts(c, project_id, ids)
    last_jobs = job_rows.latest_of_characters(c, project_id, ids)
    covers = _covers(c, project_id, characters)
    summaries = []
    for character in characters:
        own = tuple(version for version in versions if version.character_id == character.id)
        made = counts.get(character.id, {})
        summaries.append(
            CharacterSummary(
                character=character,
                status=status_of(character, list(own)),
                versions=own,
                cover=covers.get(character.id),
                counts={"images": made.get("image", 0), "videos": made.get("video", 0), "versions": len(own)},
                last_job=last_jobs.get(character.id),
            )
        )
    return summaries


def _covers(c: Connection, project_id: str, characters: Sequence[Character]) -> dict[str, Asset]:
    """The chosen cover of each character, else its newest picture, else what its training drew, else a reference."""
    ids = [character.id for character in characters]
    covers: dict[str, Asset] = {}
    for kind in ("dataset", "sample", "image"):
        covers.update(asset_rows.newest_of(c, project_id, ids, kind))
    chosen = {one.cover_asset_id: one.id for one in characters if one.cover_asset_id is not None}
    for asset in asset_rows.of_ids(c, project_id, list(chosen)):
        covers[chosen[asset.id]] = asset
    return covers
