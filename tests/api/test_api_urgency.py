"""Priorities, deadlines and the filters of the list of jobs, over real HTTP."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from .api_pictures import pictures
from .api_seed import ready_character
from .api_server import Answer, Api

pytestmark = pytest.mark.usefixtures("pod")
WEEK_SECONDS = 7 * 24 * 3600


def pointers(answer: Answer) -> set[str]:
    return {error["pointer"] for error in answer.body.get("errors", [])}


async def image(api: Api, **fields: Any) -> Answer:
    return await api.post("/generate-image", json={"prompt": "smiling, red jacket", **fields})


def allowed_seconds(job: dict[str, Any]) -> float:
    created, deadline = (datetime.fromisoformat(job[name]) for name in ("created_at", "deadline_at"))
    return (deadline - created).total_seconds()


async def test_a_job_has_priority_0_unless_it_asks_for_another(api: Api) -> None:
    hero = await ready_character(api.server)
    made = [(await image(api, character_id=hero.id, **fields)).body["job"] for fields in ({}, {"priority": -7})]
    assert [job["priority"] for job in made] == [0, -7]


@pytest.mark.parametrize("priority", [-101, 101, 0.5, "high"])
async def test_a_priority_out_of_bounds_is_refused_at_its_place(api: Api, priority: Any) -> None:
    hero = await ready_character(api.server)
    answer = await image(api, character_id=hero.id, priority=priority)
    assert (answer.status, pointers(answer)) == (422, {"/priority"})


async def test_a_deadline_counts_from_the_moment_of_acceptance(api: Api) -> None:
    hero = await ready_character(api.server)
    job = (await image(api, character_id=hero.id, deadline_seconds=12.5)).body["job"]
    assert allowed_seconds(job) == pytest.approx(12.5, abs=0.002)


@pytest.mark.parametrize("seconds", [0, -1, WEEK_SECONDS + 1])
async def test_a_deadline_out_of_bounds_is_refused_at_its_place(api: Api, seconds: float) -> None:
    hero = await ready_character(api.server)
    answer = await image(api, character_id=hero.id, deadline_seconds=seconds)
    assert (answer.status, pointers(answer)) == (422, {"/deadline_seconds"})


async def test_a_video_takes_priority_and_deadline(api: Api) -> None:
    hero = await ready_character(api.server)
    wanted = {"character_id": hero.id, "prompt": "waving", "priority": 5, "deadline_seconds": 60}
    job = (await api.post("/generate-video", json=wanted)).body["job"]
    assert (job["priority"], round(allowed_seconds(job))) == (5, 60)


async def test_a_training_takes_priority_and_deadline_from_the_form(api: Api) -> None:
    fields = {"name": "Urgent", "priority": "9", "deadline_seconds": "3600"}
    job = (await api.create(fields, pictures(6))).body["job"]
    assert (job["priority"], round(allowed_seconds(job))) == (9, 3600)


async def test_a_deadline_of_a_form_out_of_bounds_is_refused_at_its_place(api: Api) -> None:
    answer = await api.create({"name": "Endless", "deadline_seconds": str(WEEK_SECONDS + 1)}, pictures(6))
    assert (answer.status, pointers(answer)) == (422, {"/deadline_seconds"})


async def test_a_further_version_takes_priority_and_deadline(api: Api) -> None:
    created = await api.create({"name": "Further"}, pictures(6))
    path = f"/characters/{created.body['character']['id']}/versions"
    job = (await api.post(path, json={"priority": -1, "deadline_seconds": 120})).body["job"]
    assert (job["priority"], round(allowed_seconds(job))) == (-1, 120)


async def test_jobs_can_be_listed_by_several_statuses(api: Api) -> None:
    hero = await ready_character(api.server)
    waiting, cancelled = [(await image(api, character_id=hero.id)).body["job"]["id"] for _ in range(2)]
    await api.call("DELETE", f"/jobs/{cancelled}")
    found = {}
    for status in ("queued", "cancelled", "queued,cancelled", "running,succeeded"):
        page = (await api.get(f"/jobs?character_id={hero.id}&status={status}")).body["items"]
        found[status] = [job["id"] for job in page]
    assert found == {
        "queued": [waiting],
        "cancelled": [cancelled],
        "queued,cancelled": [cancelled, waiting],
        "running,succeeded": [],
    }


@pytest.mark.parametrize("status", ["asleep", "queued,", "queued,asleep", ""])
async def test_a_status_that_there_is_not_is_refused(api: Api, status: str) -> None:
    answer = await api.get(f"/jobs?status={status}")
    assert (answer.status, pointers(answer)) == (422, {"?status"})


async def test_jobs_can_be_listed_by_their_time(api: Api) -> None:
    hero = await ready_character(api.server)
    first, second = [(await image(api, character_id=hero.id)).body["job"] for _ in range(2)]
    query = {"character_id": hero.id, "created_from": first["created_at"], "created_before": second["created_at"]}
    page = (await api.get("/jobs", params=query)).body["items"]
    assert [job["id"] for job in page] == [first["id"]]


async def test_a_time_without_its_zone_is_refused(api: Api) -> None:
    answer = await api.get("/jobs?created_from=2026-11-21T00:00:00")
    assert (answer.status, pointers(answer)) == (422, {"?created_from"})
