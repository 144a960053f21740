"""Sending: signed, once for each event, tried again, and never held up by an address that is dead."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from controlplane.db import outbox
from controlplane.domain.addresses import any_address
from controlplane.errors import Conflict
from controlplane.internet import WebhookPoster
from controlplane.services import webhook_sending
from controlplane.services.event_tail import Wanted
from controlplane.services.events import append
from controlplane.services.webhook_sending import WebhookSender
from tests.services.engine import PROJECT
from tests.waiting import until

from .receiver import Receiver, receiver
from .sending import GIVE_UP_SECONDS, EventBodies, Room, all_are, room

pytestmark = pytest.mark.usefixtures("each_database")

DAY = 24 * 3600.0


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Room]:
    async with room(tmp_path) as made:
        made.start()
        yield made


@pytest.fixture
async def there() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


async def test_a_message_is_signed_as_standard_webhooks_says(here: Room, there: Receiver) -> None:
    webhook = await here.hook(there.url)
    await here.happen("job.succeeded", job_id="job_1")
    await until(lambda: there.got)
    told = there.got[0].verified(webhook.secret)
    assert (told["type"], told["data"]) == ("job.succeeded", {"job_id": "job_1"})


async def test_a_message_is_signed_by_nobody_elses_secret(here: Room, there: Receiver) -> None:
    await here.hook(there.url)
    other = await here.hook(f"{there.url}?other", "job.failed")
    await here.happen("job.succeeded")
    await until(lambda: there.got)
    assert not there.got[0].is_signed_by(other.secret)


async def test_only_the_types_that_were_asked_for_are_told(here: Room, there: Receiver) -> None:
    webhook = await here.hook(there.url, "job.failed")
    await here.happen("job.queued", "job.progress", "job.succeeded", "job.failed")
    (only,) = await here.reached(webhook, all_are("delivered"))
    assert only.type == "job.failed"


async def test_a_webhook_is_told_nothing_that_happened_before_it(here: Room, there: Receiver) -> None:
    await here.happen("job.succeeded", number=1)
    webhook = await here.hook(there.url)
    await here.happen("job.succeeded", number=2)
    await here.reached(webhook, all_are("delivered"))
    assert [json.loads(got.body)["data"] for got in there.got] == [{"number": 2}]


async def test_an_event_that_is_rolled_back_is_told_to_nobody(here: Room, there: Receiver) -> None:
    webhook = await here.hook(there.url)

    def write(c: Connection) -> None:
        append(c, PROJECT, "job.succeeded", {})
        raise Conflict("not after all")

    with pytest.raises(Conflict):
        await here.engine.db.write(write)
    assert await here.deliveries(webhook) == []


async def test_what_happens_while_nobody_sends_is_sent_later(tmp_path: Path, there: Receiver) -> None:
    async with room(tmp_path) as here:
        webhook = await here.hook(there.url)
        await here.happen("job.succeeded")
        assert [one.state for one in await here.deliveries(webhook)] == ["waiting"]
        here.start()
        await here.reached(webhook, all_are("delivered"))


async def test_a_failed_attempt_is_made_again_under_the_same_id(
    here: Room, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.domain.webhooks.PAUSES", (0.05,) * 7)
    there.answers = [500, 302, 429]
    webhook = await here.hook(there.url)
    await here.happen("job.succeeded")
    (only,) = await here.reached(webhook, all_are("delivered"))
    assert [one["status"] for one in only.attempts] == [500, 302, 429, 200]
    assert set(there.ids) == {only.id}


async def test_every_attempt_says_the_same(here: Room, there: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.domain.webhooks.PAUSES", (0.05,) * 7)
    there.answers = [500, 500]
    webhook = await here.hook(there.url)
    await here.happen("job.succeeded")
    await here.reached(webhook, all_are("delivered"))
    assert len({got.body for got in there.got}) == 1


async def test_a_redirect_is_not_followed(here: Room, there: Receiver) -> None:
    there.status, there.headers = 307, {"Location": there.url}
    webhook = await here.hook(there.url)
    await here.happen("job.succeeded")
    await here.reached(webhook, lambda found: found and found[0].attempts)
    assert len(there.got) == 1


async def test_a_delivery_is_given_up_after_eight_tries_in_a_day(here: Room, there: Receiver) -> None:
    there.status = 503
    webhook = await here.hook(there.url)
    await here.happen("job.succeeded")
    begun = here.engine.clock.now()
    for tries in range(1, 8):
        (waiting,) = await here.reached(webhook, lambda found: found and found[0].tries == tries)  # noqa: B023
        here.engine.clock.ahead += waiting.next_at - here.engine.clock.now()
        here.engine.hints.wake()
    (only,) = await here.reached(webhook, all_are("failed"))
    assert len(only.attempts) == 8
    assert 0.85 * DAY < here.engine.clock.now() - begun < 1.15 * DAY


async def test_what_the_receiver_answered_is_kept_in_part(here: Room, there: Receiver) -> None:
    there.status, there.text = 500, "x" * 10_000
    webhook = await here.hook(there.url)
    await here.happen("job.succeeded")
    (only,) = await here.reached(webhook, lambda found: found and found[0].attempts)
    assert only.attempts[0]["answer"] == "x" * 500


async def test_an_address_where_nobody_listens_says_so_in_the_log(here: Room) -> None:
    webhook = await here.hook("http://127.0.0.1:9/hook")
    await here.happen("job.succeeded")
    (only,) = await here.reached(webhook, lambda found: found and found[0].attempts)
    assert "no connection" in only.attempts[0]["error"]


async def test_an_answer_that_takes_too_long_is_none(tmp_path: Path) -> None:
    async with receiver(held=asyncio.Event()) as there, room(tmp_path, post_seconds=0.2) as here:
        here.start()
        webhook = await here.hook(there.url)
        await here.happen("job.succeeded")
        (only,) = await here.reached(webhook, lambda found: found and found[0].attempts)
        assert "within 0.2 s" in only.attempts[0]["error"]


async def test_a_dead_address_holds_nobody_up(here: Room, there: Receiver) -> None:
    async with receiver(held=asyncio.Event()) as dead:
        await here.hook(dead.url)
        for number in range(300):
            await here.happen("job.succeeded", number=number)
        await until(lambda: dead.got)
        webhook = await here.hook(there.url, "job.failed")
        await here.happen("job.failed")
        await here.reached(webhook, all_are("delivered"))
        assert dead.most_at_once == webhook_sending.EACH_AT_ONCE


async def test_an_address_that_fails_gets_one_attempt_at_a_time(
    here: Room, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.domain.webhooks.PAUSES", (3600.0,) * 7)
    there.status = 500
    webhook = await here.hook(there.url)
    await here.happen("job.succeeded")
    await here.reached(webhook, lambda found: found and found[0].attempts)
    there.most_at_once, there.held = 0, asyncio.Event()
    await here.happen(*["job.succeeded"] * 20)
    await until(lambda: len(there.got) > 1)
    await asyncio.sleep(0.3)
    assert there.most_at_once == 1


async def test_gone_disables_a_webhook_and_says_so(here: Room, there: Receiver) -> None:
    there.status = 410
    webhook = await here.hook(there.url)
    await here.happen("job.succeeded")
    await here.reached(webhook, all_are("failed"))
    assert (await here.webhooks.get(PROJECT, webhook.id)).disabled_reason == "it answered 410"
    stream = await here.engine.events.open(Wanted(PROJECT), after=0)
    assert [event.type for event in await stream.take(1.0)] == ["job.succeeded", "webhook.disabled"]
    stream.close()


async def test_a_webhook_that_fails_for_days_is_disabled(here: Room, there: Receiver) -> None:
    there.status = 500
    webhook = await here.hook(there.url)
    await here.happen("job.succeeded")
    await here.reached(webhook, lambda found: found and found[0].attempts)
    here.engine.clock.ahead += GIVE_UP_SECONDS
    here.engine.hints.wake()
    await here.reached(webhook, all_are("failed"))
    assert not (await here.webhooks.get(PROJECT, webhook.id)).enabled


async def test_a_success_forgives_what_failed_before(
    here: Room, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.domain.webhooks.PAUSES", (0.05,) * 7)
    there.answers = [500]
    webhook = await here.hook(there.url)
    await here.happen("job.succeeded")
    await here.reached(webhook, all_are("delivered"))
    assert (await here.webhooks.get(PROJECT, webhook.id)).failing_since is None


async def test_nothing_is_noted_for_a_disabled_webhook(here: Room, there: Receiver) -> None:
    webhook = await here.hook(there.url)
    await here.webhooks.change(PROJECT, webhook.id, enabled=False)
    await here.happen("job.succeeded")
    assert await here.deliveries(webhook) == []


async def test_both_secrets_sign_after_a_rotation(here: Room, there: Receiver) -> None:
    old = await here.hook(there.url)
    new = await here.webhooks.rotate(PROJECT, old.id)
    await here.happen("job.succeeded")
    await until(lambda: there.got)
    assert [there.got[0].is_signed_by(secret) for secret in (old.secret, new.secret)] == [True, True]


async def test_the_old_secret_signs_no_longer_after_a_day(here: Room, there: Receiver) -> None:
    here.engine.clock.ahead = -DAY - 60.0
    old = await here.hook(there.url)
    new = await here.webhooks.rotate(PROJECT, old.id)
    here.engine.clock.ahead = 0.0
    await here.happen("job.succeeded")
    await until(lambda: there.got)
    assert [there.got[0].is_signed_by(secret) for secret in (old.secret, new.secret)] == [False, True]


async def test_a_delivery_is_sent_again_by_hand_under_its_old_id(here: Room, there: Receiver) -> None:
    webhook = await here.hook(there.url)
    await here.happen("job.succeeded")
    (first,) = await here.reached(webhook, all_are("delivered"))
    await here.webhooks.redeliver(PROJECT, webhook.id, first.id)
    await until(lambda: len(there.got) == 2)
    assert there.ids == [first.id, first.id]


async def test_a_test_message_arrives_whatever_is_listened_to(here: Room, there: Receiver) -> None:
    webhook = await here.hook(there.url, "job.failed")
    sent = await here.webhooks.test(PROJECT, webhook.id)
    await until(lambda: there.got)
    assert (there.ids, there.got[0].verified(webhook.secret)["type"]) == ([sent.id], "webhook.test")


async def test_a_claim_that_lapsed_is_not_written_by_its_first_owner(here: Room, there: Receiver) -> None:
    there.held = asyncio.Event()
    webhook = await here.hook(there.url)
    await here.happen("job.succeeded")
    await until(lambda: there.got)
    here.engine.clock.ahead += webhook_sending.LEASE_SECONDS + 1
    here.engine.hints.wake()
    await until(lambda: len(there.got) == 2)
    there.held.set()
    await here.reached(webhook, all_are("delivered"))
    await asyncio.sleep(0.2)
    (only,) = await here.deliveries(webhook)
    assert (len(only.attempts), set(there.ids)) == (1, {only.id})


async def test_two_senders_send_nothing_twice(here: Room, there: Receiver) -> None:
    webhook = await here.hook(there.url)
    db, clock, hints = here.engine.db, here.engine.clock, here.engine.hints
    poster = WebhookPoster(any_address)
    second = WebhookSender(db, clock, hints, poster, EventBodies(), GIVE_UP_SECONDS)  # type: ignore[arg-type]
    running = asyncio.create_task(second.run())
    try:
        for _ in range(8):
            await here.happen(*["job.succeeded"] * 5)
        await here.reached(webhook, all_are("delivered", 40))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await poster.close()
    assert len(there.ids) == len(set(there.ids)) == 40


async def test_an_event_is_noted_once_for_each_webhook(here: Room, there: Receiver) -> None:
    webhooks = [await here.hook(f"{there.url}?{number}") for number in range(3)]
    await here.happen("job.succeeded", "job.succeeded")
    found = [one for webhook in webhooks for one in await here.reached(webhook, all_are("delivered", 2))]
    assert len({(one.webhook_id, one.event_id) for one in found}) == 6


async def test_what_waits_for_a_removed_webhook_is_forgotten(tmp_path: Path) -> None:
    async with room(tmp_path) as here:
        webhook = await here.hook("http://127.0.0.1:9/")
        await here.happen("job.succeeded")
        await here.webhooks.remove(PROJECT, webhook.id)
        assert await here.engine.db.read(outbox.waiting) == 0
