"""Files that a pod only promised: how long they are waited for, and what ends the wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from controlplane.domain.jobs import Attempt, Job
from controlplane.errors import Conflict
from controlplane.ports import HandedOver
from controlplane.services.assets import Assets
from controlplane.services.generation import ImageRequest
from tests.services.character_studio import PROJECT, Studio, drawing, png, studio, upload_body

Ask = Callable[[], Awaitable[HandedOver | None]]
STALL_SECONDS = 1.0
REFERENCES = [f"reference-{number}" for number in range(3)]
BOTH = pytest.mark.usefixtures("each_database")


def saying(*answers: HandedOver | None) -> Ask:
    """A pod that gives these answers, the last one again and again."""
    left = list(answers)

    async def ask() -> HandedOver | None:
        return left.pop(0) if len(left) > 1 else left[0]

    return ask


def on_their_way(*references: str, idle_seconds: float = 0.0) -> HandedOver:
    return HandedOver(pending=frozenset(references), idle_seconds=idle_seconds)


def outputs(*references: str) -> dict[str, Any]:
    return {"8": {"assets": [{"upload": one, "name": f"{one}.png"} for one in references]}}


async def promising(s: Studio) -> tuple[Job, Attempt]:
    """A job of the character Mira and its attempt."""
    await s.trained("Mira")
    job = await s.generation.submit_image(PROJECT, ImageRequest("smiling", "mira"))
    return job, await s.attempt(job)


async def ticket(
    s: Studio, attempt: Attempt, reference: str, number: int = 0, assets: Assets | None = None
) -> dict[str, Any]:
    data = png(drawing(number))
    body = {**upload_body(attempt.id, data, "output", "image/png", number), "upload": reference}
    return await (assets or s.assets).ticket(s.pod, body)


async def put(s: Studio, answer: dict[str, Any], number: int = 0, assets: Assets | None = None) -> None:
    """Store a file as a PUT does that comes through the process of ``assets``."""
    key = answer["upload"]["url"].split("/files/", 1)[1].split("?")[0]
    info = await s.store.put(key, png(drawing(number)), "image/png")
    (assets or s.assets).stored(info)


async def arrive(s: Studio, attempt: Attempt, reference: str, number: int = 0, assets: Assets | None = None) -> str:
    answer = await ticket(s, attempt, reference, number, assets)
    await put(s, answer, number, assets)
    return str(answer["asset_id"])


async def finish(s: Studio, job: Job, attempt: Attempt, *references: str) -> list[str]:
    """The job's assets once it is done."""
    result = await s.finish(job, attempt, outputs(*references))
    return list(result.result["asset_ids"])


async def test_a_file_that_is_there_is_not_waited_for(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        job, attempt = await promising(s)
        asset_id = await arrive(s, attempt, REFERENCES[0])
        assert await finish(s, job, attempt, REFERENCES[0]) == [asset_id]


@BOTH
async def test_a_promised_file_is_waited_for(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        job, attempt = await promising(s)
        waiting = asyncio.create_task(finish(s, job, attempt, REFERENCES[0]))
        await asyncio.sleep(0.2)
        asset_id = await arrive(s, attempt, REFERENCES[0])
        assert await waiting == [asset_id]


@BOTH
async def test_a_file_that_came_through_another_process_is_found(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        job, attempt = await promising(s)
        waiting = asyncio.create_task(finish(s, job, attempt, REFERENCES[0]))
        other = Assets(s.db, s.store, s.jobs._clock, s.settings)
        asset_id = await arrive(s, attempt, REFERENCES[0], assets=other)
        assert await waiting == [asset_id]


@BOTH
async def test_a_ticket_from_here_and_a_file_that_came_elsewhere_belong_together(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        job, attempt = await promising(s)
        other = Assets(s.db, s.store, s.jobs._clock, s.settings)
        waiting = asyncio.create_task(finish(s, job, attempt, REFERENCES[0]))
        await put(s, await ticket(s, attempt, REFERENCES[0]), assets=other)
        assert len(await waiting) == 1


async def test_assets_are_in_the_order_in_which_the_node_named_them(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        job, attempt = await promising(s)
        waiting = asyncio.create_task(finish(s, job, attempt, *REFERENCES))
        ids = {number: await arrive(s, attempt, REFERENCES[number], number) for number in (2, 0, 1)}
        assert await waiting == [ids[0], ids[1], ids[2]]


async def test_a_job_waits_for_the_last_of_its_files(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        job, attempt = await promising(s)
        waiting = asyncio.create_task(finish(s, job, attempt, *REFERENCES[:2]))
        await arrive(s, attempt, REFERENCES[0], 0)
        await asyncio.sleep(0.5)
        over_too_soon = waiting.done()
        await arrive(s, attempt, REFERENCES[1], 1)
        assert (over_too_soon, len(await waiting)) == (False, 2)


async def test_the_pods_reason_is_what_is_told_of_a_file_that_failed(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        job, _ = await promising(s)
        ask = saying(HandedOver(failed={REFERENCES[0]: "the line is cut (HTTP 503, away)"}))
        problems = await s.assets.verify(job, outputs(REFERENCES[0]), ask)
        assert list(problems) == [f"{REFERENCES[0]}.png: the line is cut (HTTP 503, away)"]


async def test_a_file_that_the_pod_lost_hold_of_but_that_arrived_counts(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        job, attempt = await promising(s)
        other = Assets(s.db, s.store, s.jobs._clock, s.settings)

        async def ask() -> HandedOver:
            # It arrives between our look and the pod's answer, of which the pod never heard.
            await arrive(s, attempt, REFERENCES[0], assets=other)
            return HandedOver(failed={REFERENCES[0]: "no answer to the PUT"})

        assert list(await s.assets.verify(job, outputs(REFERENCES[0]), ask)) == []


async def test_a_file_that_a_restarted_pod_does_not_know_is_given_up_at_once(tmp_path: Path) -> None:
    async with studio(tmp_path, stall_seconds=60.0) as s:
        job, _ = await promising(s)
        (problem,) = await s.assets.verify(job, outputs(REFERENCES[0]), saying(HandedOver()))
        assert "does not know of it any more" in problem


async def test_what_befell_the_pod_is_told(tmp_path: Path) -> None:
    async with studio(tmp_path, stall_seconds=60.0) as s:
        job, _ = await promising(s)
        (problem,) = await s.assets.verify(job, outputs(REFERENCES[0]), saying(HandedOver(gone="died: killed")))
        assert problem == f"{REFERENCES[0]}.png: died: killed"


async def test_a_pod_that_says_it_stored_what_is_not_there_is_not_believed(tmp_path: Path) -> None:
    async with studio(tmp_path, stall_seconds=60.0) as s:
        job, attempt = await promising(s)
        await ticket(s, attempt, REFERENCES[0])
        (problem,) = await s.assets.verify(
            job, outputs(REFERENCES[0]), saying(HandedOver(stored=frozenset(REFERENCES[:1])))
        )
        assert "is not in the store" in problem


async def test_the_wait_ends_where_nothing_moves(tmp_path: Path) -> None:
    async with studio(tmp_path, stall_seconds=STALL_SECONDS) as s:
        job, _ = await promising(s)
        (problem,) = await s.assets.verify(
            job, outputs(REFERENCES[0]), saying(on_their_way(REFERENCES[0], idle_seconds=99.0))
        )
        assert "nothing moved" in problem


async def test_the_wait_ends_where_the_pod_says_nothing(tmp_path: Path) -> None:
    async with studio(tmp_path, stall_seconds=STALL_SECONDS) as s:
        job, _ = await promising(s)
        (problem,) = await s.assets.verify(job, outputs(REFERENCES[0]), saying(None))
        assert "nothing moved" in problem


async def test_the_wait_goes_on_while_the_pod_says_that_files_move(tmp_path: Path) -> None:
    async with studio(tmp_path, stall_seconds=STALL_SECONDS) as s:
        job, attempt = await promising(s)
        began = time.monotonic()
        waiting = asyncio.create_task(s.assets.verify(job, outputs(REFERENCES[0]), saying(on_their_way(REFERENCES[0]))))
        await asyncio.sleep(2.5 * STALL_SECONDS)
        await arrive(s, attempt, REFERENCES[0])
        assert (list(await waiting), time.monotonic() - began > 2 * STALL_SECONDS) == ([], True)


@BOTH
async def test_a_reference_of_another_job_brings_no_file(tmp_path: Path) -> None:
    async with studio(tmp_path, stall_seconds=STALL_SECONDS) as s:
        _, attempt = await promising(s)
        await arrive(s, attempt, REFERENCES[0])
        other = await s.generation.submit_image(PROJECT, ImageRequest("frowning", "mira"))
        await s.attempt(other)
        assert await s.assets.verify(other, outputs(REFERENCES[0]), saying(None)) != []


@BOTH
async def test_the_same_reference_again_gets_the_same_ticket(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        _, attempt = await promising(s)
        first, again = [await ticket(s, attempt, REFERENCES[0]) for _ in range(2)]
        assert first["asset_id"] == again["asset_id"]


async def test_two_references_to_the_same_bytes_are_two_files(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        _, attempt = await promising(s)
        first, second = [await ticket(s, attempt, one) for one in REFERENCES[:2]]
        assert first["asset_id"] != second["asset_id"]


async def test_a_reference_cannot_be_used_for_another_file(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        _, attempt = await promising(s)
        await ticket(s, attempt, REFERENCES[0], 0)
        with pytest.raises(Conflict, match="announced as another file"):
            await ticket(s, attempt, REFERENCES[0], 1)


async def test_a_stopped_wait_leaves_nothing_behind(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        job, attempt = await promising(s)
        waiting = asyncio.create_task(s.assets.verify(job, outputs(REFERENCES[0]), saying(on_their_way(REFERENCES[0]))))
        await asyncio.sleep(0.4)
        await ticket(s, attempt, REFERENCES[0])
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        arrivals = s.assets._arrivals
        assert (arrivals._bells, arrivals._tickets, arrivals._stored) == ({}, {}, {})
