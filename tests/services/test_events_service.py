"""Event streams: nothing is missed, a stream can be resumed, and a job's own stream ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from controlplane.db import events as event_rows
from controlplane.domain.events import Event
from controlplane.services.events import Hints, append
from tests.services.engine import PROJECT, Engine, engine

pytestmark = pytest.mark.usefixtures("each_database")


async def happen(room: Engine, type_: str, character_id: str | None = None) -> int:
    """Write one event and wake the readers; returns its id."""

    def write(c: Connection) -> None:
        append(c, PROJECT, type_, {}, character_id=character_id)

    await room.db.write(write)
    room.hints.wake()
    return await room.db.read(event_rows.last_id, PROJECT)


async def taken(stream: AsyncIterator[Event], number: int) -> list[str]:
    return [(await asyncio.wait_for(anext(stream), 60)).type for _ in range(number)]


async def test_a_stream_begins_behind_the_event_it_resumes_from(room: Engine) -> None:
    first = await happen(room, "one")
    await happen(room, "two")
    await happen(room, "three")
    assert await taken(room.events.stream(PROJECT, after=first), 2) == ["two", "three"]


async def test_a_projects_stream_begins_now(room: Engine) -> None:
    await happen(room, "before")
    stream = room.events.stream(PROJECT)
    reading = asyncio.create_task(taken(stream, 1))
    await asyncio.sleep(0.1)
    await happen(room, "after")
    assert await reading == ["after"]


async def test_a_reader_is_woken_by_a_hint_long_before_it_would_poll(tmp_path: Path) -> None:
    async with engine(tmp_path, poll_seconds=3600.0) as room:
        reading = asyncio.create_task(taken(room.events.stream(PROJECT, after=0), 1))
        await asyncio.sleep(0.1)
        await happen(room, "now")
        assert await reading == ["now"]


async def test_an_event_without_any_hint_arrives_by_polling(room: Engine) -> None:
    reading = asyncio.create_task(taken(room.events.stream(PROJECT, after=0), 1))
    await asyncio.sleep(0.1)
    await room.db.write(append, PROJECT, "unannounced", {})
    assert await reading == ["unannounced"]


async def test_a_stream_of_one_character_shows_no_other(room: Engine) -> None:
    for character in ("a", "b", "a"):
        await happen(room, f"of {character}", character)
    stream = room.events.stream(PROJECT, character_id="a", after=0)
    assert await taken(stream, 2) == ["of a", "of a"]


async def test_a_jobs_stream_ends_after_its_final_event(room: Engine) -> None:
    job = await room.submit()
    await room.jobs.cancel(PROJECT, job.id)
    assert [event.type async for event in room.events.stream(PROJECT, job_id=job.id)] == [
        "job.queued",
        "job.cancelled",
    ]


async def test_resuming_a_jobs_stream_behind_its_final_event_ends_at_once(room: Engine) -> None:
    job = await room.submit()
    await room.jobs.cancel(PROJECT, job.id)
    last = [event.id async for event in room.events.stream(PROJECT, job_id=job.id)][-1]
    assert [event async for event in room.events.stream(PROJECT, job_id=job.id, after=last)] == []


async def test_a_hint_between_looking_and_waiting_is_not_lost() -> None:
    hints = Hints()
    seen = hints.count(Hints.JOBS)
    hints.wake(Hints.JOBS)
    await asyncio.wait_for(hints.wait(Hints.JOBS, seen, 3600.0), 60)


async def test_a_hint_wakes_everybody_who_waits() -> None:
    hints = Hints()
    waiting = [asyncio.create_task(hints.wait(Hints.EVENTS, 0, 3600.0)) for _ in range(3)]
    await asyncio.sleep(0)
    hints.wake(Hints.EVENTS)
    await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert all(task.done() for task in waiting)


async def test_a_cancel_that_meets_a_hint_is_not_lost() -> None:
    hints = Hints()
    waiting = asyncio.create_task(hints.wait(Hints.EVENTS, 0, 3600.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    hints.wake(Hints.EVENTS)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
