"""The RunPod launcher against a double that holds both sides to RunPod's own document."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from controlplane.domain.rentals import PodOrder, PodWish, RentedPod
from controlplane.errors import LauncherRefused, LauncherUnpaid, LauncherUnreachable
from controlplane.launchers.runpod import RunPodLauncher
from controlplane.launchers.runpod_wire import Pace
from tests.launchers.renting import QUICK
from tests.launchers.runpod_double import ACCOUNT_KEY, Failure, RunPodDouble

WISH = PodWish(min_memory_gb=24)
SECRET = "a join token of some length"
A5000, RTX4090, L40S = "NVIDIA RTX A5000", "NVIDIA GeForce RTX 4090", "NVIDIA L40S"


@pytest.fixture
async def launcher(runpod: RunPodDouble) -> AsyncIterator[RunPodLauncher]:
    made = RunPodLauncher(runpod.url, ACCOUNT_KEY, QUICK)
    yield made
    await made.close()


def order(**values: Any) -> PodOrder:
    given = {"name": "troupe-abcd-1", "image": "ghcr.io/example/pod:1", "wish": WISH, "port": 8188, **values}
    return PodOrder(**{"env": {"TROUPE_JOIN_TOKEN": SECRET}, **given})


async def rent(launcher: RunPodLauncher, wish: PodWish = WISH, **values: Any) -> RentedPod:
    offers = [offer for offer in await launcher.offers(wish) if not offer.obstacle]
    return await launcher.rent(order(wish=wish, **values), offers)


def tried(runpod: RunPodDouble) -> list[str]:
    return [call.body["gpu"]["id"] for call in runpod.calls if call.method == "POST"]


async def test_what_fits_comes_by_price(launcher: RunPodLauncher) -> None:
    offers = await launcher.offers(WISH)
    assert [offer.gpu for offer in offers if not offer.obstacle] == [A5000, RTX4090, L40S]


async def test_at_the_same_price_the_better_stock_comes_first(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    runpod.gpus[1]["price"] = runpod.gpus[0]["price"]
    assert (await launcher.offers(WISH))[0].gpu == RTX4090


async def test_gpus_asked_for_by_name_keep_their_order(launcher: RunPodLauncher) -> None:
    offers = await launcher.offers(PodWish(gpus=(L40S, A5000)))
    assert [offer.gpu for offer in offers if not offer.obstacle] == [L40S, A5000]


async def test_what_does_not_fit_says_why(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    runpod.gpus.append({**runpod.gpus[1], "id": "AMD", "name": "MI300X", "manufacturer": "AMD"})
    runpod.gpus[3]["centres"] = ("US-KS-2",)
    wish = PodWish(min_memory_gb=24, data_centres=("EU-RO-1",))
    obstacles = {offer.name: offer.obstacle for offer in await launcher.offers(wish) if offer.obstacle}
    assert obstacles == {
        "MI300X": "is made by AMD",
        "RTX 4000 Ada": "has 20 GB, needed are 24",
        "A40": "is out of stock",
        "L40S": "is out of stock in EU-RO-1",
    }


async def test_the_price_is_that_of_all_gpus_of_the_pod(launcher: RunPodLauncher) -> None:
    offers = await launcher.offers(PodWish(gpus=(L40S,), gpu_count=2, cloud="COMMUNITY"))
    assert offers[0].price_per_hour == pytest.approx(2 * 0.79)


async def test_a_rented_pod_has_what_was_ordered(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    wish = PodWish(data_centres=("EU-RO-1",), min_cuda="12.8")
    pod = await rent(launcher, wish, volume_id="vol_1", registry="reg_1", disk_gb=70)
    there = runpod.pods[pod.id]
    shown = {name: there[name] for name in ("name", "image", "disk", "ports", "registry", "mounts")}
    assert shown == {
        "name": "troupe-abcd-1",
        "image": "ghcr.io/example/pod:1",
        "disk": 70,
        "ports": ["8188/http"],
        "registry": "reg_1",
        "mounts": {"network": [{"volumeId": "vol_1", "path": "/workspace"}]},
    }


async def test_a_pod_is_told_its_price(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    pod = await rent(launcher)
    assert runpod.environment_of(pod.id)["TROUPE_PRICE_PER_HOUR"] == "0.27"


async def test_a_disk_of_its_own_is_mounted(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    pod = await rent(launcher, volume_gb=20, volume_path="/models")
    assert runpod.pods[pod.id]["mounts"] == {"persistent": {"size": 20, "path": "/models"}}


async def test_out_of_stock_leads_to_the_next_candidate(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    runpod.without_capacity.add(A5000)
    assert (await rent(launcher)).gpu == RTX4090


async def test_a_pool_that_is_forbidden_is_skipped(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    runpod.forbidden |= {A5000, RTX4090}
    assert (await rent(launcher)).gpu == L40S


async def test_when_every_candidate_is_refused_it_is_the_request(
    launcher: RunPodLauncher, runpod: RunPodDouble
) -> None:
    runpod.fail("POST", *[Failure(400, "the image reference is not valid")] * 3)
    with pytest.raises(LauncherRefused, match=r"RTX A5000, RTX 4090, L40S.*not valid.*usually the request"):
        await rent(launcher)


async def test_no_balance_stops_at_once(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    runpod.fail("POST", Failure(402, "insufficient balance"))
    with pytest.raises(LauncherUnpaid, match="insufficient balance"):
        await rent(launcher)
    assert tried(runpod) == [A5000]


async def test_a_body_that_does_not_fit_is_never_sent_again(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    with pytest.raises(LauncherRefused, match=r"Request validation failed; .*minimum of 10.*\(422\)"):
        await rent(launcher, volume_gb=5)
    assert tried(runpod) == [A5000]
    assert len(runpod.faults) == 2
    runpod.faults.clear()


async def test_a_wrong_key_says_which_setting(runpod: RunPodDouble) -> None:
    stranger = RunPodLauncher(runpod.url, "rpa_wrong", QUICK)
    with pytest.raises(LauncherRefused, match="TROUPE_RUNPOD_API_KEY"):
        await stranger.list()
    await stranger.close()


async def test_a_rate_limit_is_waited_out_as_long_as_it_says(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    runpod.fail("POST", Failure(429, "slow down", {"Retry-After": "1"}))
    pod = await rent(launcher)
    first, second = (call.at for call in runpod.calls if call.method == "POST")
    assert second - first >= 1.0, pod


async def test_a_rate_limit_longer_than_our_patience_says_how_long(
    launcher: RunPodLauncher, runpod: RunPodDouble
) -> None:
    runpod.fail("POST", Failure(429, "slow down", {"Retry-After": "1800"}))
    with pytest.raises(LauncherUnreachable, match="slow down; try again in 1800 s") as caught:
        await rent(launcher)
    assert caught.value.headers == {"Retry-After": "1800"}


async def test_requests_wait_where_a_window_is_used_up(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    runpod.remaining, runpod.reset_seconds = 0, 1
    await launcher.list()
    runpod.remaining = 60
    started = time.monotonic()
    await launcher.list()
    assert time.monotonic() - started >= 0.9


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ('"minute";r=0;t=12, "hour";r=2800;t=1812', 12),
        ('"minute";r=3;t=12, "hour";r=0;t=1812', 1812),
        ('"minute";r=1;t=12', 0),
        ("nonsense", 0),
        ("", 0),
    ],
)
def test_the_pace_follows_the_headers(header: str, seconds: float) -> None:
    pace = Pace()
    pace.note({"RateLimit": header}, 100.0)
    assert pace.wait(100.0) == seconds


BEFORE = Failure(502, "bad gateway")
AFTER = Failure(502, "bad gateway", done_first=True)
CUT_BEFORE, CUT_AFTER = Failure(cut=True), Failure(cut=True, done_first=True)
SLOW_AFTER = Failure(500, slow=1.0, done_first=True)


@pytest.mark.parametrize("failure", [BEFORE, CUT_BEFORE], ids=["5xx", "cut"])
async def test_a_failure_before_the_pod_was_made_is_tried_again_with_the_same_gpu(
    launcher: RunPodLauncher, runpod: RunPodDouble, failure: Failure
) -> None:
    runpod.fail("POST", failure, failure)
    pod = await rent(launcher)
    assert (tried(runpod), list(runpod.pods)) == ([A5000] * 3, [pod.id])


@pytest.mark.parametrize("failure", [AFTER, CUT_AFTER, SLOW_AFTER], ids=["5xx", "cut", "too slow"])
async def test_a_pod_whose_answer_was_lost_is_found_by_its_name(
    launcher: RunPodLauncher, runpod: RunPodDouble, failure: Failure
) -> None:
    runpod.fail("POST", failure)
    pod = await rent(launcher)
    assert (tried(runpod), list(runpod.pods)) == ([A5000], [pod.id])


async def test_nothing_is_created_again_while_the_list_cannot_be_read(
    launcher: RunPodLauncher, runpod: RunPodDouble
) -> None:
    offers = [offer for offer in await launcher.offers(WISH) if not offer.obstacle]
    runpod.fail("POST", AFTER)
    runpod.fail("GET", Failure(503), Failure(429, headers={"Retry-After": "0"}), Failure(cut=True))
    pod = await launcher.rent(order(), offers)
    assert (list(runpod.pods), runpod.count("POST"), runpod.count("GET")) == ([pod.id], 1, 4)


async def test_failures_without_end_are_told(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    runpod.fail("POST", *[BEFORE] * 20)
    with pytest.raises(LauncherUnreachable, match=r"no pod in 5 tries.*bad gateway"):
        await rent(launcher)


async def test_our_secrets_are_not_repeated_in_errors(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    runpod.fail("POST", Failure(402, f"no balance for TROUPE_JOIN_TOKEN={SECRET}"))
    with pytest.raises(LauncherUnpaid) as caught:
        await rent(launcher)
    assert SECRET not in caught.value.detail


async def test_the_list_tells_of_every_pod(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    running = runpod.plant("somebody's", status="RUNNING")
    stopped = runpod.plant("another", status="EXITED")
    told = {pod.id: (pod.status, pod.price_per_hour) for pod in await launcher.list()}
    assert told == {running: ("running", 0.27), stopped: ("stopped", None)}


async def test_a_pod_that_is_not_there_is_not_found(launcher: RunPodLauncher) -> None:
    assert await launcher.find("nothing") is None


async def test_a_pod_is_ended_through_rate_limits_and_failures(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    pod_id = runpod.plant("ours")
    runpod.fail("DELETE", Failure(429, headers={"Retry-After": "0"}), Failure(500), Failure(cut=True))
    assert await launcher.end(pod_id) is True
    assert runpod.pods == {}


async def test_a_pod_that_was_ended_before_is_no_error(launcher: RunPodLauncher, runpod: RunPodDouble) -> None:
    runpod.fail("DELETE", Failure(500, done_first=True))
    assert await launcher.end(runpod.plant("ours")) is False


async def test_a_pod_goes_from_provisioning_to_running(launcher: RunPodLauncher) -> None:
    pod = await rent(launcher)
    seen = [found.told for _ in range(3) if (found := await launcher.find(pod.id))]
    assert seen == ["PROVISIONING", "STARTING", "RUNNING"]


async def test_a_pods_own_key_may_end_only_itself(runpod: RunPodDouble) -> None:
    own, other = runpod.plant("one"), runpod.plant("other")
    agent = RunPodLauncher(runpod.url, runpod.environment_of(own)["RUNPOD_API_KEY"], QUICK)
    with pytest.raises(LauncherRefused, match="access denied"):
        await agent.end(other)
    await agent.end(own)
    await agent.close()
    assert list(runpod.pods) == [other]
