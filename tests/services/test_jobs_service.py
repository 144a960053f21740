"""The jobs service: what is accepted is shown as it was accepted, page by page, and can be waited for."""

from __future__ import annotations

import asyncio
from types import MappingProxyType

import pytest
from sqlalchemy import update

from controlplane.db.tables import jobs as job_table
from controlplane.errors import NotFound, Unprocessable
from controlplane.services.jobs import Jobs
from tests.services.engine import PROJECT, Engine

pytestmark = pytest.mark.usefixtures("each_database")


async def test_a_job_reads_as_it_was_accepted(room: Engine) -> None:
    job = await room.submit(seed=2**53 - 1, files=[("in.png", "default/_/x.png")], metadata={"a": [1, {"b": None}]})
    assert (await room.view(job)).job == job


async def test_read_only_mappings_are_stored_too(room: Engine) -> None:
    job = await room.submit(request=MappingProxyType({"prompt": ("a", "b")}))
    assert (await room.view(job)).job.request == {"prompt": ["a", "b"]}


async def test_an_id_chosen_beforehand_is_kept(room: Engine) -> None:
    assert (await room.submit(id="job_chosen")).id == "job_chosen"


async def test_an_unknown_job_is_not_found(room: Engine) -> None:
    with pytest.raises(NotFound):
        await room.jobs.get(PROJECT, "job_nobody")


async def test_a_job_of_another_project_is_not_found(room: Engine) -> None:
    job = await room.submit()
    with pytest.raises(NotFound):
        await room.jobs.get("another", job.id)


async def test_pages_show_every_job_once_newest_first(room: Engine) -> None:
    accepted = [(await room.submit()).id for _ in range(7)]
    shown: list[str] = []
    cursor: str | None = None
    while True:
        page = await room.jobs.list(PROJECT, limit=3, cursor=cursor)
        shown += [view.job.id for view in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert shown == accepted[::-1]


async def test_a_list_can_be_narrowed_to_a_character_kind_and_status(room: Engine) -> None:
    wanted = await room.submit(character_id="mira", kind="train")
    await room.submit(character_id="mira")
    await room.submit(kind="train")
    page = await room.jobs.list(PROJECT, character_id="mira", kind="train", statuses=["queued"])
    assert [view.job.id for view in page.items] == [wanted.id]


async def test_a_list_can_be_narrowed_to_several_statuses(room: Engine) -> None:
    waiting, cancelled = await room.submit(), await room.submit()
    await room.jobs.cancel(PROJECT, cancelled.id)
    statuses = (["queued"], ["cancelled"], ["queued", "cancelled"], ["running"])
    pages = [await room.jobs.list(PROJECT, statuses=one) for one in statuses]
    found = [[view.job.id for view in page.items] for page in pages]
    assert found == [[waiting.id], [cancelled.id], [cancelled.id, waiting.id], []]


async def test_a_list_can_be_narrowed_to_a_time(room: Engine) -> None:
    first, second, third = [await room.submit() for _ in range(3)]
    page = await room.jobs.list(PROJECT, created_from=first.created_at, created_before=third.created_at)
    assert [view.job.id for view in page.items] == [second.id, first.id]


async def test_a_strange_cursor_is_refused(room: Engine) -> None:
    with pytest.raises(Unprocessable):
        await room.jobs.list(PROJECT, cursor="nonsense")


async def test_waiting_ends_when_the_job_does(room: Engine) -> None:
    job = await room.submit()
    waiting = asyncio.create_task(room.jobs.wait(PROJECT, job.id, 3600.0))
    await asyncio.sleep(0.05)
    await room.jobs.cancel(PROJECT, job.id)
    assert (await asyncio.wait_for(waiting, 60)).job.status == "cancelled"


async def test_waiting_gives_up_after_its_time(room: Engine) -> None:
    job = await room.submit()
    assert (await room.jobs.wait(PROJECT, job.id, 0.05)).job.status == "queued"


async def test_a_waiting_job_is_explained_when_somebody_looks(room: Engine) -> None:
    told = {"pod_id": None, "reason": "every pod is busy", "considered": []}
    jobs = Jobs(room.db, room.clock, room.hints, explain=lambda job, failed_on: told)
    job = await room.submit()
    assert (await jobs.get(PROJECT, job.id)).job.placement == told


async def test_a_job_that_is_to_be_tried_again_says_when(room: Engine) -> None:
    job = await room.submit()
    later = update(job_table).where(job_table.c.id == job.id).values(not_before=room.clock.now() + 30)
    await room.db.write(lambda c: c.execute(later))
    placement = (await room.view(job)).job.placement or {}
    assert placement["reason"] in {f"it is tried again in {seconds} s" for seconds in (29, 30)}


async def test_a_job_that_is_over_keeps_the_words_it_had(room: Engine) -> None:
    jobs = Jobs(room.db, room.clock, room.hints, explain=lambda job, failed_on: {"reason": "every pod is busy"})
    job = await room.submit()
    assert (await jobs.cancel(PROJECT, job.id)).job.placement is None
