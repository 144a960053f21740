"""Notes: what is learned about held jobs is written together, and with the outcome where that comes at once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import Connection

from controlplane.db import attempts as attempt_rows
from controlplane.db import held as held_rows
from controlplane.domain.ids import new_prompt_id
from controlplane.domain.jobs import CLAIMED, Attempt, Job
from controlplane.domain.pods import Pod
from controlplane.services import notes as notes_module
from controlplane.services.holding import Held
from controlplane.services.notes import Notes
from controlplane.services.outcomes import NO_NEWS, News
from tests.comfy.comfyui_double import ComfyUIDouble
from tests.services.engine import PROJECT, Engine
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("each_database")


@pytest.fixture
async def notes(room: Engine) -> AsyncIterator[Notes]:
    made = Notes(room.db, room.clock, room.hints)
    yield made
    await made.close()


@pytest.fixture
async def pod(room: Engine, double: ComfyUIDouble) -> Pod:
    return (await room.register(double))[0]


SLOTS = itertools.count()


async def held(room: Engine, pod: Pod) -> Held:
    """A claimed job with an attempt, which has a place of its own on the pod."""
    job = await room.submit()
    now = room.clock.now()
    place = next(SLOTS)
    attempt = Attempt(new_prompt_id(), PROJECT, job.id, 1, pod.id, new_prompt_id(), "created", now, slot=place)

    def claim(c: Connection) -> Job:
        attempt_rows.add(c, PROJECT, attempt)
        return held_rows.put(c, job, status=CLAIMED, claimed_by="a test", lease_until=now + 60.0)

    return Held(await room.db.write(claim), attempt, pod, resumed=False)


def transactions(room: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the fenced writes from now on."""
    names: list[str] = []
    real = room.db.write_fenced

    async def spied(fn: Callable[..., Any], *args: Any) -> Any:
        names.append(fn.__name__)
        return await real(fn, *args)

    monkeypatch.setattr(room.db, "write_fenced", spied)
    return names


async def test_notes_on_several_jobs_are_written_together(
    room: Engine, pod: Pod, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = [await held(room, pod) for _ in range(3)]
    names = transactions(room, monkeypatch)
    for one in ours:
        notes.add(one, News(submitted_at=1.0, started_at=2.0))
    for one in ours:
        await room.reached(one.job, lambda view: view.job.status == "running")
    assert names == ["write_notes"]


async def test_a_note_on_a_job_that_another_process_has_does_not_spoil_the_others(
    room: Engine, pod: Pod, notes: Notes
) -> None:
    stolen, ours = await held(room, pod), await held(room, pod)

    def steal(c: Connection) -> Job:
        return held_rows.put(c, stolen.job, claim_no=stolen.job.claim_no + 1)

    await room.db.write(steal)
    notes.add(stolen, News(started_at=2.0))
    notes.add(ours, News(started_at=2.0))
    await room.reached(ours.job, lambda view: view.job.status == "running")
    assert (await room.view(stolen.job)).job.status == "claimed"


async def test_a_note_that_cannot_be_written_does_not_spoil_the_others(
    room: Engine, pod: Pod, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, ours = await held(room, pod), await held(room, pod)
    real = notes_module.note

    def note(c: Connection, job: Job, *arguments: Any) -> Job:
        if job.id == wrong.job.id:
            raise ValueError("cannot be written")
        return real(c, job, *arguments)

    monkeypatch.setattr(notes_module, "note", note)
    notes.add(wrong, News(started_at=2.0))
    notes.add(ours, News(started_at=2.0))
    await room.reached(ours.job, lambda view: view.job.status == "running")
    await until(lambda: wrong.news == News(started_at=2.0))


async def test_what_is_taken_in_time_is_not_written_by_itself(
    room: Engine, pod: Pod, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await held(room, pod)
    names = transactions(room, monkeypatch)
    notes.add(one, News(submitted_at=1.0))
    taken = await notes.take(one)
    await notes.close()
    assert (taken, names, one.news) == (News(submitted_at=1.0), [], NO_NEWS)


async def test_what_is_being_written_is_waited_for(
    room: Engine, pod: Pod, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await held(room, pod)
    real, begun, go_on = room.db.write_fenced, asyncio.Event(), asyncio.Event()

    async def slowly(fn: Callable[..., Any], *args: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await real(fn, *args)

    monkeypatch.setattr(room.db, "write_fenced", slowly)
    notes.add(one, News(started_at=2.0), soon=True)
    await begun.wait()
    taking = asyncio.create_task(notes.take(one))
    await asyncio.sleep(0.05)
    early = taking.done()
    go_on.set()
    assert (early, await taking, (await room.view(one.job)).job.status) == (False, NO_NEWS, "running")


async def test_progress_of_a_job_is_written_at_most_once_a_second(room: Engine, pod: Pod, notes: Notes) -> None:
    one = await held(room, pod)
    for percent in (10.0, 20.0, 30.0):
        notes.add(one, News(progress={"phase": "running", "percent": percent}), soon=True)
        await asyncio.sleep(0.2)
    await notes.close()
    assert (await room.view(one.job)).job.progress["percent"] == 10.0


async def test_a_cancelled_job_is_not_brought_back_by_a_note(room: Engine, pod: Pod, notes: Notes) -> None:
    one = await held(room, pod)
    await room.jobs.cancel(PROJECT, one.job.id)
    notes.add(one, News(started_at=2.0))
    await room.reached(one.job, lambda view: view.job.started_at)
    assert (await room.view(one.job)).job.status == "cancelling"


async def test_a_short_job_is_written_in_one_transaction_behind_its_claim(
    room: Engine, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes_module, "PAUSE_SECONDS", 30.0)
    monkeypatch.setattr(notes_module, "SOON_SECONDS", 30.0)
    names = transactions(room, monkeypatch)
    room.start()
    job = await room.submit()
    await room.final(job)
    steps = [name for name in names if name in ("write_notes", "succeed")]
    assert (steps, await room.told(job)) == (["succeed"], ["job.queued", "job.started", "job.succeeded"])


async def test_a_short_job_has_all_its_times(room: Engine, pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes_module, "PAUSE_SECONDS", 30.0)
    room.start()
    view = await room.final(await room.submit())
    attempt = view.attempts[0]
    assert view.job.started_at == attempt.started_at
    assert attempt.submitted_at is not None
    assert attempt.started_at is not None
