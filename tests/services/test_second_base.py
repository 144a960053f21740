"""A second base model beside the first: its minimum side, templates that leave things out, and which is the default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controlplane.domain.characters import Consent
from controlplane.errors import ContentRefused, DatasetRejected, Unprocessable
from controlplane.services.characters import NewCharacter, TrainAgain
from controlplane.services.generation import ImageRequest, VideoRequest
from controlplane.services.intake import SourceFile, judge_now
from controlplane.settings import Settings
from controlplane.workflows.models import load_models
from tests.services.character_studio import PROJECT, Studio, drawing, png, studio
from tests.services.test_generation_requests import film

SMALL, LARGE = (160, 160), (544, 544)


def pictures(s: Studio, size: tuple[int, int]) -> list[Any]:
    return [s.upload(f"{n}.png", png(drawing(n, size))) for n in range(6)]


async def trained_on_sdxl(s: Studio, name: str = "Mira", **fields: Any) -> None:
    """A ready character of SDXL with large pictures."""
    new = NewCharacter(name=name, base_model="sdxl", **fields)
    created = await s.characters.create(PROJECT, new, pictures(s, LARGE))
    await s.train(created.job)


async def still_of(s: Studio, character_id: str, rating: str | None = None) -> str:
    request = ImageRequest("by the sea", character_id, rating=rating)
    return (await s.painted(await s.generation.submit_image(PROJECT, request)))[0]


async def test_a_picture_too_small_for_sdxl_is_refused_with_the_bases_name(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        new = NewCharacter(name="Mira", base_model="sdxl")
        with pytest.raises(DatasetRejected) as refused:
            await s.characters.create(PROJECT, new, pictures(s, SMALL))
        assert refused.value.errors[0]["detail"] == (
            "0.png: it is 160 x 160 pixels: SDXL base 1.0 needs at least 512 on each side"
        )


async def test_the_same_picture_is_large_enough_for_the_sketch_base(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        new = NewCharacter(name="Mira", base_model="sketch")
        created = await s.characters.create(PROJECT, new, pictures(s, SMALL))
        assert len(created.report.usable) == 6


async def test_pictures_kept_for_one_base_are_judged_again_for_another(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        with pytest.raises(DatasetRejected, match="0 of 6 images can be used"):
            await s.characters.train_again(PROJECT, "mira", TrainAgain(base_model="sdxl"))


async def test_those_that_are_large_enough_are_trained_on_by_another_base(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        mixed = [*pictures(s, LARGE), s.upload("small.png", png(drawing(99, SMALL)))]
        created = await s.characters.create(PROJECT, NewCharacter(name="Mira"), mixed)
        await s.train(created.job)
        again = await s.characters.train_again(PROJECT, "mira", TrainAgain(base_model="sdxl"))
        assert [image.name for image in again.report.images if not image.is_usable] == ["small.png"]


def test_a_strip_is_measured_as_it_is_kept(tmp_path: Path) -> None:
    settings = Settings()
    base = load_models(settings.templates / "models.yaml")["sdxl"]
    source = tmp_path / "strip"
    source.write_bytes(png(drawing(1, (3000, 700))))
    reasons = judge_now([SourceFile("strip.png", source)], settings, tmp_path, base).report.images[0].reasons
    assert reasons == ("it is 3000 x 700 pixels, kept as 1536 x 358: SDXL base 1.0 needs at least 512 on each side",)


async def test_a_video_of_an_sdxl_character_paints_its_own_still(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await trained_on_sdxl(s)
        job = await s.generation.submit_video(PROJECT, VideoRequest("by the sea", "mira", fps=8, seconds=2.0))
        assert (job.template, job.graph["4"]["inputs"]["text"]) == ("svd_video", "mira person, by the sea")
        assert (job.graph["10"]["inputs"]["fps"], job.graph["14"]["inputs"]["fps"]) == (8, 8)
        assert job.graph["10"]["inputs"]["video_frames"] == 16


async def test_a_video_from_a_picture_asks_for_no_lora_that_it_does_not_use(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await trained_on_sdxl(s)
        still = await still_of(s, "mira")
        job = await s.generation.submit_video(PROJECT, VideoRequest("by the sea", "mira", image_asset_id=still))
        assert (job.template, job.needs["lora_sha256"]) == ("svd_video_from_image", None)
        assert job.request["values"]["prompt"] == "mira person, by the sea"
        assert not any("text" in node["inputs"] for node in job.graph.values())


@pytest.mark.parametrize("field", ["motion", "negative_prompt"])
async def test_words_that_no_video_model_would_read_are_refused_by_name(tmp_path: Path, field: str) -> None:
    async with studio(tmp_path) as s:
        await trained_on_sdxl(s)
        request = VideoRequest("by the sea", "mira", image_asset_id=await still_of(s, "mira"))
        refusal = f"svd_video_from_image has no input '{field}'; it takes .*motion_bucket_id"
        with pytest.raises(Unprocessable, match=refusal):
            await s.generation.submit_video(PROJECT, replace(request, **{field: "waving"}))


async def test_a_real_person_on_a_still_is_not_made_mature_by_naming_somebody_else(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await trained_on_sdxl(s, "Mira")
        await trained_on_sdxl(s, "Rosa", subject="real", consent=Consent("Rosa herself", "2026-11"))
        request = VideoRequest("by the sea", "mira", image_asset_id=await still_of(s, "rosa"), rating="mature")
        with pytest.raises(ContentRefused, match="real people"):
            await s.generation.submit_video(PROJECT, request)


async def test_a_video_of_a_mature_picture_is_mature(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await trained_on_sdxl(s)
        still = await still_of(s, "mira", rating="mature")
        job = await s.generation.submit_video(PROJECT, VideoRequest("by the sea", "mira", image_asset_id=still))
        assert job.rating == "mature"


async def test_the_video_and_its_still_are_the_jobs_assets_video_first(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await trained_on_sdxl(s)
        job = await s.generation.submit_video(PROJECT, VideoRequest("by the sea", "mira"))
        attempt = await s.attempt(job)
        still = await s.hand_over(attempt, png(drawing(3)), "output", "image/png", 0)
        video = await s.hand_over(attempt, film(), "output", "video/mp4", 1)
        result = await s.finish(job, attempt, {"15": {"assets": [{"id": still}]}, "14": {"assets": [{"id": video}]}})
        assert result.result["asset_ids"] == [video, still]


async def test_the_operator_chooses_the_base_of_requests_that_name_none(tmp_path: Path) -> None:
    async with studio(tmp_path, default_base_model="sdxl") as s:
        created = await s.characters.create(PROJECT, NewCharacter(name="Mira"), pictures(s, LARGE))
        assert created.character.character.base_model == "sdxl"


async def test_without_a_choice_the_first_base_is_the_default(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        assert s.catalog.default_model(s.settings.default_base_model).id == "sketch"
