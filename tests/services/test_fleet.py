"""The fleet in memory: it learns what others do, and keeps what this process did while it looked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.db import attempts as attempt_rows
from controlplane.db import pods as pod_rows
from controlplane.services import fleet as fleet_module
from controlplane.services.events import Hints
from controlplane.services.fleet import Fleet
from tests.services.engine import PROJECT, Engine, engine
from tests.services.test_claiming import pod


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Engine]:
    async with engine(tmp_path, poll_seconds=3600.0) as made:
        yield made


def another(room: Engine) -> Fleet:
    return Fleet(room.db, room.clock, room.hints, room.settings)


async def test_what_another_process_gave_and_ended_is_learned(room: Engine) -> None:
    mine = await pod(room)
    await room.submit()
    (claimed,) = await room.claim("other")
    await room.fleet.refresh(at_once=True)
    given = len(room.fleet.load(mine.id).live)
    assert claimed.attempt is not None
    over = claimed.attempt.id
    await room.db.write(lambda c: attempt_rows.change(c, PROJECT, over, status="succeeded"))
    await room.fleet.refresh(at_once=True)
    assert (given, len(room.fleet.load(mine.id).live)) == (1, 0)


async def test_what_is_given_while_we_look_is_not_forgotten(room: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = await pod(room)
    await room.fleet.refresh(at_once=True)
    await room.submit()
    looked, go_on = asyncio.Event(), asyncio.Event()
    read = room.db.read

    async def slow(*arguments: object) -> object:
        found = await read(*arguments)  # type: ignore[arg-type]
        looked.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(room.db, "read", slow)
    looking = asyncio.create_task(room.fleet.refresh(at_once=True))
    await looked.wait()
    monkeypatch.undo()
    other = another(room)
    (claimed,) = await room.claim(fleet=other)
    assert claimed.attempt is not None
    room.fleet.gave(other_occupied(other, mine.id))
    go_on.set()
    await looking
    assert [one.attempt_id for one in room.fleet.load(mine.id).live] == [claimed.attempt.id]


def other_occupied(seen: Fleet, pod_id: str) -> list[attempt_rows.Occupied]:
    return [attempt_rows.Occupied(one, pod_id, None, None) for one in seen.load(pod_id).live]


async def test_what_ended_while_we_looked_does_not_come_back(room: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = await pod(room)
    await room.submit()
    (claimed,) = await room.claim(fleet=room.fleet)
    assert claimed.attempt is not None
    read = room.db.read
    ended = claimed.attempt.id

    async def meanwhile(*arguments: object) -> object:
        found = await read(*arguments)  # type: ignore[arg-type]
        room.fleet.ended(ended)
        return found

    monkeypatch.setattr(room.db, "read", meanwhile)
    await room.fleet.refresh(at_once=True)
    assert room.fleet.load(mine.id).live == ()


async def test_a_hint_of_pods_is_followed_without_waiting_for_the_poll(
    room: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "HINT_SECONDS", 0.0)
    await room.fleet.refresh(at_once=True)
    await pod(room)
    await room.fleet.refresh()
    assert len(room.fleet.pods) == 1


async def test_without_a_hint_the_pods_are_not_read_again(room: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    await room.fleet.refresh(at_once=True)
    asked: list[object] = []
    monkeypatch.setattr(room.db, "read", lambda *arguments: asked.append(arguments))
    room.hints.wake(Hints.JOBS, Hints.EVENTS)
    await room.fleet.refresh()
    assert asked == []


async def test_only_pods_whose_rows_were_written_are_read_in_full(
    room: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pod(room, 1)
    changed = await pod(room, 2)
    await room.fleet.refresh(at_once=True)
    read: list[list[str]] = []
    real = pod_rows.of_ids
    monkeypatch.setattr(pod_rows, "of_ids", lambda c, ids: (read.append(list(ids)), real(c, ids))[1])
    await room.pods.drain(changed.id)
    await room.fleet.refresh(at_once=True)
    assert (read, room.fleet.pods[changed.id].state) == ([[changed.id]], "draining")


async def test_a_new_process_knows_what_is_resident_from_the_newest_attempt(room: Engine) -> None:
    mine = await pod(room)
    await room.submit(base_model="base", needs={"nodes": ["Replay"], "lora_sha256": "abc"})
    (claimed,) = await room.claim()
    assert claimed.attempt is not None
    over = claimed.attempt.id
    await room.db.write(lambda c: attempt_rows.change(c, PROJECT, over, status="succeeded"))
    new = another(room)
    await new.refresh(at_once=True)
    load = new.load(mine.id)
    assert (load.base_model, load.lora_sha256, load.live) == ("base", "abc", ())


async def test_a_waiting_job_is_explained_from_memory(room: Engine) -> None:
    await pod(room)
    await room.fleet.refresh(at_once=True)
    job = await room.submit(needs={"nodes": ["TrainLoRA"]})
    told = room.fleet.explain(job)
    assert "lacks node class TrainLoRA" in (told or {})["reason"]


async def test_nothing_is_explained_before_anybody_has_looked(room: Engine) -> None:
    assert room.fleet.explain(await room.submit()) is None


async def test_what_a_pod_lacks_is_worked_out_anew_when_it_registers_again(room: Engine) -> None:
    await pod(room, node_classes=[])
    await room.submit()
    before = len(await room.claim(fleet=room.fleet))
    await pod(room)
    assert (before, len(await room.claim(fleet=room.fleet))) == (0, 1)
