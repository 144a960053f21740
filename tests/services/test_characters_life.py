"""A character's life after its creation: training's end, further versions, changes, deletion; tickets and assets."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from controlplane.db import assets as asset_rows
from controlplane.db import jobs as job_rows
from controlplane.errors import (
    CharacterNotFound,
    CharacterNotReady,
    Conflict,
    NotFound,
    StaleAttempt,
    StaleClaim,
    Unprocessable,
)
from controlplane.services import training
from controlplane.services.characters import CharacterPatch, TrainAgain
from controlplane.services.generation import ImageRequest
from tests.services.character_studio import PROJECT, Studio, drawing, png, some_pod, studio, upload_body

pytestmark = pytest.mark.usefixtures("each_database")

LORA = "application/octet-stream"


async def events(s: Studio) -> list[str]:
    def read(c: Any) -> list[str]:
        return [row[0] for row in c.exec_driver_sql("SELECT type FROM events ORDER BY id")]

    return await s.db.read(read)


async def fail(s: Studio, job: Any, ending: Any, error: Mapping[str, Any] | None, status: str) -> None:
    def write(c: Any) -> None:
        ending(c, job, error, time.time())
        job_rows.change(c, job, status=status, finished_at=time.time())

    await s.db.write(write)


async def paint(s: Studio, count: int = 1) -> list[str]:
    job = await s.generation.submit_image(PROJECT, ImageRequest("smiling", "mira", count=count))
    return await s.painted(job, count=count)


async def test_a_finished_training_makes_its_version_active_and_the_character_ready(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        summary = await s.characters.get(PROJECT, "mira")
        assert (summary.status, summary.character.active_version) == ("ready", 1)
        assert summary.versions[0].proof is not None
        assert summary.versions[0].proof["matched"] == 4
        assert {"character.created", "version.ready", "character.ready"} <= set(await events(s))


async def test_the_pod_gets_the_active_lora_and_its_trigger(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.trained("Mira")
        lora = await s.training.lora_for_pod(s.pod, "mira", 0)
        assert (lora["version"], lora["trigger"], lora["base"]) == (1, "mira", "sketch")
        assert lora["bytes"] == len(created.job.id)
        assert "sig=" in lora["url"]


async def test_a_lora_that_is_not_there_yet_is_409_and_an_unknown_one_404(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.create("Mira")
        with pytest.raises(CharacterNotReady):
            await s.training.lora_for_pod(s.pod, "mira", 0)
        with pytest.raises(NotFound):
            await s.training.lora_for_pod(s.pod, "mira", 7)
        with pytest.raises(CharacterNotFound):
            await s.training.lora_for_pod(s.pod, "nobody", 0)


async def test_a_failed_training_keeps_the_dataset_and_can_be_tried_again(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira")
        await fail(s, created.job, training.on_failed, {"code": "nan_loss", "detail": "the loss is NaN"}, "failed")
        failed = await s.characters.get(PROJECT, "mira")
        assert (failed.status, failed.versions[0].status) == ("failed", "failed")
        assert failed.versions[0].error == {"code": "nan_loss", "detail": "the loss is NaN"}
        again = await s.characters.train_again(PROJECT, "mira", TrainAgain(recipe="fast"))
        first, second = again.character.versions
        assert (second.number, second.dataset_id, second.recipe) == (2, first.dataset_id, "fast")
        assert len(await s.files()) == 6


async def test_a_cancelled_training_marks_its_version(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira")
        await s.jobs.cancel(PROJECT, created.job.id)
        summary = await s.characters.get(PROJECT, "mira")
        assert (summary.status, summary.versions[0].status) == ("failed", "cancelled")


async def test_a_character_stays_ready_while_and_after_a_further_training_fails(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        again = await s.characters.train_again(PROJECT, "mira", TrainAgain())
        assert again.character.status == "ready"
        await fail(s, again.job, training.on_failed, {"code": "x", "detail": "y"}, "failed")
        summary = await s.characters.get(PROJECT, "mira")
        assert (summary.status, summary.character.active_version) == ("ready", 1)


async def test_an_older_training_that_ends_later_does_not_become_active(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        first = await s.create("Mira")
        second = await s.characters.train_again(PROJECT, "mira", TrainAgain())
        await s.train(second.job)
        await s.train(first.job)
        summary = await s.characters.get(PROJECT, "mira")
        assert summary.character.active_version == 2
        assert [version.status for version in summary.versions] == ["ready", "ready"]


async def test_a_further_version_may_have_images_and_captions_of_its_own(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        await s.characters.train_again(PROJECT, "mira", TrainAgain(captions={"0.png": "red hat"}))
        await s.characters.train_again(PROJECT, "mira", TrainAgain(), uploads=s.pictures(7, seed=5))
        recaptioned = await s.training.dataset_for_pod(s.pod, "mira", 2)
        renewed = await s.training.dataset_for_pod(s.pod, "mira", 3)
        assert recaptioned["images"][0]["caption"] == "mira person, red hat"
        assert (len(recaptioned["images"]), len(renewed["images"])) == (6, 7)
        assert len({recaptioned["dataset_digest"], renewed["dataset_digest"]}) == 2


async def test_activating_what_is_not_ready_is_409(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.create("Mira")
        with pytest.raises(CharacterNotReady):
            await s.characters.activate(PROJECT, "mira", 1)
        with pytest.raises(NotFound):
            await s.characters.activate(PROJECT, "mira", 2)


async def test_lists_show_counts_cover_and_last_job_page_by_page(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        ids = await paint(s, count=2)
        await s.create("Nell")
        first = await s.characters.list(PROJECT, limit=1)
        second = await s.characters.list(PROJECT, limit=1, cursor=first.next_cursor)
        nell, mira = first.items[0], second.items[0]
        assert (nell.character.id, nell.cover and nell.cover.kind) == ("nell", "dataset")
        assert mira.counts == {"images": 2, "videos": 0, "versions": 1}
        assert mira.cover is not None
        assert mira.cover.id in ids
        assert mira.last_job is not None
        assert mira.last_job.kind == "image"
        assert second.next_cursor is None


async def test_a_patch_changes_what_people_see_and_not_the_id(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        cover = (await paint(s, count=2))[0]
        patch = CharacterPatch(name="Mira the Second", metadata={"a": 1}, cover_asset_id=cover)
        summary = await s.characters.patch(PROJECT, "mira", patch)
        assert (summary.character.id, summary.character.name) == ("mira", "Mira the Second")
        assert summary.cover is not None
        assert summary.cover.id == cover


async def test_a_cover_that_is_not_the_characters_is_refused(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        await s.create("Nell")
        with pytest.raises(Unprocessable, match="no picture of this character"):
            await s.characters.patch(PROJECT, "nell", CharacterPatch(cover_asset_id=(await paint(s))[0]))


async def test_a_deleted_cover_is_chosen_no_more(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        first, second = await paint(s, count=2)
        await s.characters.patch(PROJECT, "mira", CharacterPatch(cover_asset_id=first))
        await s.assets.delete(PROJECT, first)
        cover = (await s.characters.get(PROJECT, "mira")).cover
        assert cover is not None
        assert cover.id == second


async def test_deleting_a_character_deletes_every_file_of_it(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        await paint(s)
        await s.characters.delete(PROJECT, "mira")
        assert await s.files() == []
        for table in ("characters", "versions", "datasets", "dataset_images", "assets"):
            assert await s.rows(table) == 0, table
        with pytest.raises(CharacterNotFound):
            await s.characters.get(PROJECT, "mira")


async def test_a_character_with_work_in_progress_is_not_deleted(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.create("Mira")
        with pytest.raises(Conflict, match="cancel it first"):
            await s.characters.delete(PROJECT, "mira")


async def test_the_same_file_gets_the_same_ticket(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira")
        body = upload_body((await s.attempt(created.job)).id, b"lora", "lora", LORA)
        first, second = await s.assets.ticket(s.pod, body), await s.assets.ticket(s.pod, body)
        assert first["asset_id"] == second["asset_id"]
        assert first["upload"]["headers"] == {"Content-Type": LORA}


async def test_another_file_of_the_same_number_gets_a_place_of_its_own(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        attempt = await s.attempt((await s.create("Mira")).job)
        one = await s.assets.ticket(s.pod, upload_body(attempt.id, b"one", "lora", LORA))
        two = await s.assets.ticket(s.pod, upload_body(attempt.id, b"two", "lora", LORA))
        assert one["asset_id"] != two["asset_id"]
        assert one["upload"]["url"].split("?")[0] != two["upload"]["url"].split("?")[0]


async def test_an_attempt_that_was_overtaken_gets_no_ticket(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira")
        first = await s.attempt(created.job, 1)
        second = await s.attempt(created.job, 2)
        with pytest.raises(StaleAttempt):
            await s.assets.ticket(s.pod, upload_body(first.id, b"lora", "lora", LORA))
        ticket = await s.assets.ticket(s.pod, upload_body(second.id, b"lora", "lora", LORA))
        assert "-a2-1.safetensors" in ticket["upload"]["url"]


async def test_a_pod_gets_no_ticket_for_another_pods_attempt(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        attempt = await s.attempt((await s.create("Mira")).job)
        for prompt_id in (attempt.id, "no-such-prompt"):
            with pytest.raises(StaleAttempt):
                await s.assets.ticket(some_pod(), upload_body(prompt_id, b"lora", "lora", LORA))


@pytest.mark.parametrize(("kind", "media_type"), [("output", "text/html"), ("lora", "image/png"), ("sample", LORA)])
async def test_a_media_type_that_does_not_fit_gets_no_ticket(tmp_path: Path, kind: str, media_type: str) -> None:
    async with studio(tmp_path) as s:
        attempt = await s.attempt((await s.create("Mira")).job)
        with pytest.raises(Unprocessable):
            await s.assets.ticket(s.pod, upload_body(attempt.id, b"data", kind, media_type))


async def problems(s: Studio, data: bytes, stored: bytes | None) -> list[str]:
    """What verification says where ``data`` was announced as a picture and ``stored`` lies in the store."""
    job = await s.generation.submit_image(PROJECT, ImageRequest("smiling", "mira"))
    ticket = await s.assets.ticket(s.pod, upload_body((await s.attempt(job)).id, data, "output", "image/png"))
    if stored is not None:
        key = ticket["upload"]["url"].split("/files/")[1].split("?")[0]
        await s.store.put(key, stored, "image/png")
    return await s.assets.verify(job, {"8": {"assets": [{"id": ticket["asset_id"]}]}})


async def test_verification_finds_what_was_never_stored_cut_off_or_no_picture(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        whole = png(drawing(1))
        assert "never stored" in (await problems(s, whole, None))[0]
        assert "bytes instead of" in (await problems(s, whole, whole[:-9]))[0]
        assert "another sha256" in (await problems(s, whole, whole[:-1] + b"x"))[0]
        assert "no PNG" in (await problems(s, b"just words", b"just words"))[0]
        assert await problems(s, whole, whole) == []


async def test_who_has_lost_a_job_drops_no_file_of_its_next_attempt(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        job = await s.generation.submit_image(PROJECT, ImageRequest("smiling", "mira"))
        await s.attempt(job)
        second = await s.attempt(job, 2)
        ticket = await s.assets.ticket(s.pod, upload_body(second.id, png(drawing(1)), "output", "image/png"))
        lost = dataclasses.replace(job, claim_no=job.claim_no - 1)
        with pytest.raises(StaleClaim):
            await s.assets.verify(lost, {"8": {"assets": [{"id": "of the first attempt"}]}})
        assert (await s.db.read(asset_rows.get, PROJECT, ticket["asset_id"])).status == "pending"


async def test_verification_wants_files_of_this_attempt_only(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        other = (await paint(s))[0]
        job = await s.generation.submit_image(PROJECT, ImageRequest("smiling", "mira"))
        await s.attempt(job)
        assert "no file of this attempt" in (await s.assets.verify(job, {"8": {"assets": [{"id": other}]}}))[0]
        assert await s.assets.verify(job, {}) == ["the pod finished without naming any stored file"]


async def test_samples_of_a_training_are_kept_and_announced_ones_that_never_came_are_not(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira")
        attempt = await s.attempt(created.job)
        sample = await s.hand_over(attempt, png(drawing(1)), "sample", "image/png", 0)
        lost = await s.assets.ticket(s.pod, upload_body(attempt.id, png(drawing(2)), "sample", "image/png", 1))
        lora = await s.hand_over(attempt, b"lora", "lora", LORA)
        await s.finish(created.job, attempt, {"1": {"lora": [{"asset_id": lora}]}})
        kept = (await s.assets.list(PROJECT, kind="sample")).items
        assert [asset.id for asset in kept] == [sample]
        with pytest.raises(NotFound):
            await s.assets.get(PROJECT, lost["asset_id"])


async def test_pending_files_are_in_no_list(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        job = await s.generation.submit_image(PROJECT, ImageRequest("smiling", "mira"))
        await s.hand_over(await s.attempt(job), png(drawing(1)), "output", "image/png")
        assert (await s.assets.list(PROJECT)).items == ()


async def test_an_asset_can_be_marked_and_filtered(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        first, _second = await paint(s, count=2)
        await s.assets.patch(PROJECT, first, {"favourite": True, "metadata": {"k": "v"}, "rating": None})
        page = await s.assets.list(PROJECT, favourite=True)
        assert [(asset.id, asset.metadata) for asset in page.items] == [(first, {"k": "v"})]


async def test_assets_page_without_gaps_or_repeats(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        ids = set(await paint(s, count=5))
        seen: list[str] = []
        cursor = None
        while True:
            page = await s.assets.list(PROJECT, limit=2, cursor=cursor)
            seen += [asset.id for asset in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert (len(seen), set(seen)) == (5, ids)


async def test_the_lora_of_a_version_cannot_be_deleted_by_itself(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        lora = (await s.characters.get(PROJECT, "mira")).versions[0].lora_asset_id
        with pytest.raises(Conflict, match="belongs to a version"):
            await s.assets.delete(PROJECT, lora or "")


async def test_a_deleted_picture_is_gone_with_its_thumbnail(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        before = await s.files()
        await s.assets.delete(PROJECT, (await paint(s))[0])
        assert await s.files() == before


async def test_the_sweep_deletes_what_a_lost_attempt_left(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        before = await s.files()
        job = await s.generation.submit_image(PROJECT, ImageRequest("smiling", "mira"))
        await s.hand_over(await s.attempt(job), png(drawing(1)), "output", "image/png")
        await s.jobs.cancel(PROJECT, job.id)
        assert await s.assets.sweep() == 0
        await s.db.write(lambda c: c.exec_driver_sql("UPDATE assets SET created_at = created_at - 7200") and None)
        assert await s.assets.sweep() == 1
        assert await s.files() == before
