"""Webhooks through the REST API and the command line, told by a real server to a real receiver."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rich.console import Console

from controlplane.cli import webhooks as webhooks_command
from controlplane.cli.arguments import build_parser
from controlplane.client import RequestFailed
from controlplane.settings import Settings
from tests.api.api_seed import ready_character
from tests.api.api_server import Api, Server, pod_body, serving

from .receiver import Receiver, receiver


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server that may send to loopback."""
    settings = Settings(data=tmp_path_factory.mktemp("data"), port=0, poll_seconds=0.2, webhook_private=True)
    with serving(settings) as started:
        yield started


@pytest.fixture
async def api(server: Server) -> AsyncIterator[Api]:
    """A client; whatever webhooks a test makes are gone after it."""
    async with aiohttp.ClientSession() as session:
        made = Api(server, session)
        headers = {"Authorization": f"Bearer {server.join_token}"}
        assert (await made.post("/pods", json=pod_body(), headers=headers)).status == 201
        yield made
        for webhook in (await made.get("/webhooks")).body["items"]:
            await made.call("DELETE", f"/webhooks/{webhook['id']}")


@pytest.fixture
async def there() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


async def hook(api: Api, url: str, **values: Any) -> dict[str, Any]:
    """The answer that made a webhook."""
    answer = await api.post("/webhooks", json={"url": url, **values})
    assert answer.status == 201, answer.data
    return dict(answer.body)


async def cancelled(api: Api) -> dict[str, Any]:
    """A job that was cancelled."""
    hero = await ready_character(api.server)
    body = {"prompt": "on a beach", "character_id": hero.id, "seed": 7}
    job_id = (await api.post("/generate-image", json=body)).body["job"]["id"]
    await api.call("DELETE", f"/jobs/{job_id}")
    return dict((await api.get(f"/jobs/{job_id}")).body)


async def deliveries(api: Api, webhook_id: str, state: str, number: int = 1) -> list[dict[str, Any]]:
    """So many deliveries in a state, newest first."""
    end = time.monotonic() + 60
    while len(found := (await api.get(f"/webhooks/{webhook_id}/deliveries?state={state}")).body["items"]) < number:
        assert time.monotonic() < end, (await api.get(f"/webhooks/{webhook_id}/deliveries")).body
        await asyncio.sleep(0.02)
    return list(found)


async def troupe(api: Api, *arguments: str) -> tuple[int, str]:
    """Exit code and what was printed."""
    options = build_parser().parse_args(["webhooks", *arguments, "--url", api.server.url])
    console = Console(width=240, record=True, file=io.StringIO())
    return await webhooks_command.run(options, console), console.export_text()


async def test_a_job_is_told_as_the_api_shows_it(api: Api, there: Receiver) -> None:
    made = await hook(api, there.url)
    job = await cancelled(api)
    await deliveries(api, made["webhook"]["id"], "delivered")
    told = there.got[0].verified(made["secret"])
    assert (told["type"], told["data"]["job"]) == ("job.cancelled", job)


async def test_a_message_links_to_what_it_tells_of(api: Api, there: Receiver) -> None:
    made = await hook(api, there.url)
    job = await cancelled(api)
    await deliveries(api, made["webhook"]["id"], "delivered")
    links = there.got[0].verified(made["secret"])["data"]["links"]
    assert links["job"] == f"{api.server.url}/jobs/{job['id']}"


async def test_by_default_only_ends_are_told(api: Api, there: Receiver) -> None:
    made = await hook(api, there.url)
    assert made["webhook"]["types"] == [
        "job.succeeded", "job.failed", "job.cancelled", "character.ready", "character.failed",
    ]  # fmt: skip
    await cancelled(api)
    assert len(await deliveries(api, made["webhook"]["id"], "delivered")) == 1


async def test_a_secret_is_shown_once(api: Api, there: Receiver) -> None:
    made = await hook(api, there.url)
    link = f"/webhooks/{made['webhook']['id']}"
    shown = [(await api.get(path)).data.decode() for path in ("/webhooks", link, f"{link}/deliveries")]
    assert made["secret"].startswith("whsec_")
    assert not any(made["secret"] in text for text in shown)


async def test_a_secret_is_in_no_log(api: Api, there: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    there.status = 410
    with caplog.at_level(logging.DEBUG):
        made = await hook(api, there.url)
        await cancelled(api)
        await deliveries(api, made["webhook"]["id"], "failed")
    assert "is given up" in caplog.text
    assert made["secret"] not in caplog.text
    assert made["secret"].removeprefix("whsec_") not in caplog.text


async def test_a_rotation_shows_the_new_secret_and_both_sign(api: Api, there: Receiver) -> None:
    made = await hook(api, there.url)
    rotated = (await api.post(f"/webhooks/{made['webhook']['id']}/rotate")).body
    await cancelled(api)
    await deliveries(api, made["webhook"]["id"], "delivered")
    assert rotated["webhook"]["previous_secret_until"] is not None
    assert [there.got[0].is_signed_by(one["secret"]) for one in (made, rotated)] == [True, True]


async def test_a_webhook_can_be_changed(api: Api, there: Receiver) -> None:
    made = (await hook(api, "http://127.0.0.1:9/"))["webhook"]
    changes = {"url": there.url, "types": ["job.queued"], "description": "mine", "enabled": False}
    answer = await api.call("PATCH", f"/webhooks/{made['id']}", json=changes)
    assert (answer.status, {name: answer.body[name] for name in changes}) == (200, changes)


async def test_a_change_that_says_nothing_changes_nothing(api: Api, there: Receiver) -> None:
    made = (await hook(api, there.url))["webhook"]
    answer = await api.call("PATCH", f"/webhooks/{made['id']}", json={"url": None})
    assert {**answer.body, "updated_at": ""} == {**made, "updated_at": ""}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": "ftp://x"},
        {"url": "https://x", "types": []},
        {"url": "https://x", "types": ["job.done"]},
        {"uri": "x"},
    ],
)
async def test_a_webhook_that_makes_no_sense_is_refused(api: Api, body: dict[str, Any]) -> None:
    assert (await api.post("/webhooks", json=body)).status == 422


async def test_a_server_sends_nothing_into_its_own_network_unless_it_is_told_to(tmp_path: Path) -> None:
    with serving(Settings(data=tmp_path, port=0)) as server:
        async with aiohttp.ClientSession() as session:
            answer = await Api(server, session).post("/webhooks", json={"url": "https://127.0.0.1/hook"})
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (422, "/url")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate"), ("POST", "/test"), ("GET", "/deliveries")],
)
async def test_what_is_not_there_is_not_found(api: Api, method: str, path: str) -> None:
    options: dict[str, Any] = {"json": {}} if method == "PATCH" else {}
    assert (await api.call(method, f"/webhooks/webhook_x{path}", **options)).status == 404


async def test_a_removed_webhook_is_told_nothing(api: Api, there: Receiver) -> None:
    gone, kept = await hook(api, f"{there.url}?gone"), await hook(api, f"{there.url}?kept")
    assert (await api.call("DELETE", f"/webhooks/{gone['webhook']['id']}")).status == 204
    await cancelled(api)
    await deliveries(api, kept["webhook"]["id"], "delivered")
    assert [got.is_signed_by(kept["secret"]) for got in there.got] == [True]


async def test_a_delivery_tells_of_its_attempts(api: Api, there: Receiver) -> None:
    there.status, there.text = 500, "no room"
    made = await hook(api, there.url)
    await cancelled(api)
    end = time.monotonic() + 60
    while not (found := await deliveries(api, made["webhook"]["id"], "waiting"))[0]["attempts"]:
        assert time.monotonic() < end
    attempt = found[0]["attempts"][0]
    assert (attempt["status"], attempt["answer"], attempt["error"]) == (500, "no room", "the answer was 500")


async def test_a_delivery_shows_what_was_sent(api: Api, there: Receiver) -> None:
    made = await hook(api, there.url)
    await cancelled(api)
    (only,) = await deliveries(api, made["webhook"]["id"], "delivered")
    shown = (await api.get(f"/webhooks/{made['webhook']['id']}/deliveries/{only['id']}")).body
    assert shown["body"].encode() == there.got[0].body


async def test_deliveries_come_in_pages(api: Api, there: Receiver) -> None:
    link = f"/webhooks/{(await hook(api, there.url))['webhook']['id']}"
    sent = [(await api.post(f"{link}/test")).body["delivery"]["id"] for _ in range(3)]
    first = (await api.get(f"{link}/deliveries?limit=2")).body
    second = (await api.get(f"{link}/deliveries?limit=2&cursor={first['next_cursor']}")).body
    assert [one["id"] for page in (first, second) for one in page["items"]] == sent[::-1]


async def test_a_repeated_request_to_send_again_sends_once(api: Api, there: Receiver) -> None:
    webhook_id = (await hook(api, there.url))["webhook"]["id"]
    await api.post(f"/webhooks/{webhook_id}/test")
    (only,) = await deliveries(api, webhook_id, "delivered")
    path = f"/webhooks/{webhook_id}/deliveries/{only['id']}/redeliver"
    first = await api.post(path, headers={"Idempotency-Key": "again"})
    await deliveries(api, webhook_id, "delivered")
    second = await api.post(path, headers={"Idempotency-Key": "again"})
    await deliveries(api, webhook_id, "delivered")
    await asyncio.sleep(0.2)
    assert (first.status, second.status, second.data) == (202, 202, first.data)
    assert (second.headers["Idempotency-Replayed"], len(there.got)) == ("true", 2)


async def test_nothing_is_sent_again_to_a_disabled_webhook(api: Api, there: Receiver) -> None:
    webhook_id = (await hook(api, there.url))["webhook"]["id"]
    await api.call("PATCH", f"/webhooks/{webhook_id}", json={"enabled": False})
    assert (await api.post(f"/webhooks/{webhook_id}/test")).status == 409


async def test_metrics_count_deliveries(api: Api, there: Receiver) -> None:
    webhook_id = (await hook(api, there.url))["webhook"]["id"]
    await api.post(f"/webhooks/{webhook_id}/test")
    await deliveries(api, webhook_id, "delivered")
    lines = (await api.get("/metrics")).data.decode().splitlines()
    assert "troupe_webhook_deliveries_waiting 0" in lines
    delivered = next(line for line in lines if line.startswith('troupe_webhook_attempts_total{outcome="delivered"}'))
    assert int(delivered.split()[1]) >= 1


async def test_the_command_adds_tests_and_removes(api: Api, there: Receiver) -> None:
    code, text = await troupe(api, "add", there.url, "--type", "job.failed")
    (made,) = (await api.get("/webhooks")).body["items"]
    assert (code, made["types"], "secret whsec_" in text) == (0, ["job.failed"], True)
    assert (await troupe(api, "test", made["id"]))[0] == 0
    assert made["id"] in (await troupe(api))[1]
    assert (await troupe(api, "remove", made["id"]))[0] == 0
    assert (await api.get("/webhooks")).body["items"] == []


async def test_the_command_says_where_a_test_did_not_arrive(api: Api) -> None:
    webhook_id = (await hook(api, "http://127.0.0.1:9/"))["webhook"]["id"]
    code, text = await troupe(api, "test", webhook_id)
    assert (code, "no connection" in text) == (1, True)


async def test_the_command_lists_deliveries_and_sends_them_again(api: Api, there: Receiver) -> None:
    webhook_id = (await hook(api, there.url))["webhook"]["id"]
    await troupe(api, "test", webhook_id)
    (only,) = await deliveries(api, webhook_id, "delivered")
    assert only["id"] in (await troupe(api, "deliveries", webhook_id, "--state", "delivered"))[1]
    assert (await troupe(api, "redeliver", webhook_id, only["id"]))[0] == 0
    end = time.monotonic() + 60
    while there.ids != [only["id"]] * 2:
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_the_command_rotates_and_prints_json(api: Api, there: Receiver) -> None:
    made = await hook(api, there.url)
    _, text = await troupe(api, "rotate", made["webhook"]["id"], "--json")
    assert json.loads(text)["secret"] != made["secret"]


async def test_the_command_disables_and_enables(api: Api, there: Receiver) -> None:
    webhook_id = (await hook(api, there.url))["webhook"]["id"]
    told = [(await troupe(api, action, webhook_id))[1].split()[-1] for action in ("disable", "enable")]
    assert told == ["disabled", "ok"]


async def test_the_command_says_that_a_webhook_is_not_there(api: Api) -> None:
    with pytest.raises(RequestFailed, match="There is no webhook"):
        await troupe(api, "rotate", "webhook_x")
