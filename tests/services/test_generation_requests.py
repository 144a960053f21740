"""Generation: what a request becomes, what is refused with which words, and what a finished attempt leaves."""

from __future__ import annotations

import asyncio
import dataclasses
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import pytest

from controlplane.db import jobs as job_rows
from controlplane.errors import (
    BaseMismatch,
    CharacterNotFound,
    CharacterNotReady,
    ContentRefused,
    IdempotencyMismatch,
    NoPods,
    NotFound,
    Unprocessable,
)
from controlplane.services.characters import TrainAgain
from controlplane.services.generation import ImageRequest, VideoRequest
from controlplane.services.idempotency import Claim, claim
from tests.services.character_studio import PROJECT, Studio, drawing, png, studio


async def submit(s: Studio, prompt: str = "smiling, in a forest", **fields: Any) -> Any:
    return await s.generation.submit_image(PROJECT, ImageRequest(prompt=prompt, **{"character_id": "mira", **fields}))


def with_another_base(s: Studio) -> None:
    """Add base ``other`` with an image template of its own to the catalogue of this studio."""
    model = s.catalog.models["sketch"].model_copy(update={"id": "other", "templates": {"image": "other_image"}})
    template = dataclasses.replace(s.catalog.templates["sketch_image"], name="other_image", base="other")
    s.catalog.models["other"] = model  # type: ignore[index]
    s.catalog.templates.put(template)


async def test_the_trigger_and_class_word_come_first(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira", class_word="woman")
        job = await submit(s, "smiling, in a forest")
        assert job.graph["4"]["inputs"]["text"] == "mira woman, smiling, in a forest"


@pytest.mark.parametrize("prompt", ["Mira smiling", "photo of MIRA, close", "a (mira:1.2) walks"])
async def test_a_prompt_that_has_the_trigger_stays_as_it_is(tmp_path: Path, prompt: str) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        assert (await submit(s, prompt)).graph["4"]["inputs"]["text"] == prompt


async def test_a_word_that_only_contains_the_trigger_is_not_the_trigger(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        assert (await submit(s, "admiral")).graph["4"]["inputs"]["text"] == "mira person, admiral"


async def test_the_loader_gets_the_concrete_version_digest_and_strength(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        version = (await s.characters.get(PROJECT, "mira")).versions[0]
        inputs = (await submit(s, lora_strength=-1)).graph["2"]["inputs"]
        assert (inputs["version"], inputs["sha256"], inputs["strength"]) == (1, version.lora_sha256, 1.0)


async def test_the_seed_is_recorded_and_safe_for_json(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        given, made = await submit(s, seed=7), await submit(s)
        assert given.seed == 7
        assert 0 <= made.seed < 2**53
        assert made.graph["6"]["inputs"]["seed"] == made.seed


async def test_the_same_request_with_the_same_seed_binds_the_same_graph(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        first, second = await submit(s, seed=7), await submit(s, seed=7)
        assert first.id != second.id
        assert first.graph == second.graph


async def test_needs_name_the_nodes_the_checkpoint_and_the_lora(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        needs = (await submit(s)).needs
        assert needs["models"] == {"checkpoints": ["sketch_base.safetensors"]}
        assert "CharacterLoRALoader" in needs["nodes"]
        assert needs["lora_sha256"] == (await s.characters.get(PROJECT, "mira")).versions[0].lora_sha256


async def test_an_unknown_character_is_404(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        with pytest.raises(CharacterNotFound, match="nobody"):
            await submit(s, character_id="nobody")


async def test_a_character_still_training_is_409_with_retry_after(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.create("Mira")
        with pytest.raises(CharacterNotReady, match="still training") as caught:
            await submit(s)
        assert int(caught.value.headers["Retry-After"]) > 0


async def test_an_unknown_version_is_404(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        with pytest.raises(NotFound, match="no version 9"):
            await submit(s, version=9)


async def test_a_template_of_another_base_is_422_naming_both(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        with_another_base(s)
        await s.trained("Mira")
        with pytest.raises(BaseMismatch) as caught:
            await submit(s, workflow="other_image")
        assert "other" in caught.value.detail
        assert "sketch" in caught.value.detail
        assert caught.value.errors[0]["pointer"] == "/workflow"


async def test_a_model_of_another_base_is_422_naming_both(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        with_another_base(s)
        await s.trained("Mira")
        with pytest.raises(BaseMismatch, match=r"model other .* trained on sketch"):
            await submit(s, model="other")


async def test_without_any_pod_it_is_503(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        await s.db.write(lambda c: c.exec_driver_sql("DELETE FROM pods") and None)
        with pytest.raises(NoPods):
            await submit(s)


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"prompt": "x" * 2001}, "/prompt"),
        ({"prompt": "  "}, "/prompt"),
        ({"negative_prompt": "x" * 2001}, "/negative_prompt"),
        ({"count": 17}, "/count"),
        ({"count": 0}, "/count"),
        ({"width": 129}, "/width"),
        ({"width": 100_000}, "/width"),
        ({"cfg": float("nan")}, "/cfg"),
        ({"cfg": float("inf")}, "/cfg"),
        ({"seed": -1}, "/seed"),
        ({"seed": 2**53}, "/seed"),
        ({"format": "tiff"}, "/format"),
        ({"model": "nope"}, "/model"),
        ({"workflow": "sketch_video"}, "/workflow"),
        ({"rating": "explicit"}, "/rating"),
        ({"character_id": None}, "/character_id"),
        ({"workflow_inputs": {"sampler": "euler"}}, "/sampler"),
        ({"workflow_inputs": {"lora_sha256": "0" * 64}}, "/lora_sha256"),
        ({"workflow_inputs": {"checkpoint": "../../etc/passwd"}}, "/checkpoint"),
    ],
)
async def test_a_value_that_is_not_acceptable_is_named_and_nothing_is_queued(
    tmp_path: Path, fields: dict[str, Any], pointer: str
) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        before = await s.rows("jobs")
        with pytest.raises(Unprocessable) as caught:
            await submit(s, **fields)
        assert pointer in [error["pointer"] for error in caught.value.errors]
        assert await s.rows("jobs") == before


async def test_an_unknown_workflow_is_404(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        with pytest.raises(NotFound, match="nope"):
            await submit(s, workflow="nope")


@pytest.mark.parametrize(
    ("class_word", "description", "prompt", "rating"),
    [
        ("girl", "", "smiling", "mature"),
        ("woman", "she is 15 years old", "smiling", "mature"),
        ("woman", "", "as a schoolgirl", "mature"),
        ("boy", "", "in lingerie", "general"),
        ("woman", "", "explicit sex", "mature"),
        ("woman", "", "nude on a beach", "general"),
    ],
)
async def test_content_that_is_not_made_here_is_refused(
    tmp_path: Path, class_word: str, description: str, prompt: str, rating: str
) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira", class_word=class_word, description=description)
        with pytest.raises(ContentRefused):
            await submit(s, prompt, rating=rating)


async def test_a_child_character_is_fine_in_a_general_picture(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira", class_word="girl")
        assert (await submit(s, "with a red hat")).rating == "general"


async def test_words_in_the_negative_prompt_are_what_is_to_be_left_out(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira", class_word="girl")
        assert (await submit(s, "smiling", negative_prompt="nsfw, nude")).status == "queued"


def keyed(request: ImageRequest) -> Claim | None:
    return claim(PROJECT, "k", "/generate-image", request)


async def test_the_same_key_gives_the_first_job(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        request = ImageRequest("smiling", "mira")
        made = await asyncio.gather(*(s.generation.submit_image(PROJECT, request, keyed(request)) for _ in range(5)))
        assert len({job.id for job in made}) == 1


async def test_the_same_key_with_another_request_is_refused(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        await s.generation.submit_image(
            PROJECT, ImageRequest("smiling", "mira"), keyed(ImageRequest("smiling", "mira"))
        )
        with pytest.raises(IdempotencyMismatch):
            await s.generation.submit_image(
                PROJECT, ImageRequest("angry", "mira"), keyed(ImageRequest("angry", "mira"))
            )


async def test_a_key_of_a_refused_request_may_be_used_again(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.create("Mira")
        request = ImageRequest("smiling", "mira")
        with pytest.raises(CharacterNotReady):
            await s.generation.submit_image(PROJECT, request, keyed(request))
        await s.train((await s.characters.get(PROJECT, "mira")).last_job)  # type: ignore[arg-type]
        assert (await s.generation.submit_image(PROJECT, request, keyed(request))).status == "queued"


async def test_a_finished_picture_is_an_asset_with_what_made_it(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        job = await submit(s, seed=5, count=2, metadata={"order": 1})
        ids = await s.painted(job, count=2)
        assets = (await s.assets.list(PROJECT, job_id=job.id)).items
        assert {asset.id for asset in assets} == set(ids)
        first = await s.assets.get(PROJECT, ids[0])
        assert (first.seed, first.version, first.metadata) == (5, 1, {"order": 1})
        assert first.recipe is not None
        assert first.recipe["values"]["prompt"] == "mira person, smiling, in a forest"
        assert first.recipe["pod"] == s.pod.id


async def test_a_finished_picture_has_a_clean_key(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        job = await submit(s)
        asset = await s.assets.get(PROJECT, (await s.painted(job))[0])
        project, character, day, name = asset.key.split("/")
        assert (project, character, name) == (PROJECT, "mira", f"{job.id}-1.png")
        assert len(day) == len("2026-11-20")
        assert (asset.width, asset.height) == (160, 160)


@pytest.mark.parametrize("told", [{}, {"width": 300, "height": 200}, {"width": 30, "height": 20}])
async def test_a_finished_picture_has_a_thumbnail_and_its_true_size(tmp_path: Path, told: dict[str, int]) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        job = await submit(s)
        attempt = await s.attempt(job)
        asset_id = await s.hand_over(attempt, png(drawing(1, (300, 200))), "output", "image/png", **told)
        await s.finish(job, attempt, {"8": {"assets": [{"id": asset_id}]}})
        asset = await s.assets.get(PROJECT, asset_id)
        assert (asset.width, asset.height) == (300, 200)
        assert (await s.store.get(asset.thumbnail_key or ""))[8:12] == b"WEBP"


@pytest.mark.parametrize("told", [{}, {"width": 160, "height": 160}, {"width": 900, "height": 900}])
async def test_a_small_picture_is_its_own_thumbnail(tmp_path: Path, told: dict[str, int]) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        job = await submit(s)
        attempt = await s.attempt(job)
        asset_id = await s.hand_over(attempt, png(drawing(1)), "output", "image/png", **told)
        await s.finish(job, attempt, {"8": {"assets": [{"id": asset_id}]}})
        asset = await s.assets.get(PROJECT, asset_id)
        assert asset.thumbnail_key == asset.key


async def test_a_lora_that_fits_only_in_part_is_a_warning_of_the_job(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        job = await submit(s)
        attempt = await s.attempt(job)
        asset_id = await s.hand_over(attempt, png(drawing(9)), "output", "image/png")
        loader = {"character": [{"character_id": "mira", "matched": 3, "total": 8}]}
        result = await s.finish(job, attempt, {"8": {"assets": [{"id": asset_id}]}, "2": loader})
        assert result.warnings == ["only 3 of 8 modules of the LoRA of mira exist in the model"]


async def test_a_video_travels_from_a_given_picture(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        still = (await s.painted(await submit(s)))[0]
        request = VideoRequest("smiling", "mira", image_asset_id=still, seconds=2.0, fps=10, motion="angry")
        job = await s.generation.submit_video(PROJECT, request)
        asset = await s.assets.get(PROJECT, still)
        assert job.template == "sketch_video_from_image"
        assert job.files == ((f"{still}.png", asset.key),)
        assert job.graph["6"]["inputs"]["image"] == f"{still}.png"
        assert job.graph["8"]["inputs"]["frames"] == 20


async def test_a_video_without_a_picture_makes_its_own_still(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        job = await s.generation.submit_video(PROJECT, VideoRequest("smiling", "mira", frames=12))
        assert (job.kind, job.template, job.files) == ("video", "sketch_video", ())
        assert job.graph["8"]["inputs"]["frames"] == 12


async def test_frames_and_seconds_together_are_refused(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        with pytest.raises(Unprocessable, match="not both"):
            await s.generation.submit_video(PROJECT, VideoRequest("smiling", "mira", frames=12, seconds=1.0))


async def test_a_picture_that_does_not_exist_is_404(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        with pytest.raises(NotFound, match="no picture"):
            await s.generation.submit_video(PROJECT, VideoRequest("smiling", "mira", image_asset_id="asset_no"))


async def test_after_activating_a_new_version_the_new_lora_is_used(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        second = await s.characters.train_again(PROJECT, "mira", TrainAgain())
        assert (await submit(s)).version == 1
        await s.train(second.job)
        job = await submit(s)
        versions = (await s.characters.get(PROJECT, "mira")).versions
        assert (job.version, job.graph["2"]["inputs"]["sha256"]) == (2, versions[1].lora_sha256)
        assert versions[0].lora_sha256 != versions[1].lora_sha256
        await s.characters.activate(PROJECT, "mira", 1)
        assert (await submit(s)).version == 1


async def test_the_accepted_request_is_kept_for_people(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        job = await submit(s, "smiling", seed=3, end_user="u1")
        kept = await s.db.read(job_rows.get, PROJECT, job.id)
        assert kept is not None
        assert (kept.request["prompt"], kept.request["seed"], kept.end_user) == ("smiling", 3, "u1")


def film() -> bytes:
    """A real MP4 of eight frames."""
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for n in range(8):
            for packet in stream.encode(av.VideoFrame.from_image(drawing(n, (96, 64)))):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()


async def test_a_finished_video_gets_the_thumbnail_of_its_first_frame(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        job = await s.generation.submit_video(PROJECT, VideoRequest("smiling", "mira"))
        attempt = await s.attempt(job)
        asset_id = await s.hand_over(attempt, film(), "output", "video/mp4")
        await s.finish(job, attempt, {"10": {"assets": [{"id": asset_id}]}})
        asset = await s.assets.get(PROJECT, asset_id)
        assert (asset.kind, asset.width, asset.height) == ("video", 96, 64)
        assert asset.thumbnail_key is not None
        assert (await s.characters.get(PROJECT, "mira")).counts["videos"] == 1


async def test_a_video_that_cannot_be_decoded_is_a_problem_of_its_attempt(tmp_path: Path) -> None:
    async with studio(tmp_path) as s:
        await s.trained("Mira")
        job = await s.generation.submit_video(PROJECT, VideoRequest("smiling", "mira"))
        asset_id = await s.hand_over(await s.attempt(job), b"no film at all" * 40, "output", "video/mp4")
        problems = await s.assets.verify(job, {"10": {"assets": [{"id": asset_id}]}})
        assert "cannot be decoded" in problems[0]
