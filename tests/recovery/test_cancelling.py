"""A cancel in every phase of a job ends in an outcome that the pod, the store and the job agree on."""

from __future__ import annotations

import asyncio
import signal

import pytest

from .studio import Studio

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_a_job_that_waits_is_cancelled_at_once_and_never_begun(studio: Studio) -> None:
    await studio.pause()
    job = await studio.ask()
    assert (await studio.cancel(job), (await studio.job(job))["status"]) == (200, "cancelled")
    await studio.resume()
    await studio.is_free()
    assert studio.ran(job) == []


async def test_a_job_that_waits_behind_another_on_the_pod_is_cancelled_and_never_begun(studio: Studio) -> None:
    first = await studio.ask(1.5)
    await studio.running(first)
    behind = await studio.ask()
    await asyncio.sleep(0.3)
    assert await studio.cancel(behind) in (200, 202)
    assert (await studio.final(behind))["status"] == "cancelled"
    assert (await studio.final(first))["status"] == "succeeded"
    await studio.is_free()
    assert (studio.ran(behind), await studio.assets_of(behind)) == ([], [])


async def test_a_job_that_runs_is_stopped_on_its_pod(studio: Studio) -> None:
    job = await studio.ask(50.0)
    await studio.running(job)
    assert await studio.cancel(job) == 202
    over = await studio.final(job, 10.0)
    assert (over["status"], over["assets"], [one["status"] for one in over["attempts"]]) == (
        "cancelled",
        [],
        ["cancelled"],
    )
    await studio.is_free()
    assert await studio.assets_of(job) == []


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5])
async def test_a_cancel_at_any_moment_has_one_outcome(studio: Studio, delay: float) -> None:
    job = await studio.ask(0.15, count=3)
    await asyncio.sleep(delay)
    answered = await studio.cancel(job)
    over = await studio.final(job)
    pictures = await studio.assets_of(job)
    if answered == 409:
        assert (over["status"], len(pictures)) == ("succeeded", 3)
    else:
        assert (answered in (200, 202), over["status"], pictures) == (True, "cancelled", [])
    assert len(over["attempts"]) <= 1
    assert all(one["finished_at"] for one in over["attempts"])


async def test_a_job_that_is_over_is_not_cancelled_any_more(studio: Studio) -> None:
    job = await studio.ask()
    before = await studio.final(job)
    assert (before["status"], await studio.cancel(job)) == ("succeeded", 409)
    assert await studio.job(job) == before


async def test_cancelling_twice_is_one_cancel(studio: Studio) -> None:
    job = await studio.ask(50.0)
    await studio.running(job)
    answers = await asyncio.gather(*(studio.cancel(job) for _ in range(5)))
    assert set(answers) <= {200, 202}
    assert (await studio.final(job))["status"] == "cancelled"
    assert await studio.cancel(job) == 200
    await studio.is_free()


async def test_a_job_whose_server_dies_after_the_cancel_is_stopped_by_the_next_one(studio: Studio) -> None:
    job = await studio.ask(50.0)
    await studio.running(job)
    studio.pod.signal(signal.SIGSTOP)
    assert await studio.cancel(job) == 202
    await studio.server.kill()
    studio.pod.signal(signal.SIGCONT)
    await studio.server.ready()
    assert (await studio.final(job))["status"] == "cancelled"
    await studio.is_free()


async def test_a_cancel_that_its_pod_is_deaf_for_is_heard_once_it_listens(studio: Studio) -> None:
    job = await studio.ask(50.0)
    await studio.running(job)
    await asyncio.gather(studio.pod.stall(3.0), studio.cancel(job))
    assert (await studio.final(job))["status"] == "cancelled"
    await studio.is_free()


async def test_a_cancel_that_its_pod_dies_of_is_no_loss(studio: Studio) -> None:
    job = await studio.ask(50.0)
    await studio.running(job)
    await asyncio.gather(studio.pod.kill(), studio.cancel(job))
    await studio.pod.ready()
    over = await studio.final(job)
    assert (over["status"], over["assets"], len(over["attempts"])) == ("cancelled", [], 1)
    await studio.is_free()
    assert studio.ran(job) == [job["seed"]]
