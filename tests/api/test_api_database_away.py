"""A PostgreSQL that is killed and started again under a server: said as 503, and a repeated request makes one job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from controlplane.db import database as edge
from controlplane.settings import Settings
from tests.postgresql_server import DURABLE, PostgreSQL, postgresql_server

from .api_pictures import pictures
from .api_seed import ready_character
from .api_server import Answer, Api, form_of, pod_body, serving


@pytest.fixture
def mortal(postgresql: PostgreSQL) -> Iterator[PostgreSQL]:
    """A server of its own that may be killed; ``postgresql`` says first whether there is any to run."""
    with postgresql_server(DURABLE) as server:
        yield server


@pytest.fixture
async def api(mortal: PostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    monkeypatch.setattr(edge, "AWAY_SECONDS", 0.5)
    settings = Settings(data=tmp_path, database_url=mortal.fresh(), port=0, poll_seconds=0.2, min_images=5)
    with serving(settings) as server:
        async with aiohttp.ClientSession() as session:
            made = Api(server, session)
            headers = {"Authorization": f"Bearer {server.join_token}"}
            assert (await made.post("/pods", json=pod_body(), headers=headers)).status == 201
            yield made


async def image(api: Api, character_id: str, key: str) -> Answer:
    body = {"prompt": "on a beach", "character_id": character_id}
    return await api.post("/generate-image", json=body, headers={"Idempotency-Key": key})


async def test_a_request_is_refused_while_the_database_is_away_and_makes_one_job_when_it_is_repeated(
    api: Api, mortal: PostgreSQL
) -> None:
    hero = await ready_character(api.server)
    await asyncio.to_thread(mortal.crash)
    refused = await image(api, hero.id, "one")
    assert (refused.status, refused.body["code"], refused.headers["Retry-After"]) == (503, "database_away", "2")
    await asyncio.to_thread(mortal.start_again)
    repeated = [await image(api, hero.id, "one") for _ in range(2)]
    assert [answer.status for answer in repeated] == [202, 202]
    assert repeated[0].data == repeated[1].data
    assert len((await api.get("/jobs")).body["items"]) == 1


async def test_what_was_answered_before_the_crash_is_answered_alike_after_it(api: Api, mortal: PostgreSQL) -> None:
    hero = await ready_character(api.server)
    form = form_of({"name": "Mira"}, given := pictures(6))
    before = [
        await image(api, hero.id, "one"),
        await api.post("/characters", data=form, headers={"Idempotency-Key": "two"}),
    ]
    await asyncio.to_thread(mortal.crash)
    await asyncio.to_thread(mortal.start_again)
    form = form_of({"name": "Mira"}, given)
    after = [
        await image(api, hero.id, "one"),
        await api.post("/characters", data=form, headers={"Idempotency-Key": "two"}),
    ]
    assert [answer.status for answer in before] == [202, 202]
    assert [answer.data for answer in after] == [answer.data for answer in before]


async def test_requests_that_are_repeated_until_they_are_answered_make_one_job_each(
    api: Api, mortal: PostgreSQL
) -> None:
    hero = await ready_character(api.server)
    over = asyncio.Event()

    async def client(number: int) -> set[bytes]:
        answered: set[bytes] = set()
        for one in range(1000):
            answer = await image(api, hero.id, f"{number}-{one}")
            while answer.status == 503:
                await asyncio.sleep(0.1)
                answer = await image(api, hero.id, f"{number}-{one}")
            assert answer.status == 202
            answered.add(answer.data)
            if over.is_set():
                break
        return answered

    clients = [asyncio.create_task(client(number)) for number in range(4)]
    await asyncio.sleep(0.5)
    await asyncio.to_thread(mortal.crash)
    await asyncio.to_thread(mortal.start_again)
    await asyncio.sleep(0.5)
    over.set()
    answered = set().union(*await asyncio.gather(*clients))
    assert await number_of_jobs(api) == len(answered)


async def number_of_jobs(api: Api) -> int:
    number, cursor = 0, ""
    while True:
        page = (await api.get(f"/jobs?limit=100{cursor}")).body
        number += len(page["items"])
        if page["next_cursor"] is None:
            return number
        cursor = f"&cursor={page['next_cursor']}"
