"""Event streams: one look at the log for everybody, no gap, nothing twice, and an end where it was cut off."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from controlplane.db import events as event_rows
from controlplane.domain.events import Event
from controlplane.services import event_tail
from controlplane.services.event_pruning import PROGRESS_SECONDS, EventPruning
from controlplane.services.event_streams import EventStream
from controlplane.services.event_tail import Reader, TooSlow, Wanted
from controlplane.services.events import append
from tests.services.engine import PROJECT, Engine, engine

pytestmark = pytest.mark.usefixtures("each_database")

DAY = 24 * 3600.0


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Engine]:
    async with engine(tmp_path) as made:
        yield made


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From where the tail of the log was read, each time that it was."""
    found: list[int] = []
    real = event_rows.of_all_projects

    def look(c: Connection, after: int, limit: int) -> list[Event]:
        found.append(after)
        return real(c, after, limit)

    monkeypatch.setattr(event_rows, "of_all_projects", look)
    return found


async def happen(room: Engine, *types: str, job_id: str | None = None, character_id: str | None = None) -> None:
    """Write events in one transaction and wake the readers."""

    def write(c: Connection) -> None:
        for type_ in types:
            append(c, PROJECT, type_, {}, job_id=job_id, character_id=character_id, now=room.clock.now())

    await room.db.write(write)
    room.hints.wake()


async def taken(stream: EventStream, number: int) -> list[str]:
    """The types of the next so many events, or of all that are left."""
    found: list[Event] = []
    async with asyncio.timeout(60):
        while len(found) < number and not (stream.over and not stream.has_more):
            found += await stream.take(1.0)
    return [event.type for event in found]


async def prune(room: Engine) -> None:
    await EventPruning(room.db, room.clock, room.settings).sweep()


async def test_two_hundred_readers_cost_one_look_at_each_wake(tmp_path: Path, looks: list[int]) -> None:
    async with engine(tmp_path, poll_seconds=3600.0) as room:
        streams = [await room.events.open(Wanted(PROJECT)) for _ in range(200)]
        reading = [asyncio.create_task(taken(stream, 1)) for stream in streams]
        await asyncio.sleep(0.2)
        looks.clear()
        await happen(room, "job.queued")
        assert {tuple(got) for got in await asyncio.gather(*reading)} == {("job.queued",)}
        assert len(looks) <= 2
        for stream in streams:
            stream.close()


async def test_nobody_listens_nobody_looks(room: Engine, looks: list[int]) -> None:
    (await room.events.open(Wanted(PROJECT))).close()
    await asyncio.sleep(0.1)
    looks.clear()
    await happen(room, "job.queued")
    await asyncio.sleep(0.2)
    assert looks == []


@pytest.mark.parametrize("behind", [0, 1, 350])
async def test_a_reader_that_comes_while_things_happen_misses_nothing_and_gets_nothing_twice(
    room: Engine, behind: int
) -> None:
    await happen(room, *["old"] * (behind + 1))
    first = await room.db.read(event_rows.last_id) - behind

    async def go_on() -> None:
        for number in range(120):
            await happen(room, f"new {number}")

    writing = asyncio.create_task(go_on())
    stream = await room.events.open(Wanted(PROJECT), after=first)
    got = await taken(stream, behind + 120)
    await writing
    stream.close()
    assert got == ["old"] * behind + [f"new {number}" for number in range(120)]


async def test_readers_of_one_thing_hear_of_nothing_else(room: Engine) -> None:
    streams = [
        await room.events.open(Wanted(PROJECT, character_id="a")),
        await room.events.open(Wanted(PROJECT, types=frozenset({"two"}))),
        await room.events.open(Wanted("another")),
        await room.events.open(Wanted(PROJECT)),
    ]
    await happen(room, "one", character_id="a")
    await happen(room, "two", character_id="b")
    await happen(room, "end", character_id="a")
    assert await taken(streams[3], 3) == ["one", "two", "end"]
    assert await taken(streams[0], 2) == ["one", "end"]
    assert await taken(streams[1], 1) == ["two"]
    assert await streams[2].take(0.1) == []
    for stream in streams:
        stream.close()


async def test_a_rare_type_far_back_is_found(room: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_rows, "WINDOW", 50)
    await happen(room, "first", *["common"] * 300, "rare", *["common"] * 300, "rare")
    stream = await room.events.open(Wanted(PROJECT, types=frozenset({"rare"})), after=1)
    assert await taken(stream, 2) == ["rare", "rare"]
    stream.close()


async def test_a_reader_that_lets_things_lie_finds_them_in_the_table(
    room: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_tail, "ROOM", 3)
    stream = await room.events.open(Wanted(PROJECT))
    for number in range(12):
        await happen(room, str(number))
    await asyncio.sleep(0.3)
    assert await taken(stream, 12) == [str(number) for number in range(12)]
    await happen(room, "live again")
    assert await taken(stream, 1) == ["live again"]
    stream.close()


async def test_little_is_kept_for_a_reader_that_takes_nothing(room: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_tail, "ROOM", 3)
    reader = Reader(Wanted(PROJECT))
    for number in range(12):
        reader.offer(Event(number, PROJECT, "one", {}, 0.0))
    with pytest.raises(TooSlow):
        await reader.take(1.0)


async def test_a_database_that_is_away_for_a_moment_ends_no_stream(
    room: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_tail, "TROUBLE_SECONDS", 0.05)
    real, faults = event_rows.of_all_projects, itertools.count()

    def away(c: Connection, after: int, limit: int) -> list[Event]:
        if next(faults) in (1, 2):
            raise OSError("no route to the database")
        return real(c, after, limit)

    monkeypatch.setattr(event_rows, "of_all_projects", away)
    stream = await room.events.open(Wanted(PROJECT))
    await happen(room, "one")
    await happen(room, "two")
    assert await taken(stream, 2) == ["one", "two"]
    stream.close()


async def test_of_a_finished_jobs_progress_only_the_last_word_is_kept(room: Engine) -> None:
    done, running = "job_done", "job_running"
    await happen(room, "job.queued", *["job.progress"] * 5, "job.succeeded", job_id=done)
    await happen(room, "job.queued", *["job.progress"] * 5, job_id=running)
    room.clock.ahead += PROGRESS_SECONDS + 1
    await prune(room)
    left = await room.db.read(event_rows.after, PROJECT, 0)
    assert [event.type for event in left if event.job_id == done] == ["job.queued", "job.progress", "job.succeeded"]
    assert [event.type for event in left if event.job_id == running] == ["job.queued", *["job.progress"] * 5]


async def test_progress_is_kept_for_a_while_after_the_end(room: Engine) -> None:
    await happen(room, *["job.progress"] * 5, "job.succeeded", job_id="job_done")
    await prune(room)
    assert len(await room.db.read(event_rows.after, PROJECT, 0)) == 6


async def test_pruning_goes_on_where_it_stopped(room: Engine) -> None:
    for job_id in ("job_1", "job_2"):
        await happen(room, *["job.progress"] * 3, "job.succeeded", job_id=job_id)
        room.clock.ahead += PROGRESS_SECONDS + 1
        await prune(room)
    left = await room.db.read(event_rows.after, PROJECT, 0)
    assert [event.type for event in left] == ["job.progress", "job.succeeded"] * 2


async def test_many_events_are_pruned_in_small_bites(room: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.services.event_pruning.BITE", 7)
    for number in range(5):
        await happen(room, *["job.progress"] * 20, "job.succeeded", job_id=f"job_{number}")
    room.clock.ahead += PROGRESS_SECONDS + 1
    await prune(room)
    left = await room.db.read(event_rows.after, PROJECT, 0)
    assert [event.type for event in left] == ["job.progress", "job.succeeded"] * 5


async def test_old_events_go(room: Engine) -> None:
    await happen(room, "old", "old")
    room.clock.ahead += room.settings.event_days * DAY + 1
    await happen(room, "new")
    await prune(room)
    assert [event.type for event in await room.db.read(event_rows.after, PROJECT, 0)] == ["new"]


async def test_who_comes_back_behind_what_is_gone_is_told_of_the_gap(room: Engine) -> None:
    await happen(room, "one", "two", "three")
    room.clock.ahead += room.settings.event_days * DAY + 1
    await prune(room)
    await happen(room, "new")
    stream = await room.events.open(Wanted(PROJECT), after=1)
    events = await stream.take(1.0)
    stream.close()
    assert [(event.type, event.id) for event in events] == [("stream.gap", 3), ("new", 4)]


async def test_who_comes_back_in_time_is_told_of_no_gap(room: Engine) -> None:
    await happen(room, "one", "two", "three")
    room.clock.ahead += room.settings.event_days * DAY + 1
    await prune(room)
    await happen(room, "new")
    stream = await room.events.open(Wanted(PROJECT), after=3)
    assert await taken(stream, 1) == ["new"]
    stream.close()


async def cancelled_and_pruned(room: Engine) -> tuple[str, int]:
    """A job that is over and of which no event is left; also its last event's id."""
    job = await room.submit()
    await room.jobs.cancel(PROJECT, job.id)
    last = await room.db.read(event_rows.last_id)
    room.clock.ahead += room.settings.event_days * DAY + 1
    await prune(room)
    return job.id, last


async def test_a_jobs_stream_ends_with_its_state_where_its_events_are_gone(room: Engine) -> None:
    job_id, _ = await cancelled_and_pruned(room)
    stream = room.events.stream(PROJECT, job_id=job_id)
    assert [(event.type, event.data["status"]) async for event in stream] == [("job.cancelled", "cancelled")]


async def test_who_saw_a_jobs_end_is_not_told_again_when_its_events_are_gone(room: Engine) -> None:
    job_id, last = await cancelled_and_pruned(room)
    assert [event async for event in room.events.stream(PROJECT, job_id=job_id, after=last)] == []


async def test_who_missed_a_jobs_end_is_told_it_when_its_events_are_gone(room: Engine) -> None:
    job_id, last = await cancelled_and_pruned(room)
    told = [event.type async for event in room.events.stream(PROJECT, job_id=job_id, after=last - 1)]
    assert told == ["stream.gap", "job.cancelled"]


async def test_the_end_that_was_made_up_is_not_made_up_twice(room: Engine) -> None:
    job_id, _ = await cancelled_and_pruned(room)
    made_up = [event.id async for event in room.events.stream(PROJECT, job_id=job_id)][-1]
    assert [event async for event in room.events.stream(PROJECT, job_id=job_id, after=made_up)] == []


async def test_the_events_of_one_transaction_come_in_their_order(room: Engine) -> None:
    await happen(room, *(str(number) for number in range(250)))
    left = await room.db.read(lambda c: event_rows.after(c, PROJECT, 0, limit=1000))
    assert [event.type for event in left] == [str(number) for number in range(250)]
