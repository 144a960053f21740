"""Renting and ending pods: the books, the limits on spending, and what a pod is told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from controlplane.errors import (
    IdempotencyMismatch,
    LauncherUnpaid,
    LauncherUnreachable,
    NoOffer,
    RentingImpossible,
    SpendLimit,
)
from controlplane.services.events import Hints
from controlplane.services.idempotency import claim
from controlplane.services.rental_books import RentalBooks, RentRequest
from controlplane.services.rentals import Rentals
from tests.launchers.renting import Office, office, settings_for
from tests.launchers.runpod_double import Failure, RunPodDouble
from tests.services.engine import JOIN_TOKEN, PROJECT
from tests.waiting import until


async def test_a_rented_pod_is_in_the_books(desk: Office, runpod: RunPodDouble) -> None:
    rental = await desk.rent()
    assert (rental.state, [rental.provider_id], rental.price_per_hour) == ("booting", list(runpod.pods), 0.27)


async def test_a_pods_name_carries_the_installation_and_the_rental(desk: Office, runpod: RunPodDouble) -> None:
    rental = await desk.rent()
    assert runpod.names() == [rental.name]
    assert rental.name.startswith("troupe-")
    assert rental.name.endswith(f"-{rental.id}")


async def test_every_replica_has_the_same_tag(desk: Office, tmp_path: Path, runpod: RunPodDouble) -> None:
    async with office(tmp_path, runpod.url) as replica:
        first, second = await desk.rent(), await replica.rent()
    assert first.name.removesuffix(first.id) == second.name.removesuffix(second.id)


async def test_a_pod_is_told_where_to_register_and_as_what(desk: Office, runpod: RunPodDouble) -> None:
    rental = await desk.rent(labels=("image", "video"))
    told = runpod.environment_of(str(rental.provider_id))
    shown = {name: told[name] for name in told if name.startswith("TROUPE_")}
    assert shown == {
        "TROUPE_CONTROL_PLANE_URL": "https://troupe.example",
        "TROUPE_JOIN_TOKEN": JOIN_TOKEN,
        "TROUPE_POD_LABELS": "image,video",
        "TROUPE_POD_PORT": "8188",
        "TROUPE_PRICE_PER_HOUR": "0.27",
    }


async def test_the_join_token_may_be_a_secret_at_the_provider(tmp_path: Path, runpod: RunPodDouble) -> None:
    async with office(tmp_path, runpod.url, pod_join_token_secret="troupe_join") as desk:
        rental = await desk.rent()
    told = runpod.environment_of(str(rental.provider_id))
    assert told["TROUPE_JOIN_TOKEN"] == "{{ RUNPOD_SECRET_troupe_join }}"


async def test_when_its_pod_registers_a_rental_has_joined(desk: Office) -> None:
    rental = await desk.rent()
    pod = await desk.register(rental)
    joined = await desk.rental(rental.id)
    assert (joined.state, joined.pod_id) == ("joined", pod.id)


async def test_a_pod_that_knows_no_price_shows_its_rentals(desk: Office) -> None:
    await desk.register(await desk.rent())
    await desk.books()
    assert [pod.price_per_hour for pod in await desk.pods.list(PROJECT)] == [0.27]


async def test_a_price_that_a_pod_forgets_on_registering_again_is_shown_again(desk: Office) -> None:
    rental = await desk.rent()
    for _ in range(2):
        await desk.register(rental)
        await desk.books()
    assert [pod.price_per_hour for pod in await desk.pods.list(PROJECT)] == [0.27]


async def test_a_container_that_starts_anew_is_still_the_same_rental(desk: Office) -> None:
    rental = await desk.rent()
    await desk.register(rental)
    again = await desk.register(rental, instance_id="another instance")
    assert (await desk.rental(rental.id)).pod_id == again.id


async def test_every_pod_that_registered_from_a_rental_is_lost_with_it(desk: Office) -> None:
    rental = await desk.rent()
    await desk.register(rental)
    await desk.register(rental, instance_id="another instance")
    await desk.rentals.end(PROJECT, rental.id)
    assert [pod.state for pod in await desk.pods.list(PROJECT)] == ["lost", "lost"]


async def test_somebody_elses_pod_joins_no_rental(desk: Office) -> None:
    rental = await desk.rent()
    await desk.register(rental, provider_id="another")
    assert (await desk.rental(rental.id)).state == "booting"


async def test_ending_a_rental_ends_its_pod(desk: Office, runpod: RunPodDouble) -> None:
    rental = await desk.rent()
    ended = await desk.rentals.end(PROJECT, rental.id)
    assert (ended.state, ended.reason, runpod.pods) == ("ended", "it was asked for", {})


async def test_the_pod_of_an_ended_rental_is_lost_at_once(desk: Office) -> None:
    rental = await desk.rent()
    await desk.register(rental)
    await desk.rentals.end(PROJECT, rental.id)
    assert [pod.state for pod in await desk.pods.list(PROJECT)] == ["lost"]


async def test_ending_twice_is_no_error(desk: Office) -> None:
    rental = await desk.rent()
    await desk.rentals.end(PROJECT, rental.id)
    assert (await desk.rentals.end(PROJECT, rental.id)).state == "ended"


async def test_ending_while_the_provider_is_away_is_kept_in_mind(desk: Office, runpod: RunPodDouble) -> None:
    rental = await desk.rent()
    await desk.register(rental)
    runpod.fail("DELETE", *[Failure(503)] * 30)
    assert (await desk.rentals.end(PROJECT, rental.id)).state == "ending"
    assert [pod.state for pod in await desk.pods.list(PROJECT)] == ["draining"]


async def test_a_rental_that_is_ended_while_it_is_asked_for_leaves_no_pod(desk: Office, runpod: RunPodDouble) -> None:
    runpod.fail("POST", Failure(429, headers={"Retry-After": "1"}))
    asking = asyncio.create_task(desk.rent())
    await until(lambda: runpod.count("POST"))
    (rental,) = await desk.books()
    await desk.rentals.end(PROJECT, rental.id)
    assert ((await asking).state, runpod.pods) == ("ended", {})


async def test_a_cost_is_hours_times_price(desk: Office) -> None:
    rental = await desk.rent()
    desk.clock.ahead = 7200.0
    assert desk.rentals.cost(rental) == pytest.approx(0.54, abs=0.001)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"public_url": "http://127.0.0.1:8700"}, "Set TROUPE_PUBLIC_URL"),
        ({"public_url": ""}, "Set TROUPE_PUBLIC_URL"),
        ({"public_url": "http://localhost:8700"}, "Set TROUPE_PUBLIC_URL"),
        ({"public_url": "http://192.168.1.5:8700"}, "Set TROUPE_PUBLIC_URL"),
        ({"pod_image": ""}, "set TROUPE_POD_IMAGE"),
    ],
)
async def test_what_is_not_set_up_is_told_before_anything_is_asked(
    tmp_path: Path, runpod: RunPodDouble, values: dict[str, Any], words: str
) -> None:
    async with office(tmp_path, runpod.url, **values) as desk:
        with pytest.raises(RentingImpossible, match=words):
            await desk.rent()
    assert runpod.calls == []


async def test_without_a_provider_nothing_is_rented(desk: Office, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "")
    books = RentalBooks(desk.db, desk.clock, settings)
    poor = Rentals(desk.db, desk.clock, Hints(), settings, books, JOIN_TOKEN, None)
    with pytest.raises(RentingImpossible, match="set TROUPE_RUNPOD_API_KEY"):
        await poor.rent(PROJECT, RentRequest())


async def test_a_request_that_nothing_fits_says_what_was_wrong_with_each(desk: Office, runpod: RunPodDouble) -> None:
    with pytest.raises(NoOffer, match=r"RTX A5000 costs 0.27 .*RTX 4000 Ada has 20 GB, needed are 24.*A40 is out"):
        await desk.rent(max_price_per_hour=0.2)
    assert runpod.count("POST") == 0


async def test_more_pods_than_allowed_are_refused(tmp_path: Path, runpod: RunPodDouble) -> None:
    async with office(tmp_path, runpod.url, max_pods=1) as desk:
        await desk.rent()
        with pytest.raises(SpendLimit, match="TROUPE_MAX_PODS is 1"):
            await desk.rent()
    assert len(runpod.pods) == 1


async def test_two_requests_at_once_do_not_slip_past_the_limit(tmp_path: Path, runpod: RunPodDouble) -> None:
    async with office(tmp_path, runpod.url, max_pods=1) as desk, office(tmp_path, runpod.url, max_pods=1) as replica:
        outcomes = await asyncio.gather(desk.rent(), replica.rent(), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Rental", "SpendLimit"]


async def test_more_money_than_allowed_is_refused(tmp_path: Path, runpod: RunPodDouble) -> None:
    async with office(tmp_path, runpod.url, max_price_per_hour=0.5) as desk:
        await desk.rent()
        with pytest.raises(SpendLimit, match="TROUPE_MAX_PRICE_PER_HOUR"):
            await desk.rent()


async def test_an_ended_pod_makes_room_again(tmp_path: Path, runpod: RunPodDouble) -> None:
    async with office(tmp_path, runpod.url, max_pods=1) as desk:
        await desk.rentals.end(PROJECT, (await desk.rent()).id)
        assert (await desk.rent()).state == "booting"


async def test_candidates_over_the_limit_are_not_tried(tmp_path: Path, runpod: RunPodDouble) -> None:
    runpod.without_capacity.add("NVIDIA RTX A5000")
    async with office(tmp_path, runpod.url, max_price_per_hour=0.5) as desk:
        with pytest.raises(Exception, match="refused every candidate"):
            await desk.rent()
    assert runpod.count("POST") == 1


async def test_a_refusal_is_in_the_books_with_its_reason(desk: Office, runpod: RunPodDouble) -> None:
    runpod.fail("POST", Failure(402, "insufficient balance"))
    with pytest.raises(LauncherUnpaid):
        await desk.rent()
    (rental,) = await desk.books()
    assert (rental.state, "insufficient balance" in rental.reason) == ("failed", True)


async def test_a_provider_that_is_away_is_in_the_books_as_well(desk: Office, runpod: RunPodDouble) -> None:
    runpod.fail("POST", *[Failure(500)] * 9)
    with pytest.raises(LauncherUnreachable):
        await desk.rent()
    assert [rental.state for rental in await desk.books()] == ["failed"]


async def test_a_repeated_request_gets_the_first_ones_pod(desk: Office, runpod: RunPodDouble) -> None:
    first = await desk.rentals.rent(PROJECT, RentRequest(), claim(PROJECT, "key-1", "/rentals", RentRequest()))
    again = await desk.rentals.rent(PROJECT, RentRequest(), claim(PROJECT, "key-1", "/rentals", RentRequest()))
    assert (again.id, len(runpod.pods)) == (first.id, 1)


async def test_the_same_key_for_another_pod_is_refused(desk: Office) -> None:
    await desk.rentals.rent(PROJECT, RentRequest(), claim(PROJECT, "key-1", "/rentals", RentRequest()))
    with pytest.raises(IdempotencyMismatch):
        await desk.rentals.rent(
            PROJECT, RentRequest(gpu_count=2), claim(PROJECT, "key-1", "/rentals", RentRequest(gpu_count=2))
        )


async def test_the_shorter_of_two_lifetimes_holds(tmp_path: Path, runpod: RunPodDouble) -> None:
    async with office(tmp_path, runpod.url, max_pod_hours=2.0) as desk:
        lifetimes = [(await desk.rent(max_hours=hours)).max_hours for hours in (None, 1.0, 5.0)]
    assert lifetimes == [2.0, 1.0, 2.0]
