"""Previews: small pictures of what is being made, few and short-lived, and only of what takes its time."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from controlplane.comfy.prompt import prompt_body
from controlplane.domain.assets import preview_keys
from controlplane.domain.events import Event
from controlplane.domain.jobs import Job
from controlplane.errors import LinkExpired
from controlplane.services import previews as module
from controlplane.services.pictures import UnreadablePicture
from controlplane.services.previews import SIDE, Previews, as_jpeg
from controlplane.storage.local import LocalStore
from tests.services.character_studio import drawing, png
from tests.services.engine import PROJECT, Engine, WallClock
from tests.services.test_scheduler_embedded import NODES, EmbeddedPod, pod, register, sleeping

__all__ = ["pod"]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "previews", "http://127.0.0.1:1/files", "key", WallClock())


async def keep(previews: Previews, job: Job, picture: bytes) -> list[str]:
    """Hand in a preview and wait for what becomes of it."""
    stored: list[str] = []
    previews.take(job, picture, stored.append)
    shown = previews._shown[job.id]
    if shown.storing is not None:
        await shown.storing
    return stored


def jpeg_size(data: bytes) -> tuple[str | None, tuple[int, int]]:
    with Image.open(BytesIO(data)) as image:
        return image.format, image.size


def test_a_preview_is_made_anew_as_a_small_jpeg() -> None:
    assert jpeg_size(as_jpeg(png(drawing(1, (1600, 800))))) == ("JPEG", (SIDE, SIDE // 2))


def test_what_is_no_picture_is_no_preview() -> None:
    with pytest.raises(UnreadablePicture):
        as_jpeg(b"<script>")


def test_a_pod_is_asked_for_previews_only_where_they_are_wanted() -> None:
    graph = {"1": {"class_type": "X", "inputs": {}}}
    asked = [prompt_body(graph, "p", "c", wanted)["extra_data"]["preview_method"] for wanted in (True, False)]
    assert asked == ["latent2rgb", "none"]


async def test_a_quick_job_wants_no_previews(room: Engine, store: LocalStore) -> None:
    quick, slow = await room.submit(estimate_seconds=1.0), await room.submit(estimate_seconds=20.0)
    assert [Previews(store).wanted(one) for one in (quick, slow)] == [False, True]


async def test_a_training_wants_no_previews(room: Engine, store: LocalStore) -> None:
    assert not Previews(store).wanted(await room.submit(kind="train", estimate_seconds=20.0))


async def test_nobody_wants_previews_where_they_are_turned_off(room: Engine) -> None:
    assert not Previews(None).wanted(await room.submit(estimate_seconds=20.0))


async def test_a_preview_is_read_through_a_signed_link_only(room: Engine, store: LocalStore) -> None:
    (key,) = await keep(Previews(store), await room.submit(estimate_seconds=20.0), png(drawing(1)))
    with pytest.raises(LinkExpired):
        store.check_get(key, {})


async def test_previews_that_come_too_often_are_left_out(room: Engine, store: LocalStore) -> None:
    previews, job = Previews(store), await room.submit(estimate_seconds=20.0)
    assert [len(await keep(previews, job, png(drawing(number)))) for number in (1, 2)] == [1, 0]


async def test_previews_take_turns_under_two_keys(
    room: Engine, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    previews, job = Previews(store), await room.submit(estimate_seconds=20.0)
    keys = [key for number in range(5) for key in await keep(previews, job, png(drawing(number)))]
    assert (len(keys), set(keys)) == (5, set(preview_keys(job.project_id, job.character_id, job.id)))


async def test_another_process_can_drop_what_a_killed_one_left(room: Engine, store: LocalStore) -> None:
    job = await room.submit(estimate_seconds=20.0)
    (key,) = await keep(Previews(store), job, png(drawing(1)))
    await Previews(store).drop(job)
    assert await store.head(key) is None


async def test_a_preview_that_is_being_stored_when_its_job_ends_is_dropped_too(room: Engine, store: LocalStore) -> None:
    previews, job, told = Previews(store), await room.submit(estimate_seconds=20.0), []
    previews.take(job, png(drawing(1)), told.append)
    await previews.drop(job)
    left = [await store.head(key) for key in preview_keys(job.project_id, job.character_id, job.id)]
    assert (left, told) == ([None, None], [])


async def previewed(room: Engine, job: Job) -> list[Event]:
    return [
        event
        async for event in room.events.stream(PROJECT, job_id=job.id)
        if dict(event.data.get("progress") or {}).get("preview")
    ]


@pytest.fixture
async def painting(room: Engine, pod: EmbeddedPod, store: LocalStore) -> Engine:
    """An engine with an embedded pod that shows previews."""
    room.previews = Previews(store)
    await register(room, pod)
    room.start()
    return room


async def painted(room: Engine) -> Job:
    return await room.submit(graph=sleeping(30, "progress_preview"), needs={"nodes": NODES}, estimate_seconds=20.0)


async def test_what_a_pod_makes_is_seen_while_it_is_made(painting: Engine, store: LocalStore) -> None:
    job = await painted(painting)
    view = await painting.reached(job, lambda view: view.job.progress.get("preview"))
    assert jpeg_size(await store.get(view.job.progress["preview"])) == ("JPEG", (64, 64))


async def test_readers_of_events_hear_of_previews(painting: Engine) -> None:
    job = await painted(painting)
    assert (await painting.final(job)).job.status == "succeeded"
    assert await previewed(painting, job)


async def test_of_a_job_that_is_over_no_preview_is_left(painting: Engine, store: LocalStore) -> None:
    job = await painted(painting)
    await painting.reached(job, lambda view: view.job.progress.get("preview"))
    await painting.final(job)
    left = [await store.head(key) for key in preview_keys(job.project_id, job.character_id, job.id)]
    assert left == [None, None]


async def test_of_a_job_that_is_cancelled_no_preview_is_left(painting: Engine, store: LocalStore) -> None:
    job = await painted(painting)
    await painting.reached(job, lambda view: view.job.progress.get("preview"))
    await painting.jobs.cancel(PROJECT, job.id)
    await painting.final(job)
    left = [await store.head(key) for key in preview_keys(job.project_id, job.character_id, job.id)]
    assert left == [None, None]
