"""Event streams over HTTP: tickets, filters, where a stream goes on, and readers that do not read."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from sqlalchemy import Connection

from controlplane.api import event_stream
from controlplane.api.stream_tickets import TICKET_SECONDS, StreamTickets
from controlplane.app import build_app
from controlplane.db import events as event_rows
from controlplane.db.database import Database
from controlplane.domain.events import Event
from controlplane.services.event_tail import ROOM
from controlplane.settings import Settings
from controlplane.storage.secrets import load_secrets

from .api_seed import ready_character
from .api_server import Api, Server

pytestmark = pytest.mark.usefixtures("pod")


async def image(api: Api, character_id: str) -> str:
    """The id of a job that nothing can do."""
    answer = await api.post("/generate-image", json={"prompt": "on a beach", "character_id": character_id, "seed": 7})
    assert answer.status == 202, answer.data
    return str(answer.body["job"]["id"])


async def next_event(stream: aiohttp.ClientResponse) -> dict[str, Any]:
    """The next event's data, with its id under ``id``."""
    while True:
        block = (await asyncio.wait_for(stream.content.readuntil(b"\n\n"), 60)).decode()
        data = [line[6:] for line in block.splitlines() if line.startswith("data: ")]
        if data:
            return dict(json.loads(data[0]))


def written(server: Server, number: int, padding: int) -> int:
    """Write events beside the server, and the id before them."""
    database = Database(server.settings.effective_database_url)

    def write(c: Connection) -> int:
        before = event_rows.last_id(c)
        for _ in range(number):
            event_rows.append(c, "default", "pod.lost", {"padding": "x" * padding}, None, None, time.time())
        return before

    try:
        return database.write_sync(write)
    finally:
        database.engine.dispose()


def tickets(server: Server, ahead: float = 0.0) -> StreamTickets:
    class Clock:
        def now(self) -> float:
            return time.time() + ahead

    return StreamTickets(load_secrets(server.settings).signing_key, Clock())


async def test_a_character_can_be_followed(api: Api) -> None:
    hero, other = await ready_character(api.server), await ready_character(api.server)
    async with api.session.get(f"{api.server.url}/characters/{hero.id}/events") as stream:
        await image(api, other.id)
        job_id = await image(api, hero.id)
        event = await next_event(stream)
    assert (event["type"], event["job_id"]) == ("job.queued", job_id)


async def test_an_unknown_character_cannot_be_followed(api: Api) -> None:
    answer = await api.get("/characters/nobody/events")
    assert (answer.status, answer.body["code"]) == (404, "character_not_found")


async def test_a_stream_has_everything_that_happens_after_its_head(api: Api) -> None:
    hero = await ready_character(api.server)
    for _ in range(5):
        async with api.session.get(f"{api.server.url}/events?types=job.queued") as stream:
            job_id = await image(api, hero.id)
            assert (await next_event(stream))["job_id"] == job_id


async def test_only_the_types_that_were_asked_for_come(api: Api) -> None:
    hero = await ready_character(api.server)
    async with api.session.get(f"{api.server.url}/events?types=job.cancelled,job.failed") as stream:
        job_id = await image(api, hero.id)
        await api.call("DELETE", f"/jobs/{job_id}")
        assert (await next_event(stream))["type"] == "job.cancelled"


async def test_an_unknown_type_is_refused(api: Api) -> None:
    answer = await api.get("/events?types=job.done")
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (422, "?types")


async def test_who_saw_a_jobs_end_is_told_not_to_come_back(api: Api) -> None:
    job_id = await image(api, (await ready_character(api.server)).id)
    await api.call("DELETE", f"/jobs/{job_id}")
    told = (await api.get(f"/jobs/{job_id}/events")).data.decode()
    last = [line[4:] for line in told.splitlines() if line.startswith("id: ")][-1]
    assert (await api.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": last})).status == 204


async def test_a_ticket_opens_the_streams_of_its_project(api: Api) -> None:
    answer = await api.post("/events/ticket")
    assert answer.status == 201
    async with api.session.get(api.server.url + answer.body["links"]["stream"]) as stream:
        assert (stream.status, stream.content_type) == (200, "text/event-stream")


async def test_a_ticket_for_one_job_opens_that_jobs_stream(api: Api) -> None:
    job_id = await image(api, (await ready_character(api.server)).id)
    link = (await api.post("/events/ticket", json={"job_id": job_id})).body["links"]["stream"]
    async with api.session.get(api.server.url + link) as stream:
        assert (await next_event(stream))["job_id"] == job_id


async def test_a_ticket_for_one_job_opens_no_other_stream(api: Api) -> None:
    hero = await ready_character(api.server)
    first, second = await image(api, hero.id), await image(api, hero.id)
    ticket = (await api.post("/events/ticket", json={"job_id": first})).body["ticket"]
    for path in (f"/jobs/{second}/events", "/events", f"/characters/{hero.id}/events"):
        answer = await api.get(f"{path}?ticket={ticket}")
        assert (answer.status, answer.body["code"]) == (401, "bad_ticket")


async def test_there_is_no_ticket_for_what_does_not_exist(api: Api) -> None:
    answers = [await api.post("/events/ticket", json=body) for body in ({"job_id": "job_x"}, {"character_id": "x"})]
    assert [answer.status for answer in answers] == [404, 404]


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: "A" + t, lambda t: "x", lambda t: "", lambda t: "é.é"])
async def test_a_ticket_that_was_changed_opens_nothing(api: Api, change: Any) -> None:
    ticket, _ = tickets(api.server).issue("default", "events")
    answer = await api.get("/events", params={"ticket": change(ticket)})
    assert (answer.status, answer.body["code"]) == (401, "bad_ticket")


async def test_a_ticket_of_another_installation_opens_nothing(api: Api) -> None:
    ticket, _ = StreamTickets("another key", tickets(api.server).clock).issue("default", "events")
    assert (await api.get("/events", params={"ticket": ticket})).status == 401


async def test_a_ticket_opens_nothing_after_a_minute(api: Api) -> None:
    ticket, _ = tickets(api.server, -TICKET_SECONDS - 1).issue("default", "events")
    answer = await api.get("/events", params={"ticket": ticket})
    assert (answer.status, "expired" in answer.body["detail"]) == (401, True)


async def test_a_ticket_is_for_its_own_project(api: Api) -> None:
    job_id = await image(api, (await ready_character(api.server)).id)
    ticket, _ = tickets(api.server).issue("another", "events")
    assert (await api.get(f"/jobs/{job_id}/events", params={"ticket": ticket})).status == 404


async def test_a_reader_that_does_not_read_is_cut_off_and_can_go_on(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "WRITE_SECONDS", 0.5)
    number, padding = ROOM + 600, 2000
    address = urlsplit(api.server.url)
    idle = socket.socket()
    idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    idle.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(idle, (address.hostname, address.port))
    await loop.sock_sendall(idle, b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = await loop.sock_recv(idle, 2000)
    assert b"text/event-stream" in head
    async with api.session.get(f"{api.server.url}/events") as stream:
        before = await asyncio.to_thread(written, api.server, number, padding)
        for _ in range(number):
            event = await next_event(stream)
    assert event["id"] == before + number
    await asyncio.sleep(2.0)  # nothing tells a reader that does not read of its end
    got = await asyncio.wait_for(_until_the_end(idle), 60)
    idle.close()
    assert len(got) < number * padding / 2
    last = [line[4:] for line in got.decode(errors="ignore").splitlines()[:-1] if line.startswith("id: ")][-1]
    async with api.session.get(f"{api.server.url}/events", headers={"Last-Event-ID": last}) as stream:
        assert (await next_event(stream))["id"] == int(last) + 1


async def _until_the_end(idle: socket.socket) -> bytes:
    """What was still under way to a reader before it was cut off."""
    loop, got = asyncio.get_running_loop(), b""
    try:
        while chunk := await loop.sock_recv(idle, 65536):
            got += chunk
    except ConnectionError:
        pass
    return got


def test_an_end_that_the_log_no_longer_has_is_not_taken_for_the_event_whose_id_it_bears(tmp_path: Path) -> None:
    encoded = build_app(Settings(data=tmp_path, _env_file=None))[event_stream.ENCODED]
    real = Event(7, "one project", "job.succeeded", {"job_id": "job_1"}, 1.0, "job_1")
    made_up = Event(7, "another project", "job.succeeded", {"job_id": "job_2"}, 1.0, "job_2")
    sent = encoded.all_of([real, made_up, real]).decode().split("\n\n")
    assert [json.loads(one.split("data: ")[1])["job_id"] for one in sent if one] == ["job_1", "job_2", "job_1"]
