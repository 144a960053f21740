"""Renting through the REST API and the command line, against a real server that rents from the double."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rich.console import Console

from controlplane.cli import pods as pods_command
from controlplane.cli.arguments import build_parser
from controlplane.client import RequestFailed
from controlplane.errors import NotFound
from tests.api.api_server import Api, pod_body, serving
from tests.launchers.renting import settings_for
from tests.launchers.runpod_double import Failure, RunPodDouble
from tests.waiting import until


@pytest.fixture
async def api(tmp_path: Path, runpod: RunPodDouble) -> AsyncIterator[Api]:
    """A server of its own for every test; it reconciles only when it is asked to."""
    settings = settings_for(tmp_path, runpod.url, port=0, reconcile_seconds=3600.0, max_pods=2)
    with serving(settings) as server:
        await until(lambda: runpod.count("GET"))
        async with aiohttp.ClientSession() as session:
            yield Api(server, session)


async def rent(api: Api, **body: Any) -> dict[str, Any]:
    answer = await api.post("/rentals", json=body)
    assert answer.status == 202, answer.data
    return dict(answer.body["rental"])


async def register(api: Api, rental: dict[str, Any], **values: Any) -> dict[str, Any]:
    body = pod_body(provider="runpod", provider_id=rental["provider_id"], address="https://pod.example:1", **values)
    headers = {"Authorization": f"Bearer {api.server.join_token}"}
    answer = await api.post("/pods", json={**body, "kind": "comfyui"}, headers=headers)
    assert answer.status == 201, answer.data
    return dict(answer.body["pod"])


async def troupe(api: Api, *arguments: str) -> tuple[int, str]:
    """Exit code and what was printed."""
    options = build_parser().parse_args([*arguments, "--url", api.server.url])
    console = Console(width=240, record=True, file=io.StringIO())
    return await pods_command.run(options, console), console.export_text()


async def test_a_pod_is_rented(api: Api, runpod: RunPodDouble) -> None:
    rental = await rent(api, gpus=["NVIDIA L40S"], labels=["train"])
    assert (rental["gpu"], rental["state"], [rental["provider_id"]]) == ("NVIDIA L40S", "booting", list(runpod.pods))


async def test_a_pod_is_rented_without_any_wishes(api: Api) -> None:
    assert (await api.post("/rentals")).body["rental"]["price_per_hour"] == 0.27


async def test_a_rental_is_found_where_its_answer_says(api: Api) -> None:
    answer = await api.post("/rentals")
    assert (await api.get(answer.headers["Location"])).body["id"] == answer.body["rental"]["id"]


async def test_an_unknown_rental_is_not_found(api: Api) -> None:
    answer = await api.get("/rentals/rental_nosuch")
    assert (answer.status, answer.body["code"]) == (404, "not_found")


async def test_rentals_come_in_pages(api: Api) -> None:
    older, newer = await rent(api), await rent(api)
    first = (await api.get("/rentals?limit=1")).body
    second = (await api.get(f"/rentals?limit=1&cursor={first['next_cursor']}")).body
    assert [one["id"] for page in (first, second) for one in page["items"]] == [newer["id"], older["id"]]


async def test_a_rental_shows_the_pod_that_joined(api: Api) -> None:
    rental = await rent(api)
    pod = await register(api, rental)
    (shown,) = (await api.get("/rentals")).body["items"]
    assert (shown["state"], shown["pod_id"]) == ("joined", pod["id"])


async def test_a_rental_is_ended(api: Api, runpod: RunPodDouble) -> None:
    rental = await rent(api)
    answer = await api.call("DELETE", f"/rentals/{rental['id']}")
    assert (answer.status, answer.body["rental"]["state"], runpod.pods) == (202, "ended", {})


async def test_an_orphan_is_ended_on_demand(api: Api, runpod: RunPodDouble) -> None:
    rental = await rent(api)
    orphan = runpod.plant(rental["name"].replace(rental["id"], "orphan"))
    report = (await api.post("/rentals/reconcile")).body
    assert [one["provider_id"] for one in report["ended"]] == [orphan]
    assert list(runpod.pods) == [rental["provider_id"]]


async def test_one_pod_too_many_is_a_conflict(api: Api) -> None:
    await rent(api)
    await rent(api)
    answer = await api.post("/rentals")
    assert (answer.status, answer.body["code"]) == (409, "spend_limit")


async def test_no_balance_is_said_with_402(api: Api, runpod: RunPodDouble) -> None:
    runpod.fail("POST", Failure(402, "insufficient balance"))
    answer = await api.post("/rentals")
    assert (answer.status, answer.body["code"]) == (402, "launcher_unpaid")


async def test_a_provider_that_asks_for_patience_is_said_with_503(api: Api, runpod: RunPodDouble) -> None:
    runpod.fail("GET", Failure(429, "too many", {"Retry-After": "900"}))
    answer = await api.post("/rentals/reconcile")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "900")


async def test_a_repeated_request_gets_the_same_bytes_and_no_second_pod(api: Api, runpod: RunPodDouble) -> None:
    headers = {"Idempotency-Key": "one pod"}
    first, again = [await api.post("/rentals", headers=headers) for _ in range(2)]
    assert (again.status, again.data, again.headers["Location"]) == (202, first.data, first.headers["Location"])
    assert (again.headers["Idempotency-Replayed"], len(runpod.pods)) == ("true", 1)


async def test_a_repeated_request_needs_no_provider(api: Api, runpod: RunPodDouble) -> None:
    headers = {"Idempotency-Key": "one pod"}
    first = await api.post("/rentals", headers=headers)
    runpod.fail("GET", *[Failure(500)] * 9)
    assert (await api.post("/rentals", headers=headers)).data == first.data


async def test_requests_at_once_with_one_key_rent_one_pod(api: Api, runpod: RunPodDouble) -> None:
    headers = {"Idempotency-Key": "one pod"}
    answers = await asyncio.gather(*(api.post("/rentals", headers=headers) for _ in range(8)))
    assert ({answer.status for answer in answers}, len(runpod.pods)) == ({202}, 1)
    assert len({answer.data for answer in answers}) == 1


async def test_a_request_that_the_provider_refused_may_be_made_again_with_its_key(
    api: Api, runpod: RunPodDouble
) -> None:
    headers = {"Idempotency-Key": "one pod"}
    runpod.fail("POST", Failure(402))
    refused = await api.post("/rentals", headers=headers)
    taken = await api.post("/rentals", headers=headers)
    assert (refused.status, taken.status, "Idempotency-Replayed" in taken.headers) == (402, 202, False)
    assert len(runpod.pods) == 1


@pytest.mark.parametrize(
    "body", [{"gpu": "x"}, {"gpu_count": 0}, {"labels": ["a,b"]}, {"max_hours": -1}, {"cloud": "MOON"}]
)
async def test_a_wish_that_makes_no_sense_is_refused_by_name(api: Api, body: dict[str, Any]) -> None:
    answer = await api.post("/rentals", json=body)
    assert (answer.status, [name in answer.body["detail"] for name in body]) == (422, [True])


async def test_a_server_without_a_provider_says_so(tmp_path: Path) -> None:
    with serving(settings_for(tmp_path, "", runpod_api_key=None, port=0)) as server:
        async with aiohttp.ClientSession() as session:
            answer = await Api(server, session).post("/rentals")
    assert (answer.status, answer.body["code"]) == (422, "renting_impossible")


async def test_the_server_reconciles_by_itself(tmp_path: Path, runpod: RunPodDouble) -> None:
    orphan = runpod.plant("troupe-studio1-orphan")
    settings = settings_for(tmp_path, runpod.url, port=0, reconcile_seconds=0.1, installation="studio1")
    with serving(settings):
        await until(lambda: orphan not in runpod.pods, 20.0)


async def test_pods_alone_lists_pods_with_their_boot_and_price(api: Api) -> None:
    boot = {"phase": "models", "detail": "sdxl.safetensors", "percent": 41.5}
    await register(api, await rent(api), name="rented one", state="joining", boot=boot)
    code, text = await troupe(api, "pods")
    assert code == 0
    for part in ("rented one", "joining", "models 42 % (sdxl.safetensors)", "$0.27/h"):
        assert part in text


async def test_a_rented_pod_that_has_not_joined_is_listed_as_well(api: Api) -> None:
    rental = await rent(api)
    assert rental["id"] in (await troupe(api, "pods", "list"))[1]


async def test_pods_rent_rents_what_was_asked_for(api: Api, runpod: RunPodDouble) -> None:
    wishes = ("--gpu", "NVIDIA L40S", "--label", "train", "--max-hours", "2", "--cloud", "COMMUNITY")
    code, text = await troupe(api, "pods", "rent", *wishes)
    (there,) = runpod.pods.values()
    assert (code, there["gpu"]["id"], there["cloud"], "$0.79/h" in text) == (0, "NVIDIA L40S", "COMMUNITY", True)


async def test_pods_rent_can_wait_until_the_pod_works(
    api: Api, runpod: RunPodDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods_command, "LOOK_SECONDS", 0.05)

    waiting = asyncio.create_task(troupe(api, "pods", "rent", "--wait"))
    await until(lambda: runpod.pods)
    (provider_id,) = runpod.pods
    await register(api, {"provider_id": provider_id}, name="rented one")
    code, text = await waiting
    assert (code, "rented one ready" in text) == (0, True)


async def test_pods_end_knows_the_pod_by_any_of_its_names(api: Api, runpod: RunPodDouble) -> None:
    first, second = await rent(api), await rent(api)
    pod = await register(api, second)
    code, _ = await troupe(api, "pods", "end", str(first["provider_id"]), pod["id"])
    assert (code, runpod.pods) == (0, {})


async def test_pods_end_touches_nothing_that_was_not_rented_here(api: Api, runpod: RunPodDouble) -> None:
    stranger = runpod.plant("somebody's")
    with pytest.raises(NotFound, match="was not rented by this server"):
        await troupe(api, "pods", "end", stranger)
    assert list(runpod.pods) == [stranger]


async def test_pods_rentals_tells_what_is_spent(api: Api) -> None:
    await rent(api)
    assert "1 rented now, $0.27 per hour" in (await troupe(api, "pods", "rentals"))[1]


async def test_pods_reconcile_tells_what_it_did(api: Api, runpod: RunPodDouble) -> None:
    rental = await rent(api)
    name = rental["name"].replace(rental["id"], "orphan")
    runpod.plant(name)
    assert await troupe(api, "pods", "reconcile") == (0, f"ended: {name} (it is not in the books)\n")
    assert await troupe(api, "pods", "reconcile") == (0, "provider and books agree\n")


async def test_a_refusal_of_the_provider_reaches_the_terminal(api: Api, runpod: RunPodDouble) -> None:
    runpod.fail("POST", Failure(402, "insufficient balance"))
    with pytest.raises(RequestFailed, match="insufficient balance"):
        await troupe(api, "pods", "rent")


async def test_json_before_or_after_the_action_is_nothing_but_json(api: Api) -> None:
    before, after = await troupe(api, "pods", "--json", "rentals"), await troupe(api, "pods", "rentals", "--json")
    assert [json.loads(text) for _, text in (before, after)] == [{"items": [], "next_cursor": None}] * 2
