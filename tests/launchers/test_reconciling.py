"""The reconciler: what is at the provider and what is in the books are the same afterwards, whatever went wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from controlplane.domain.rentals import RentedPod, tag
from controlplane.errors import LauncherUnreachable
from tests.launchers.renting import Office, office
from tests.launchers.runpod_double import Failure, RunPodDouble
from tests.waiting import until

LIMITED = Failure(429, "slow down", {"Retry-After": "0"})
BROKEN = Failure(503, "try later")


async def our_tag(desk: Office) -> str:
    """How the names of this installation's pods begin."""
    rental = await desk.rent()
    return rental.name.removesuffix(rental.id)


async def owners(desk: Office, runpod: RunPodDouble) -> dict[str, str]:
    """Every pod at the provider with the state of the open rental that owns it; empty where none does."""
    books = {rental.provider_id: rental.state for rental in await desk.books() if rental.is_open}
    return {pod_id: books.get(pod_id, "") for pod_id in runpod.pods}


async def test_a_planted_orphan_is_ended_and_nothing_else(desk: Office, runpod: RunPodDouble) -> None:
    prefix = await our_tag(desk)
    (ours,) = runpod.pods
    strangers = [runpod.plant("somebody's own"), runpod.plant("troupe-other1-x"), runpod.plant(f"not {prefix}x")]
    orphan = runpod.plant(f"{prefix}orphan")
    report = await desk.reconciler.reconcile()
    assert [step.pod for step in report.done] == [orphan]
    assert list(runpod.pods) == [ours, *strangers]


async def test_an_orphan_is_ended_through_rate_limits_and_failures(desk: Office, runpod: RunPodDouble) -> None:
    orphan = runpod.plant(f"{await our_tag(desk)}orphan")
    runpod.fail("GET", LIMITED, BROKEN, Failure(cut=True), LIMITED)
    runpod.fail("DELETE", LIMITED, BROKEN, Failure(cut=True), Failure(500, done_first=True))
    await desk.reconciler.reconcile()
    assert orphan not in runpod.pods


async def test_what_cannot_be_ended_is_told_and_does_not_hold_up_the_rest(desk: Office, runpod: RunPodDouble) -> None:
    prefix = await our_tag(desk)
    first, second = runpod.plant(f"{prefix}a"), runpod.plant(f"{prefix}b")
    runpod.fail("DELETE", Failure(403, "access denied"))
    report = await desk.reconciler.reconcile()
    assert ([step.pod for step in report.done], len(report.problems)) == ([second], 1)
    assert f"{prefix}a" in report.problems[0]
    await desk.reconciler.reconcile()
    assert first not in runpod.pods


async def test_a_list_that_cannot_be_read_changes_nothing(desk: Office, runpod: RunPodDouble) -> None:
    rental = await desk.rent()
    desk.clock.ahead = 3600.0
    runpod.fail("GET", *[BROKEN] * 50)
    with pytest.raises(LauncherUnreachable):
        await desk.reconciler.reconcile()
    assert (await desk.rental(rental.id)).state == "booting"


async def test_the_sweep_lives_through_a_provider_that_is_away(desk: Office, runpod: RunPodDouble) -> None:
    runpod.fail("GET", *[BROKEN] * 50)
    await desk.reconciler.sweep()
    assert runpod.count("GET") > 1


async def test_a_young_orphan_is_left_for_the_process_that_may_be_writing_it_down(
    desk: Office, runpod: RunPodDouble
) -> None:
    orphan = runpod.plant(f"{await our_tag(desk)}orphan", age_seconds=5.0)
    await desk.reconciler.reconcile()
    assert orphan in runpod.pods


async def test_two_replicas_may_reconcile_at_once(desk: Office, tmp_path: Path, runpod: RunPodDouble) -> None:
    prefix = await our_tag(desk)
    for number in range(5):
        runpod.plant(f"{prefix}orphan-{number}")
    async with office(tmp_path, runpod.url) as replica:
        await asyncio.gather(desk.reconciler.reconcile(), replica.reconciler.reconcile())
    assert await owners(desk, runpod) == {pod_id: "booting" for pod_id in runpod.pods}
    assert len(runpod.pods) == 1


async def test_the_pod_of_an_ended_rental_is_ended(desk: Office, runpod: RunPodDouble) -> None:
    rental = await desk.rent()
    runpod.fail("DELETE", *[BROKEN] * 12)
    await desk.rentals.end("default", rental.id)
    assert len(runpod.pods) == 1
    runpod._failures.clear()
    await desk.reconciler.reconcile()
    assert ((await desk.rental(rental.id)).state, runpod.pods) == ("ended", {})


async def test_a_pod_that_appears_after_its_request_failed_is_ended(desk: Office, runpod: RunPodDouble) -> None:
    runpod.fail("POST", *[Failure(500)] * 9)
    with pytest.raises(LauncherUnreachable):
        await desk.rent()
    (rental,) = await desk.books()
    runpod.plant(rental.name, age_seconds=0.0)
    await desk.reconciler.reconcile()
    assert runpod.pods == {}


async def test_a_rental_whose_pod_is_gone_is_ended(desk: Office, runpod: RunPodDouble) -> None:
    rental = await desk.rent()
    await desk.register(rental)
    await desk.books()
    runpod.pods.clear()
    desk.clock.ahead = 200.0
    await desk.reconciler.reconcile()
    ended = await desk.rental(rental.id)
    assert (ended.state, ended.reason) == ("ended", "the provider no longer has it")
    assert [pod.state for pod in await desk.pods.list("default")] == ["lost"]


async def test_a_pod_that_only_the_list_forgot_is_kept(
    desk: Office, runpod: RunPodDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    rental = await desk.rent()
    desk.clock.ahead = 200.0

    async def nothing() -> Sequence[RentedPod]:
        return ()

    monkeypatch.setattr(desk.launcher, "list", nothing)
    await desk.reconciler.reconcile()
    assert (await desk.rental(rental.id)).state == "booting"


async def test_a_pod_that_does_not_join_in_time_is_ended_and_told_why(tmp_path: Path, runpod: RunPodDouble) -> None:
    async with office(tmp_path, runpod.url, pod_join_seconds=600.0) as desk:
        rental = await desk.rent()
        desk.clock.ahead = 601.0
        await desk.reconciler.reconcile()
        ended = await desk.rental(rental.id)
    assert (ended.state, ended.reason, runpod.pods) == ("ended", "it did not join within 10 minutes", {})


async def test_a_pod_that_joins_in_the_last_moment_is_kept(tmp_path: Path, runpod: RunPodDouble) -> None:
    async with office(tmp_path, runpod.url, pod_join_seconds=600.0) as desk:
        rental = await desk.rent()
        desk.clock.ahead = 601.0
        await desk.register(rental)
        await desk.reconciler.reconcile()
        assert (await desk.rental(rental.id)).state == "joined"


async def test_a_pod_that_joins_while_the_provider_is_listed_is_kept(
    tmp_path: Path, runpod: RunPodDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with office(tmp_path, runpod.url, pod_join_seconds=600.0) as desk:
        rental = await desk.rent()
        desk.clock.ahead = 601.0
        listed = await desk.launcher.list()

        async def slowly() -> Sequence[RentedPod]:
            await desk.register(rental)
            return listed

        monkeypatch.setattr(desk.launcher, "list", slowly)
        await desk.reconciler.reconcile()
        assert (await desk.rental(rental.id)).state == "joined"


async def test_a_stopped_pod_is_ended(desk: Office, runpod: RunPodDouble) -> None:
    rental = await desk.rent()
    runpod.become(str(rental.provider_id), "EXITED")
    await desk.reconciler.reconcile()
    assert runpod.pods == {}


async def test_a_pod_is_ended_when_its_time_is_over(desk: Office, runpod: RunPodDouble) -> None:
    rental = await desk.rent(max_hours=1.0)
    await desk.register(rental)
    desk.clock.ahead = 3601.0
    await desk.reconciler.reconcile()
    assert ((await desk.rental(rental.id)).reason, runpod.pods) == ("its time of 1 hours is over", {})


async def test_a_silent_pod_is_ended_unless_its_container_just_started_anew(
    tmp_path: Path, runpod: RunPodDouble
) -> None:
    async with office(tmp_path, runpod.url, pod_silence_seconds=600.0) as desk:
        silent, restarted = await desk.rent(), await desk.rent()
        for rental in (silent, restarted):
            await desk.register(rental)
        await desk.books()
        desk.clock.ahead = 601.0
        await desk.register(restarted, instance_id="another instance")
        await desk.reconciler.reconcile()
        assert list(runpod.pods) == [restarted.provider_id]
        assert (await desk.rental(silent.id)).reason == "nothing was heard of it for 10 minutes"


async def ask_and_die(folder: Path, runpod: RunPodDouble, seen: str) -> None:
    """Let a process ask for a pod and kill it, once the double has it or its request."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.launchers.renting_process", str(folder), runpod.url, env={**os.environ}
    )
    try:
        await until(lambda: runpod.pods if seen == "pod" else runpod.count("POST"))
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()


async def test_a_process_killed_before_it_wrote_the_pods_id_down_leaves_no_unowned_pod(
    tmp_path: Path, runpod: RunPodDouble
) -> None:
    runpod.fail("POST", Failure(500, slow=60.0, done_first=True))
    async with office(tmp_path, runpod.url) as desk:
        await ask_and_die(tmp_path, runpod, "pod")
        (left,) = await desk.books()
        assert (left.state, left.provider_id, len(runpod.pods)) == ("requested", None, 1)
        report = await desk.reconciler.reconcile()
        assert [step.kind for step in report.done] == ["adopt"]
        assert await owners(desk, runpod) == {pod_id: "booting" for pod_id in runpod.pods}


async def test_a_process_killed_before_there_was_a_pod_leaves_no_request_behind(
    tmp_path: Path, runpod: RunPodDouble
) -> None:
    runpod.fail("POST", Failure(500, slow=60.0))
    async with office(tmp_path, runpod.url) as desk:
        await ask_and_die(tmp_path, runpod, "request")
        desk.clock.ahead = 601.0
        await desk.reconciler.reconcile()
        (left,) = await desk.books()
    assert (left.state, left.reason) == ("failed", "the provider never answered, and has no pod of this name")


async def test_an_adopted_pod_joins_like_any_other(tmp_path: Path, runpod: RunPodDouble) -> None:
    runpod.fail("POST", Failure(500, slow=60.0, done_first=True))
    async with office(tmp_path, runpod.url) as desk:
        await ask_and_die(tmp_path, runpod, "pod")
        await desk.reconciler.reconcile()
        (rental,) = await desk.books()
        await desk.register(rental)
        assert (await desk.rental(rental.id)).state == "joined"


async def test_a_reconciler_that_meets_a_request_under_way_does_not_harm_it(
    desk: Office, tmp_path: Path, runpod: RunPodDouble
) -> None:
    runpod.fail("POST", Failure(500, slow=0.3, done_first=True))
    asking = asyncio.create_task(desk.rent())
    await until(lambda: runpod.pods)
    async with office(tmp_path, runpod.url) as replica:
        await replica.reconciler.reconcile()
    rental = await asking
    assert await owners(desk, runpod) == {str(rental.provider_id): "booting"}


async def test_another_installations_pods_are_left_alone(tmp_path: Path, runpod: RunPodDouble) -> None:
    async with office(tmp_path / "a", runpod.url, installation="studio1") as first:
        theirs = await first.rent()
        runpod.age(str(theirs.provider_id), 3600.0)
        async with office(tmp_path / "b", runpod.url, installation="studio2") as second:
            await second.reconciler.reconcile()
    assert runpod.names() == [tag("studio1", theirs.id)]
