"""The caller's project over real HTTP: paused with a reason, resumed, and told of on the event stream."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from controlplane.settings import Settings

from .api_seed import ready_character
from .api_server import Api, Server, pod_body, serving

pytestmark = pytest.mark.usefixtures("each_database")


@pytest.fixture
def own_server(each_database: str, tmp_path: Path) -> Iterator[Server]:
    """A server of its own: a pause would hold up the tests that share one."""
    with serving(Settings(data=tmp_path, port=0, poll_seconds=0.2, min_images=5)) as started:
        yield started


@pytest.fixture
async def api(own_server: Server) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession() as session:
        made = Api(own_server, session)
        headers = {"Authorization": f"Bearer {own_server.join_token}"}
        assert (await made.post("/pods", json=pod_body(), headers=headers)).status == 201
        yield made


async def patch(api: Api, **body: Any) -> Any:
    return await api.call("PATCH", "/project", json=body)


async def test_a_project_is_not_paused_by_itself(api: Api) -> None:
    project = (await api.get("/project")).body
    assert (project["id"], project["paused"], project["paused_at"]) == ("default", False, None)


async def test_a_pause_keeps_its_moment_and_its_reason(api: Api) -> None:
    paused = (await patch(api, paused=True, reason="the bill")).body
    assert (paused["paused"], paused["pause_reason"]) == (True, "the bill")
    assert (await api.get("/project")).body == paused


async def test_pausing_again_changes_the_reason_and_not_the_moment(api: Api) -> None:
    first = (await patch(api, paused=True, reason="the bill")).body
    second = (await patch(api, paused=True, reason="the rent")).body
    assert second == {**first, "pause_reason": "the rent"}


async def test_resuming_takes_the_pause_away(api: Api) -> None:
    before = (await api.get("/project")).body
    await patch(api, paused=True, reason="the bill")
    assert (await patch(api, paused=False)).body == before


async def test_a_reason_without_a_pause_is_refused(api: Api) -> None:
    assert (await patch(api, paused=False, reason="why not")).status == 422


async def test_an_over_long_reason_is_refused(api: Api) -> None:
    assert (await patch(api, paused=True, reason="x" * 501)).status == 422


async def test_a_paused_project_still_takes_requests(api: Api) -> None:
    hero = await ready_character(api.server)
    await patch(api, paused=True)
    answer = await api.post("/generate-image", json={"prompt": "on a beach", "character_id": hero.id})
    assert (answer.status, answer.body["job"]["status"]) == (202, "queued")


async def test_pause_and_resume_are_told_once_each_on_the_stream(api: Api) -> None:
    for paused in (True, True, False, False):
        await patch(api, paused=paused)
    types = []
    async with api.session.get(f"{api.server.url}/events?after=0") as stream:
        async for line in stream.content:
            if line.startswith(b"data: ") and b'"project.' in line:
                types.append(json.loads(line.removeprefix(b"data: "))["type"])
            if types[-1:] == ["project.resumed"]:
                break
    assert types == ["project.paused", "project.resumed"]


async def test_a_waiting_job_of_a_paused_project_says_since_when_and_why(api: Api) -> None:
    hero = await ready_character(api.server)
    await patch(api, paused=True, reason="the bill")
    job = (await api.post("/generate-image", json={"prompt": "on a beach", "character_id": hero.id})).body["job"]["id"]
    placement = (await api.get(f"/jobs/{job}")).body["placement"]
    assert re.fullmatch(r"the project is paused since 2\S+ \S+ UTC: the bill", placement["reason"])


async def test_after_the_pause_a_waiting_job_says_something_else(api: Api) -> None:
    hero = await ready_character(api.server)
    await patch(api, paused=True, reason="the bill")
    job = (await api.post("/generate-image", json={"prompt": "on a beach", "character_id": hero.id})).body["job"]["id"]
    await patch(api, paused=False)
    assert "paused" not in json.dumps((await api.get(f"/jobs/{job}")).body["placement"])
