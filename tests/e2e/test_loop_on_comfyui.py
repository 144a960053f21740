"""The whole loop on a real ComfyUI and the sketch base: twenty images become a character that looks like itself."""

from __future__ import annotations

import io
import json

import av
import pytest
import pytest_asyncio
from PIL import Image

from bench.identity_judge import Judge, gate_scenes, our_cast
from controlplane.client import Client
from tests.e2e.serving import finished, real_comfyui, served
from tests.short_recipes import REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "characters" / "captain-nell"
CHARACTER = "captain-nell"

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory):
    """A client of a server whose only pod is a real ComfyUI behind its agent."""
    async with served(tmp_path_factory.mktemp("comfyui-loop"), real_comfyui()) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nell(client):
    """The training job of a character that was made of its twenty images, and is ready."""
    about = json.loads((EXAMPLE / "character.json").read_text(encoding="utf-8"))
    captions = json.loads((EXAMPLE / "captions.json").read_text(encoding="utf-8"))
    fields = {key: value for key, value in about.items() if key not in ("name", "trigger_word")}
    images = sorted(EXAMPLE.glob("*.png"))
    answer = await client.create_character(about["name"], images, {**fields, "recipe": "fast", "captions": captions})
    return await finished(client, answer)


@pytest.fixture(scope="module")
def judge() -> Judge:
    """Tells ten people apart, the character among them; fitted on their references alone, as in bench/."""
    return Judge(our_cast()).fitted()


async def pictures(client: Client, strength: float) -> list[Image.Image]:
    """One picture of each of the judge's scenes; no reference image shows any of them."""
    answers = []
    for seed, scene in enumerate(gate_scenes(0)):
        body = {"character_id": CHARACTER, "prompt": scene.phrases, "seed": seed, "lora_strength": strength}
        answers.append(await client.post("/generate-image", body))
    jobs = [await finished(client, answer) for answer in answers]
    return [Image.open(io.BytesIO(await client.download(job["assets"][0]["url"]))).convert("RGB") for job in jobs]


async def test_every_module_of_the_trained_lora_exists_in_the_base(client, nell):
    assert nell["result"]["matched"] == nell["result"]["total"] > 0


async def test_pictures_made_on_comfyui_are_recognised_as_the_character(client, nell, judge):
    answers = judge.answers(await pictures(client, 1.0))
    assert answers.count(0) >= 7, f"recognised as {answers}; the character is 0"


async def test_without_the_lora_the_character_is_not_recognised(client, nell, judge):
    answers = judge.answers(await pictures(client, 0.0))
    assert answers.count(0) <= 3, f"recognised as {answers}; the character is 0"


async def test_a_video_made_on_comfyui_holds_as_many_frames_as_asked_for(client, nell):
    body = {"character_id": CHARACTER, "prompt": "smiling, by the sea", "frames": 8, "fps": 8, "seed": 3}
    job = await finished(client, await client.post("/generate-video", body))
    [asset] = [asset for asset in job["assets"] if asset["media_type"].startswith("video/")]
    with av.open(io.BytesIO(await client.download(asset["url"]))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8


async def test_the_same_request_and_seed_give_the_same_bytes(client, nell):
    body = {"character_id": CHARACTER, "prompt": "smiling, by the sea", "seed": 11}
    first, second = [await finished(client, await client.post("/generate-image", body)) for _ in range(2)]
    assert first["assets"][0]["sha256"] == second["assets"][0]["sha256"]
