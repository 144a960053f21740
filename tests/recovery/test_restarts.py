"""Whatever dies, a job goes on where it was, or is tried again elsewhere, or fails with the story of each attempt."""

from __future__ import annotations

import asyncio

import pytest

from .studio import Studio

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_a_restarted_server_finds_the_running_prompt_again(studio: Studio) -> None:
    job = await studio.ask(3.0)
    await studio.running(job)
    await studio.server.kill()
    await studio.server.ready()
    over = await studio.final(job)
    assert (over["status"], len(over["attempts"]), len(over["assets"])) == ("succeeded", 1, 1)
    assert studio.ran(job) == [job["seed"]]


async def test_a_restarted_server_finds_a_prompt_that_ended_meanwhile(studio: Studio) -> None:
    job = await studio.ask(1.0)
    await studio.running(job)
    await studio.server.kill()
    await asyncio.sleep(1.5)
    await studio.server.ready()
    over = await studio.final(job)
    assert (over["status"], len(over["attempts"]), len(over["assets"])) == ("succeeded", 1, 1)
    assert studio.ran(job) == [job["seed"]]


async def test_what_waits_when_the_server_dies_is_done_after_it(studio: Studio) -> None:
    running = await studio.ask(1.0)
    await studio.running(running)
    waiting = [await studio.ask() for _ in range(5)]
    await studio.server.kill()
    await studio.server.ready()
    assert [(await studio.final(job))["status"] for job in [running, *waiting]] == ["succeeded"] * 6
    assert sorted(studio.ran(*waiting)) == [job["seed"] for job in waiting]


async def test_a_job_that_loses_its_pod_three_times_fails_with_the_story_of_each_attempt(studio: Studio) -> None:
    job = await studio.ask(50.0)
    for number in (1, 2, 3):
        await studio.reached(job, lambda _, number=number: len(studio.ran(job)) == number)
        await studio.pod.kill()
        await studio.pod.ready()
    over = await studio.final(job)
    assert (over["status"], [one["number"] for one in over["attempts"]]) == ("failed", [1, 2, 3])
    assert all(one["error"] and one["pod_id"] and one["placement"] for one in over["attempts"])
    assert all(f"attempt {number}" in over["error"]["detail"] for number in (1, 2, 3)), over["error"]
    await studio.is_free()
