"""Creating characters: what is stored, what is queued, and that a refusal leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from controlplane.domain.characters import Consent
from controlplane.errors import ContentRefused, DatasetRejected, IdempotencyMismatch, NoPods, Unprocessable
from controlplane.services.characters import NewCharacter, Upload
from controlplane.services.datasets import digests
from controlplane.services.idempotency import Claim, claim
from tests.services.character_studio import PROJECT, Studio, drawing, png, studio

BOTH = pytest.mark.usefixtures("each_database")


async def assert_nothing_is_left(s: Studio) -> None:
    for table in ("characters", "versions", "datasets", "dataset_images", "jobs", "assets", "events"):
        assert await s.rows(table) == 0, table
    assert await s.files() == []


@BOTH
async def test_a_new_character_has_a_version_in_training_and_a_queued_train_job(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira", class_word="woman", recipe="fast")
        summary = created.character
        assert (summary.status, summary.versions[0].status, created.job.kind) == ("training", "training", "train")
        assert summary.character.trigger_phrase == "mira woman"
        assert summary.last_job is not None
        assert summary.last_job.id == created.job.id


async def test_the_job_is_bound_to_character_version_recipe_and_dataset(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        created = await s.create("Mira", recipe="fast")
        inputs = created.job.graph["1"]["inputs"]
        assert (inputs["character_id"], inputs["version"], inputs["recipe"]) == ("mira", 1, "fast")
        assert len(inputs["dataset_digest"]) == 64


async def test_the_kept_images_are_private_pngs_under_the_character(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.create("Mira")
        files = await s.files()
        assert len(files) == 6
        assert all(name.startswith("default/mira/dataset/") and name.endswith(".png") for name in files)
        assert all(s.store.is_private(name) for name in files)


async def test_a_rejected_image_is_reported_and_the_others_are_trained(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        files = [*s.pictures(6), s.upload("bad.png", b"these are words")]
        created = await s.characters.create(PROJECT, NewCharacter("Mira"), files)
        assert created.report.counts == {"ok": 6, "warn": 0, "reject": 1}
        assert created.report.images[6].name == "bad.png"


@BOTH
async def test_too_few_usable_images_leave_nothing_behind(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        files = [*s.pictures(4), *(s.upload(f"bad{n}.png", b"words") for n in range(4))]
        with pytest.raises(DatasetRejected) as caught:
            await s.characters.create(PROJECT, NewCharacter("Mira"), files)
        assert [error["pointer"] for error in caught.value.errors] == [f"/images/{n}" for n in (4, 5, 6, 7)]
        await assert_nothing_is_left(s)


@BOTH
async def test_without_any_pod_nothing_is_left_behind(tmp_path: Path) -> None:
    async with studio(tmp_path, with_pod=False) as s:
        with pytest.raises(NoPods) as caught:
            await s.create()
        assert "Retry-After" in caught.value.headers
        await assert_nothing_is_left(s)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Mira", "mira"),
        ("Zoë Ångström", "zoe-angstrom"),
        ("../../etc/passwd", "etc-passwd"),
        ("Nova 🚀✨", "nova"),
        ("a/b\\c", "a-b-c"),
    ],
)
async def test_the_slug_is_safe_and_the_name_is_kept(tmp_path: Path, name: str, slug: str) -> None:
    async with studio(tmp_path) as s:
        character = (await s.create(f"  {name} ")).character.character
        assert (character.id, character.name) == (slug, name)


@pytest.mark.parametrize("name", ["שלום עולם", "مرحبا", "🦊🦊", "..", "龍"])
async def test_a_name_without_latin_letters_gets_a_random_slug(tmp_path: Path, name: str) -> None:
    async with studio(tmp_path) as s:
        character = (await s.create(name)).character.character
        assert character.id.startswith("character-")
        assert character.name == name


@pytest.mark.parametrize("name", ["", "   ", "x" * 121, "x" * 10_000, "a\nb", "a\x00b", "a\x1b[31m", "half \ud800"])
async def test_a_name_that_cannot_be_one_is_refused(tmp_path: Path, name: str) -> None:
    async with studio(tmp_path) as s:
        with pytest.raises(Unprocessable) as caught:
            await s.create(name)
        assert caught.value.errors[0]["pointer"] == "/name"
        await assert_nothing_is_left(s)


@BOTH
async def test_a_taken_slug_gets_a_number_and_its_own_trigger(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        names = [(await s.create("Mira")).character.character for _ in range(3)]
        assert [one.id for one in names] == ["mira", "mira-2", "mira-3"]
        assert len({one.trigger_word for one in names}) == 3


@BOTH
async def test_two_creations_of_one_name_at_the_same_time_both_succeed(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        made = await asyncio.gather(*(s.create("Mira") for _ in range(4)))
        assert {one.character.character.id for one in made} == {"mira", "mira-2", "mira-3", "mira-4"}
        assert len(await s.files()) == 4 * 6


@pytest.mark.parametrize("trigger", ["abc", "abcdefghijk", "mi ra", "woman", "portrait", "mirá"])
async def test_a_trigger_that_cannot_be_one_is_refused(tmp_path: Path, trigger: str) -> None:
    async with studio(tmp_path) as s:
        with pytest.raises(Unprocessable) as caught:
            await s.create("Mira", trigger_word=trigger)
        assert caught.value.errors[0]["pointer"] == "/trigger_word"


async def test_a_trigger_of_another_character_is_refused(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.create("Mira", trigger_word="mirax")
        with pytest.raises(Unprocessable, match="another character"):
            await s.create("Nell", trigger_word="mirax")


@pytest.mark.parametrize("name", ["Woman", "Sketch", "Al", "The Captain", "月"])
async def test_a_made_trigger_is_always_valid_and_uncommon(tmp_path: Path, name: str) -> None:
    async with studio(tmp_path) as s:
        trigger = (await s.create(name)).character.character.trigger_word
        assert 4 <= len(trigger) <= 10
        assert trigger.isascii()
        assert trigger.isalnum()
        assert trigger not in ("woman", "sketch")


@pytest.mark.parametrize("consent", [None, Consent("", "v1"), Consent("Ada", " ")])
async def test_a_real_person_needs_consent(tmp_path: Path, consent: Consent | None) -> None:
    async with studio(tmp_path) as s:
        with pytest.raises(Unprocessable) as caught:
            await s.create("Ada", subject="real", consent=consent)
        assert caught.value.errors[0]["pointer"] == "/consent"
        await assert_nothing_is_left(s)


async def test_no_character_of_a_real_minor_is_made_whoever_consents(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        with pytest.raises(ContentRefused):
            await s.create("Ada", subject="real", consent=Consent("Ada L.", "v1"), class_word="girl")
        await assert_nothing_is_left(s)


@BOTH
async def test_consent_is_kept_with_the_time_it_was_given(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.create("Ada", subject="real", consent=Consent("Ada L.", "2026-11"))
        kept = (await s.characters.get(PROJECT, "ada")).character
        assert kept.subject == "real"
        assert kept.consent is not None
        assert kept.consent.attested_by == "Ada L."
        assert kept.consent.attested_at == pytest.approx(kept.created_at, abs=5)


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"subject": "celebrity"}, "/subject"),
        ({"class_word": "w0man!"}, "/class_word"),
        ({"base_model": "nope"}, "/base_model"),
        ({"recipe": "nope"}, "/recipe"),
        ({"description": "x" * 5000}, "/description"),
        ({"captions": {"other.png": "smiling"}}, "/captions/other.png"),
        ({"captions": {"0.png": "x" * 2000}}, "/captions/0.png"),
    ],
)
async def test_a_field_that_is_not_acceptable_is_named(tmp_path: Path, fields: dict[str, object], pointer: str) -> None:
    async with studio(tmp_path) as s:
        with pytest.raises(Unprocessable) as caught:
            await s.create("Mira", **fields)
        assert caught.value.errors[0]["pointer"] == pointer
        await assert_nothing_is_left(s)


async def test_the_pod_reads_captions_with_the_trigger_first(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.create(
            "Mira", class_word="woman", captions={"0.png": "smiling, in a forest", "1.png": "mira woman, red coat"}
        )
        dataset = await s.training.dataset_for_pod(s.pod, "mira", 1)
        read = [image["caption"] for image in dataset["images"]]
        assert read[:3] == ["mira woman, smiling, in a forest", "mira woman, red coat", "mira woman"]


async def test_a_text_beside_a_picture_is_its_caption(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        files = [*s.pictures(5), s.upload("3.txt", b"angry, blue hoodie\n")]
        await s.characters.create(PROJECT, NewCharacter("Mira"), files)
        dataset = await s.training.dataset_for_pod(s.pod, "mira", 1)
        assert [image["caption"] for image in dataset["images"]][3] == "mira person, angry, blue hoodie"


@BOTH
async def test_the_pod_dataset_is_plain_json_with_pinned_recipe_and_signed_urls(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.create("Mira", recipe="fast")
        dataset = json.loads(json.dumps(await s.training.dataset_for_pod(s.pod, "mira", 1), allow_nan=False))
        recipe = s.catalog.recipe("sketch", "fast")
        assert dataset["recipe"] == {
            "name": "fast",
            "digest": recipe.digest,
            "params": json.loads(json.dumps(recipe.params)),
        }
        assert (dataset["checkpoint"], dataset["trainer"], dataset["base"]) == (
            "sketch_base.safetensors",
            "sketch",
            "sketch",
        )
        assert "sig=" in dataset["images"][0]["url"]
        assert dataset["images"][0]["name"] == "001.png"


def keyed(files: Sequence[Upload]) -> Claim | None:
    return claim(PROJECT, "key-1", "/characters", digests(files))


@BOTH
async def test_the_same_key_gives_the_first_character_again(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        files = s.pictures()
        first = await s.characters.create(PROJECT, NewCharacter("Mira"), files, keyed(files))
        again = await s.characters.create(PROJECT, NewCharacter("Mira"), files, keyed(files))
        assert again.job.id == first.job.id
        assert again.report.images == first.report.images
        assert await s.rows("jobs") == 1


@BOTH
async def test_two_simultaneous_requests_with_one_key_make_one_character(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        files = s.pictures()
        made = await asyncio.gather(
            *(s.characters.create(PROJECT, NewCharacter("Mira"), files, keyed(files)) for _ in range(3))
        )
        assert len({one.job.id for one in made}) == 1
        assert len(await s.files()) == 6


async def test_the_same_key_with_other_images_is_refused(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        some, others = s.pictures(seed=1), s.pictures(seed=2)
        await s.characters.create(PROJECT, NewCharacter("Mira"), some, keyed(some))
        with pytest.raises(IdempotencyMismatch):
            await s.characters.create(PROJECT, NewCharacter("Mira"), others, keyed(others))


async def test_the_same_picture_in_two_formats_counts_once(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        copy = s.upload("copy.png", png(drawing(0), compress_level=1))
        created = await s.characters.create(PROJECT, NewCharacter("Mira"), [*s.pictures(6), copy])
        assert created.report.images[6].verdict == "reject"
        assert "same picture as 0.png" in created.report.images[6].reasons[0]
