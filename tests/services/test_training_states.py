"""Saved states of a training: what a retry is told of them, which of them are kept, and what a pod notes on its way."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from controlplane.db import attempts as attempt_rows
from controlplane.domain.assets import state_standing
from controlplane.domain.jobs import Attempt
from controlplane.errors import PayloadTooLarge
from controlplane.services import training
from controlplane.services.events import Hints
from controlplane.services.pods import Pods
from tests.services.character_studio import PROJECT, Clock, Studio, studio, upload_body

pytestmark = pytest.mark.usefixtures("each_database")

TAR = "application/x-tar"


async def announce(s: Studio, attempt: Attempt, data: bytes, epoch: int, step: int) -> dict[str, Any]:
    body = {**upload_body(attempt.id, data, "state", TAR, epoch), "name": f"state-e{epoch:06d}-s{step:08d}.tar"}
    return await s.assets.ticket(s.pod, body)


async def save(s: Studio, attempt: Attempt, data: bytes, epoch: int, step: int) -> str:
    ticket = await announce(s, attempt, data, epoch, step)
    key = ticket["upload"]["url"].split("/files/", 1)[1].split("?")[0]
    await s.store.put(key, data, TAR)
    return str(ticket["asset_id"])


async def lose(s: Studio, attempt: Attempt) -> None:
    def write(c: Any) -> None:
        attempt_rows.change(c, PROJECT, attempt.id, status="lost", finished_at=time.time())

    await s.db.write(write)


async def resume(s: Studio) -> Any:
    return (await s.training.dataset_for_pod(s.pod, "mira", 1))["resume"]


async def test_a_first_attempt_has_nothing_to_go_on_from(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.create("Mira")
        assert await resume(s) is None


async def test_a_retry_is_told_the_newest_state_of_the_attempts_before(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira")
        first = await s.attempt(created.job)
        await save(s, first, b"after two epochs", 2, 100)
        await save(s, first, b"after four epochs", 4, 200)
        await lose(s, first)
        await s.attempt(created.job, number=2)
        told = await resume(s)
        assert (told["epoch"], told["step"], told["bytes"]) == (4, 200, len(b"after four epochs"))
        assert "sig=" in told["url"]


async def test_a_state_whose_upload_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira")
        first = await s.attempt(created.job)
        await save(s, first, b"whole", 2, 100)
        await announce(s, first, b"never stored", 4, 200)
        await lose(s, first)
        assert (await resume(s))["epoch"] == 2


async def test_a_later_attempts_state_goes_before_an_earlier_ones(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira")
        first = await s.attempt(created.job)
        await save(s, first, b"first", 6, 300)
        await lose(s, first)
        second = await s.attempt(created.job, number=2)
        await save(s, second, b"second", 8, 400)
        await lose(s, second)
        assert (await resume(s))["epoch"] == 8


async def test_another_versions_states_are_not_offered(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira")
        await save(s, await s.attempt(created.job), b"first", 6, 300)
        other = await s.create("Other")
        assert (await s.training.dataset_for_pod(s.pod, other.character.character.id, 1))["resume"] is None


async def test_only_the_two_newest_states_of_an_attempt_are_kept(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira")
        first = await s.attempt(created.job)
        for epoch in (2, 4, 6):
            await save(s, first, f"after {epoch}".encode(), epoch, 50 * epoch)
        await s.assets.sweep()
        assert len([key for key in await s.files() if "/states/" in key]) == 2


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "cancelled"])
async def test_no_state_outlives_its_training(outcome: str, tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira")
        first = await s.attempt(created.job)
        await save(s, first, b"first", 2, 100)
        await lose(s, first)
        second = await s.attempt(created.job, number=2)
        await save(s, second, b"second", 4, 200)
        if outcome == "succeeded":
            lora = await s.hand_over(second, b"lora", "lora", "application/octet-stream")
            await s.finish(created.job, second, {"1": {"lora": [{"asset_id": lora}]}})
        else:
            ending = training.on_failed if outcome == "failed" else training.on_cancelled
            await s.db.write(lambda c: ending(c, created.job, None, time.time()))
        await s.assets.sweep()
        assert [key for key in await s.files() if "/states/" in key] == []


async def test_a_state_may_be_larger_than_what_people_upload(tmp_path: Path) -> None:
    async with studio(tmp_path, max_upload_bytes=100) as s:
        created = await s.create("Mira")
        attempt = await s.attempt(created.job)
        assert await save(s, attempt, b"x" * 200, 2, 100)
        with pytest.raises(PayloadTooLarge):
            await s.assets.ticket(s.pod, upload_body(attempt.id, b"x" * 200, "checkpoint", "application/octet-stream"))


async def test_a_note_becomes_a_warning_of_the_job_once_and_an_event(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira")
        attempt = await s.attempt(created.job)
        pods = Pods(s.db, Clock(), Hints(), s.settings, "join")
        note = "out of memory: trying again with gradient checkpointing"
        for seq in (1, 2):
            await pods.attempt_progress(s.pod, attempt.id, {"seq": seq, "phase": "preparing", "note": note})
        assert list((await s.jobs.get(PROJECT, created.job.id)).job.warnings) == [note]

        def events(c: Any) -> int:
            return int(c.exec_driver_sql("SELECT count(*) FROM events WHERE type = 'job.warning'").scalar())

        assert await s.db.read(events) == 1


async def test_every_report_of_a_training_is_a_sign_of_life(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira")
        attempt = await s.attempt(created.job)
        pods = Pods(s.db, Clock(), Hints(), s.settings, "join")
        body = {"phase": "training", "step": 3, "total_steps": 1000}
        await pods.attempt_progress(s.pod, attempt.id, {**body, "seq": 1})
        first = (await s.jobs.get(PROJECT, created.job.id)).job.progress["reported_at"]
        await pods.attempt_progress(s.pod, attempt.id, {**body, "seq": 2})
        end = time.monotonic() + 20.0
        while (await s.jobs.get(PROJECT, created.job.id)).job.progress["reported_at"] == first:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("name", ["", "state.tar", "state-e1-s2.tar", "state-e000001-s00000002.tar.gz"])
def test_a_name_that_says_no_standing_has_none(name: str) -> None:
    assert state_standing(name) is None
