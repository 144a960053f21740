"""A creation whose COMMIT got no answer: what was stored keeps its images, what was not leaves none behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.errors import CommitUnknown
from controlplane.services.assets import Assets
from controlplane.services.characters import NewCharacter, TrainAgain
from tests.services.character_studio import PROJECT, Clock, Studio, studio


@pytest.fixture
async def s(tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Studio]:
    monkeypatch.setenv("TROUPE_DATABASE_URL", postgresql_url)
    async with studio(tmp_path) as made:
        yield made


def lose_answer(s: Studio, monkeypatch: pytest.MonkeyPatch, name: str, *, commits: bool) -> None:
    """Let the answer to the COMMIT of one function get lost, after or before it was done."""
    once = s.db._write_once

    def lost(fn: Any, *args: Any) -> Any:
        if fn.__name__ != name:
            return once(fn, *args)
        if commits:
            once(fn, *args)
        raise CommitUnknown

    monkeypatch.setattr(s.db, "_write_once", lost)


async def test_a_creation_that_was_stored_is_answered_and_keeps_its_images(
    s: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_answer(s, monkeypatch, "_insert", commits=True)
    created = await s.create("Mira")
    assert (created.character.character.id, len(created.report.usable), len(await s.files())) == ("mira", 6, 6)
    assert await s.rows("jobs") == 1


async def test_a_creation_that_was_not_stored_leaves_no_images(s: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_answer(s, monkeypatch, "_insert", commits=False)
    with pytest.raises(CommitUnknown):
        await s.create("Mira")
    assert (await s.files(), await s.rows("characters")) == ([], 0)


async def test_a_further_version_that_was_stored_is_answered_and_keeps_its_images(
    s: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    await s.create("Mira")
    lose_answer(s, monkeypatch, "_insert_again", commits=True)
    again = await s.characters.train_again(PROJECT, "mira", TrainAgain(), uploads=s.pictures(seed=2))
    assert (again.job.version, len(await s.files())) == (2, 12)


async def test_images_stay_where_nobody_can_say_whether_they_are_needed(
    s: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = s.db._write_once

    def away(fn: Any, *args: Any) -> Any:
        if fn.__name__ in ("announce_dataset", "_insert"):
            answer = once(fn, *args)
            if fn.__name__ == "announce_dataset":
                return answer
        raise CommitUnknown

    with monkeypatch.context() as patched:
        patched.setattr(s.db, "_write_once", away)
        with pytest.raises(CommitUnknown):
            await s.characters.create(PROJECT, NewCharacter("Mira"), s.pictures())
    assert (len(await s.files()), await s.rows("characters")) == (6, 1)


async def test_images_of_a_process_that_died_before_it_wrote_their_rows_are_swept_away(
    s: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def died(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(s.characters, "_queued", died)
        with pytest.raises(KeyboardInterrupt):
            await s.characters.create(PROJECT, NewCharacter("Mira"), s.pictures())
    left = len(await s.files())
    at_once = s.settings.model_copy(update={"asset_grace_seconds": -1.0})
    await Assets(s.db, s.store, Clock(), at_once).sweep()
    assert (left, await s.files(), await s.rows("assets")) == (6, [], 0)
