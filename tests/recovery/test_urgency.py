"""Pauses, priorities and deadlines on a real pod."""

from __future__ import annotations

import asyncio

import pytest

from .studio import Studio

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_of_a_paused_project_what_runs_goes_on_and_what_waits_begins_after_it(studio: Studio) -> None:
    running = await studio.ask(1.0)
    await studio.running(running)
    await studio.pause("the bill")
    waiting = await studio.ask()
    over = await studio.final(running)
    await asyncio.sleep(0.5)
    seen = await studio.job(waiting)
    await studio.resume()
    assert (over["status"], seen["status"], studio.ran(waiting)[:1]) == ("succeeded", "queued", [])
    assert "the project is paused since" in seen["placement"]["reason"]
    assert (await studio.final(waiting))["status"] == "succeeded"


async def test_a_pause_outlives_the_server(studio: Studio) -> None:
    await studio.pause()
    waiting = await studio.ask()
    await studio.server.kill()
    await studio.server.ready()
    await asyncio.sleep(1.0)
    seen = await studio.job(waiting)
    await studio.resume()
    assert (seen["status"], (await studio.final(waiting))["status"]) == ("queued", "succeeded")


async def test_the_more_urgent_of_waiting_jobs_goes_first(studio: Studio) -> None:
    await studio.pause()
    jobs = [await studio.ask(0.1, priority=priority) for priority in (0, 50, -50, 50)]
    await studio.resume()
    for job in jobs:
        await studio.final(job)
    assert studio.ran(*jobs) == [jobs[number]["seed"] for number in (1, 3, 0, 2)]


async def test_a_deadline_that_passes_while_a_job_waits_fails_it_in_the_words_of_its_placement(studio: Studio) -> None:
    await studio.pause("the bill")
    job = await studio.ask(deadline_seconds=1)
    over = await studio.final(job)
    await studio.resume()
    assert over["status"] == "failed"
    assert "the project is paused since" in over["error"]["detail"]
    assert ": the bill" in over["error"]["detail"]
    assert studio.ran(job) == []


async def test_a_deadline_that_passes_while_a_job_runs_stops_it_on_its_pod(studio: Studio) -> None:
    job = await studio.ask(50.0, deadline_seconds=1.5)
    await studio.running(job)
    over = await studio.final(job, 15.0)
    assert (over["status"], over["error"]["code"], over["assets"]) == ("failed", "deadline_exceeded", [])
    await studio.is_free()
