"""Several processes on one database: what one decides counts for all, and the death of one loses no message."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import Connection

from controlplane.db import outbox
from controlplane.db import webhooks as webhook_rows
from controlplane.db.database import Database
from controlplane.failpoints import ENVIRONMENT
from controlplane.services.events import append
from tests.services.engine import PROJECT

from .receiver import receiver
from .sending import all_are, room

on_each = pytest.mark.usefixtures("each_database")

LEAST_EVENTS = 40


async def sender(folder: Path, failpoints: str = "") -> Process:
    environment = {**os.environ, **({ENVIRONMENT: failpoints} if failpoints else {})}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.webhooks.sender_process", str(folder), stdout=PIPE, env=environment
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 60) == b"ready\n"
    return process


@pytest.mark.parametrize("step", ["webhook before send", "webhook after send"])
@on_each
async def test_the_death_of_one_of_three_senders_loses_nothing_and_makes_no_id_twice(tmp_path: Path, step: str) -> None:
    async with receiver() as there, room(tmp_path) as here:
        webhook = await here.hook(there.url)
        processes = await asyncio.gather(sender(tmp_path, f"kill@2 {step}"), sender(tmp_path), sender(tmp_path))
        number, end = 0, time.monotonic() + 60
        try:
            while number < LEAST_EVENTS or processes[0].returncode is None:
                assert time.monotonic() < end, "it had nothing to do, and so did not die"
                await here.happen("job.succeeded", number=number)
                number += 1
                await asyncio.sleep(0.01)
            while await here.engine.db.read(outbox.waiting):
                assert time.monotonic() < end + 60, await here.deliveries(webhook)
                await asyncio.sleep(0.05)
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        assert processes[0].returncode == -signal.SIGKILL
        told = {got.id: got.verified(webhook.secret)["data"]["number"] for got in there.got}
        assert sorted(told.values()) == list(range(number))


@on_each
async def test_a_message_that_was_sent_by_a_process_that_died_comes_again_under_its_id(tmp_path: Path) -> None:
    async with receiver() as there, room(tmp_path) as here:
        webhook = await here.hook(there.url)
        await here.happen("job.succeeded")
        dying = await sender(tmp_path, "kill webhook after send")
        assert await asyncio.wait_for(dying.wait(), 60) == -signal.SIGKILL
        living = await sender(tmp_path)
        try:
            (only,) = await here.reached(webhook, all_are("delivered"))
        finally:
            living.kill()
            await living.wait()
        assert Counter(there.ids) == {only.id: 2}


async def test_an_event_that_another_process_had_under_way_when_the_webhook_was_made_is_told(
    tmp_path: Path, postgresql_url: str
) -> None:
    """Its transaction began before the webhook was there and ends after it; on SQLite the webhook would wait."""
    async with room(tmp_path, database_url=postgresql_url) as here:
        other = Database(here.engine.settings.effective_database_url)
        begun, go_on = threading.Event(), threading.Event()

        def write(c: Connection) -> None:
            append(c, PROJECT, "job.succeeded", {})
            begun.set()
            assert go_on.wait(60)

        try:
            await other.write(append, PROJECT, "job.succeeded", {})  # it knows by now that there is no webhook
            under_way = asyncio.create_task(other.write(write))
            assert await asyncio.to_thread(begun.wait, 60)
            webhook = await here.hook("http://127.0.0.1:9/")
            go_on.set()
            await under_way
            assert len(await here.deliveries(webhook)) == 1
        finally:
            go_on.set()
            await other.close()


@on_each
async def test_another_process_notes_what_a_webhook_of_this_one_wants(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        other = Database(here.engine.settings.effective_database_url)
        try:
            await other.write(append, PROJECT, "job.succeeded", {})
            webhook = await here.hook("http://127.0.0.1:9/")
            await other.write(append, PROJECT, "job.succeeded", {})
            await here.webhooks.change(PROJECT, webhook.id, types=("job.failed",))
            await other.write(append, PROJECT, "job.succeeded", {})
            await other.write(append, PROJECT, "job.failed", {})
            found = await here.deliveries(webhook)
        finally:
            await other.close()
        assert [one.type for one in found] == ["job.succeeded", "job.failed"]


@on_each
async def test_a_change_that_was_rolled_back_is_forgotten(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        webhook = await here.hook("http://127.0.0.1:9/")

        def write(c: Connection) -> None:
            webhook_rows.change(c, webhook, types=["job.failed"])
            webhook_rows.renew_version(c)
            version = c.exec_driver_sql("SELECT webhooks FROM installation").scalar_one()
            outbox.note(c, [outbox.Told(1, PROJECT, "nothing", str(version))], 0.0)
            raise RuntimeError("not after all")

        with pytest.raises(RuntimeError, match="not after all"):
            await here.engine.db.write(write)
        await here.happen("job.succeeded")
        assert [one.type for one in await here.deliveries(webhook)] == ["job.succeeded"]
