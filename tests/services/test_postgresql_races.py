"""Races that only PostgreSQL can have: something else commits between a transaction's look and its write.

``meanwhile`` lets the other transaction start right behind the look. Where the look took a lock, the other one waits
for us; where it did not, it is over before we write.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from controlplane.db import assets as asset_rows
from controlplane.db import attempts as attempt_rows
from controlplane.db import characters as character_rows
from controlplane.db import held as held_rows
from controlplane.db import idempotency as key_rows
from controlplane.db import jobs as job_rows
from controlplane.db import pods as pod_rows
from controlplane.db import rentals as rental_rows
from controlplane.domain.jobs import CANCELLING, Job
from controlplane.domain.pods import SLOTS
from controlplane.domain.rentals import Offer
from controlplane.errors import CharacterNotFound, Conflict, SpendLimit, StaleClaim, Unprocessable
from controlplane.services import outcomes
from controlplane.services.characters import CharacterPatch, NewCharacter, TrainAgain
from controlplane.services.claiming import Claimed
from controlplane.services.idempotency import claim
from controlplane.services.outcomes import News
from controlplane.services.rental_books import RentalBooks, RentRequest
from controlplane.services.requests import ImageRequest
from tests.services.character_studio import Studio, drawing, png, studio, upload_body
from tests.services.engine import JOIN_TOKEN, PROJECT, Engine

WINDOW_SECONDS = 0.4
BODY = {
    "protocol": 1,
    "instance_id": "instance-one",
    "address": "http://127.0.0.1:8301",
    "token": "secret-token",
    "kind": "embedded",
    "node_classes": ["Replay"],
}


@pytest.fixture(autouse=True)
def on_postgresql(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_DATABASE_URL", postgresql_url)


@pytest.fixture
async def s(tmp_path: Path) -> AsyncIterator[Studio]:
    async with studio(tmp_path) as opened:
        yield opened


class Meanwhile:
    """Lets ``work`` run in a thread of its own right behind the first call of a function of ``db``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, work: Callable[[], Any]) -> None:
        self._real: Callable[..., Any] = getattr(module, name)
        self._thread = threading.Thread(target=self._run)
        self._work = work
        self._begun = threading.Lock()
        self._result: Any = None
        self._error: BaseException | None = None
        monkeypatch.setattr(module, name, self._look)

    def result(self) -> Any:
        """What the other one came to, once it is over."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._result

    def _look(self, *arguments: Any) -> Any:
        found = self._real(*arguments)
        if self._begun.acquire(blocking=False):
            self._thread.start()
            self._thread.join(WINDOW_SECONDS)
        return found

    def _run(self) -> None:
        try:
            work = self._work()
            self._result = asyncio.run(work) if isinstance(work, Coroutine) else work
        except BaseException as error:
            self._error = error


async def claimed(room: Engine, owner: str = "owner", **values: Any) -> Claimed:
    """A job in an attempt on a pod."""
    await room.pods.register(BODY, JOIN_TOKEN)
    await room.submit(**values)
    (found,) = await room.claim(owner)
    return found


async def test_a_cancel_is_not_overwritten_by_a_step_of_the_job(room: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    job = (found := await claimed(room)).job
    cancel = Meanwhile(monkeypatch, held_rows, "standing", lambda: room.jobs.cancel(PROJECT, job.id))
    now = room.clock.now()
    await room.db.write(outcomes.note, job, found.attempt, News(submitted_at=now), now)
    cancel.result()
    assert (await room.view(job)).job.status == CANCELLING


async def test_a_job_that_goes_back_to_the_queue_keeps_its_cancel(
    room: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = (await claimed(room)).job
    cancel = Meanwhile(monkeypatch, held_rows, "standing", lambda: room.jobs.cancel(PROJECT, job.id))
    await room.db.write(outcomes.settle, job, room.hooks, room.clock.now())
    cancel.result()
    assert (await room.view(job)).job.status == "cancelled"


async def test_a_job_is_either_cancelled_or_claimed(room: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    await room.pods.register(BODY, JOIN_TOKEN)
    job = await room.submit()

    other = Meanwhile(monkeypatch, job_rows, "get_locked", lambda: room.claim())
    view = await room.jobs.cancel(PROJECT, job.id)
    assert (other.result(), view.job.status) == ([], "cancelled")


async def test_two_claimants_do_not_fill_one_pod_twice(room: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    await room.pods.register(BODY, JOIN_TOKEN)
    for _ in range(40):
        await room.submit(estimate_seconds=0.1)
    other = Meanwhile(monkeypatch, attempt_rows, "newest_numbers", lambda: room.claim("other"))
    mine = await room.claim("one")
    theirs = await asyncio.to_thread(other.result)
    slots = [found.attempt.slot for found in (*mine, *theirs) if found.attempt]
    assert sorted(slots) == list(range(SLOTS))


async def test_a_pod_that_is_drained_while_it_is_chosen_gets_no_work(
    room: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, _ = await room.pods.register(BODY, JOIN_TOKEN)
    await room.submit()
    drain = Meanwhile(monkeypatch, job_rows, "queued_locked", lambda: room.pods.drain(pod.id))
    found = await room.claim()
    drain.result()
    assert found == []


async def test_a_heartbeat_does_not_undo_a_drain(room: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    pod, key = await room.pods.register(BODY, JOIN_TOKEN)
    await room.db.write(lambda c: pod_rows.change(c, PROJECT, pod.id, state="suspect"))
    drain = Meanwhile(monkeypatch, pod_rows, "find_locked", lambda: room.pods.drain(pod.id))
    await room.pods.heartbeat(pod.id, key, {})
    drain.result()
    (found,) = await room.pods.list(PROJECT)
    assert (found.state, found.draining) == ("draining", True)


async def test_a_pod_that_speaks_up_while_the_sweep_looks_is_not_lost(
    room: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, key = await room.pods.register(BODY, JOIN_TOKEN)
    room.clock.ahead = 1000.0
    heartbeat = Meanwhile(monkeypatch, pod_rows, "list_all", lambda: room.pods.heartbeat(pod.id, key, {}))
    lost = await room.pods.sweep()
    heartbeat.result()
    assert (lost, [one.state for one in await room.pods.list(PROJECT)]) == ([], ["ready"])


async def test_one_instance_that_registers_twice_at_once_is_one_pod(
    room: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Meanwhile(monkeypatch, pod_rows, "by_instance", lambda: room.pods.register(BODY, JOIN_TOKEN))
    pod, _ = await room.pods.register(BODY, JOIN_TOKEN)
    assert other.result()[0].id == pod.id


async def test_two_reports_at_once_both_leave_their_warning(room: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    found = await claimed(room, kind="train")
    assert found.pod is not None
    assert found.attempt is not None
    prompt = found.attempt.id

    def report(seq: int) -> Coroutine[Any, Any, Any]:
        body = {"seq": seq, "phase": "training", "note": f"note {seq}"}
        return room.pods.attempt_progress(found.pod, prompt, body)  # type: ignore[arg-type]

    other = Meanwhile(monkeypatch, job_rows, "get_locked", lambda: report(2**40))
    await report(2**40 - 1)
    other.result()
    assert (await room.view(found.job)).job.warnings == (f"note {2**40 - 1}", f"note {2**40}")


async def test_two_requests_with_one_key_make_one_job(s: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    await s.trained("Mira")
    request = ImageRequest(prompt="on a beach", character_id="mira", seed=1)

    def submit() -> Coroutine[Any, Any, Job]:
        return s.generation.submit_image(PROJECT, request, claim(PROJECT, "key-1", "/generate-image"))

    other = Meanwhile(monkeypatch, key_rows, "find", submit)
    mine = await submit()
    assert (other.result().id, await s.rows("jobs")) == (mine.id, 2)


async def test_two_creations_with_one_key_make_one_character(s: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    files = s.pictures()

    def create() -> Coroutine[Any, Any, Any]:
        return s.characters.create(PROJECT, NewCharacter("Mira"), files, claim(PROJECT, "key-1", "/characters"))

    other = Meanwhile(monkeypatch, character_rows, "lock_names", create)
    mine = await create()
    assert other.result().job.id == mine.job.id
    assert (await s.rows("characters"), len(await s.files())) == (1, 6)


async def test_two_characters_never_share_a_trigger_word(s: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    files = s.pictures()

    def create(name: str) -> Coroutine[Any, Any, Any]:
        return s.characters.create(PROJECT, NewCharacter(name, trigger_word="mirax"), files)

    other = Meanwhile(monkeypatch, character_rows, "lock_names", lambda: create("Nell"))
    await create("Mira")
    with pytest.raises(Unprocessable, match="another character"):
        other.result()


async def test_two_characters_of_one_name_at_once_get_different_ids(s: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    files = s.pictures()

    def create() -> Coroutine[Any, Any, Any]:
        return s.characters.create(PROJECT, NewCharacter("Mira"), files)

    other = Meanwhile(monkeypatch, character_rows, "lock_names", create)
    mine = await create()
    assert {mine.character.character.id, other.result().character.character.id} == {"mira", "mira-2"}


async def test_two_further_trainings_at_once_get_different_numbers(s: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    await s.trained("Mira")

    def again() -> Coroutine[Any, Any, Any]:
        return s.characters.train_again(PROJECT, "mira", TrainAgain())

    other = Meanwhile(monkeypatch, character_rows, "last_number", again)
    mine = await again()
    assert {mine.job.version, other.result().job.version} == {2, 3}


async def test_of_two_trainings_that_end_at_once_the_newer_one_is_active(
    s: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await s.create("Mira")
    second = await s.characters.train_again(PROJECT, "mira", TrainAgain())
    other = Meanwhile(monkeypatch, character_rows, "get", lambda: s.train(second.job))
    await s.train(first.job)
    other.result()
    assert (await s.characters.get(PROJECT, "mira")).character.active_version == 2


async def test_a_character_is_not_deleted_under_a_request_for_its_picture(
    s: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    await s.trained("Mira")
    delete = Meanwhile(monkeypatch, character_rows, "keep", lambda: s.characters.delete(PROJECT, "mira"))
    await s.generation.submit_image(PROJECT, ImageRequest(prompt="on a beach", character_id="mira"))
    with pytest.raises(Conflict, match="work in progress"):
        delete.result()


async def test_no_picture_is_asked_of_a_character_that_is_being_deleted(
    s: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    await s.trained("Mira")
    request = ImageRequest(prompt="on a beach", character_id="mira")
    other = Meanwhile(monkeypatch, character_rows, "lock", lambda: s.generation.submit_image(PROJECT, request))
    await s.characters.delete(PROJECT, "mira")
    with pytest.raises(CharacterNotFound):
        other.result()


async def test_a_picture_that_becomes_a_cover_while_it_is_deleted_is_none(
    s: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    await s.trained("Mira")
    job = await s.generation.submit_image(PROJECT, ImageRequest(prompt="on a beach", character_id="mira"))
    (picture,) = await s.painted(job)
    delete = Meanwhile(monkeypatch, asset_rows, "get_locked", lambda: s.assets.delete(PROJECT, picture))
    await s.characters.patch(PROJECT, "mira", CharacterPatch(cover_asset_id=picture))
    delete.result()
    assert (await s.characters.get(PROJECT, "mira")).character.cover_asset_id is None


async def test_two_uploads_at_once_get_different_keys(s: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    await s.trained("Mira")
    job = await s.generation.submit_image(PROJECT, ImageRequest(prompt="on a beach", character_id="mira", count=2))
    attempt = await s.attempt(job)

    def ticket(picture: int) -> Coroutine[Any, Any, Any]:
        body = upload_body(attempt.id, png(drawing(picture)), "output", "image/png")
        return s.assets.ticket(s.pod, body)

    other = Meanwhile(monkeypatch, asset_rows, "of_attempt", lambda: ticket(1))
    mine = await ticket(2)
    assert mine["upload"]["url"].split("?")[0] != other.result()["upload"]["url"].split("?")[0]


async def test_two_rents_at_once_do_not_spend_more_than_the_limit(
    room: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = room.settings.model_copy(update={"max_pods": 1})
    books = RentalBooks(room.db, room.clock, settings)
    offers = [Offer("gpu", "A GPU", 24, 1.0, "high")]

    def rent() -> Any:
        return room.db.write_sync(books.intend, PROJECT, "runpod", RentRequest(), offers, None)

    other = Meanwhile(monkeypatch, rental_rows, "books", rent)
    await asyncio.to_thread(rent)
    with pytest.raises(SpendLimit):
        other.result()


async def test_what_an_older_claim_writes_is_refused_on_postgresql_too(room: Engine) -> None:
    found = await claimed(room)
    assert await room.db.write(job_rows.take_over, "other", time.time() + 60.0, time.time() + 120.0)
    for news in (News(submitted_at=1.0), News(started_at=1.0), News(collecting=True), News(progress={"percent": 1.0})):
        with pytest.raises(StaleClaim):
            await room.db.write(outcomes.note, found.job, found.attempt, news, time.time())
