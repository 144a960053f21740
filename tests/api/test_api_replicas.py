"""Two servers on one PostgreSQL and one store: either answers for both, and a wake on one wakes the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from controlplane.settings import Settings

from .api_pictures import pictures
from .api_seed import ready_character
from .api_server import Api, Server, form_of, pod_body, serving

NEVER = 3600.0
LISTENING_SECONDS = 15


@pytest.fixture
def servers(postgresql_url: str, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """They never poll: what one learns of the other in time, it was told."""
    settings = Settings(data=tmp_path, database_url=postgresql_url, port=0, poll_seconds=NEVER, min_images=5)
    with serving(settings) as one, serving(settings) as other:
        yield one, other


@pytest.fixture
async def both(servers: tuple[Server, Server]) -> AsyncIterator[tuple[Api, Api]]:
    async with aiohttp.ClientSession() as session:
        one, other = Api(servers[0], session), Api(servers[1], session)
        headers = {"Authorization": f"Bearer {one.server.join_token}"}
        assert (await one.post("/pods", json=pod_body(), headers=headers)).status == 201
        yield one, other


async def image(api: Api, character_id: str, key: str = "") -> Any:
    body = {"prompt": "on a beach", "character_id": character_id, "seed": 7}
    return await api.post("/generate-image", json=body, headers={"Idempotency-Key": key} if key else {})


async def test_a_stream_of_one_server_tells_at_once_what_happens_on_the_other(both: tuple[Api, Api]) -> None:
    one, other = both
    hero = await ready_character(one.server)
    async with other.session.get(f"{other.server.url}/events") as stream:
        assert stream.status == 200
        reading = asyncio.create_task(next_queued(stream))
        made = []
        # A stream tells of what happens from its beginning on, and nothing says when that was.
        while not reading.done() and len(made) < LISTENING_SECONDS:
            made.append((await image(one, hero.id)).body["job"]["id"])
            await asyncio.wait({reading}, timeout=1.0)
        assert reading.done()
        assert any(job_id in reading.result() for job_id in made)


async def next_queued(stream: aiohttp.ClientResponse) -> str:
    """The next event of a queued job."""
    while True:
        block = (await stream.content.readuntil(b"\n\n")).decode()
        if "event: job.queued" in block:
            return block


async def test_one_key_on_two_servers_at_once_makes_one_job(both: tuple[Api, Api]) -> None:
    hero = await ready_character(both[0].server)
    answers = await asyncio.gather(*(image(both[number % 2], hero.id, "key-1") for number in range(12)))
    assert {answer.status for answer in answers} == {202}
    assert len({answer.body["job"]["id"] for answer in answers}) == 1
    assert len((await both[1].get("/jobs")).body["items"]) == 1


async def test_one_key_on_two_servers_at_once_makes_one_character(both: tuple[Api, Api]) -> None:
    given = pictures(6)

    async def create(api: Api) -> Any:
        form = form_of({"name": "Mira"}, given)
        return await api.post("/characters", data=form, headers={"Idempotency-Key": "key-1"})

    answers = await asyncio.gather(*(create(both[number % 2]) for number in range(4)))
    assert {answer.status for answer in answers} == {202}
    assert len({answer.body["job"]["id"] for answer in answers}) == 1
    assert [one["id"] for one in (await both[1].get("/characters")).body["items"]] == ["mira"]


async def test_what_one_server_queued_the_other_cancels(both: tuple[Api, Api]) -> None:
    one, other = both
    hero = await ready_character(one.server)
    job = (await image(one, hero.id)).body["job"]
    assert (await other.call("DELETE", f"/jobs/{job['id']}")).status in (200, 202)
    assert (await one.get(f"/jobs/{job['id']}")).body["status"] == "cancelled"
