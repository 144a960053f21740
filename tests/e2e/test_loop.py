"""The whole loop over real HTTP: a server and two pods as processes, trainings of a few steps, real files."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import av
import pytest
import pytest_asyncio
from PIL import Image

from controlplane.client import Client
from tests.e2e.serving import EMBEDDED, finished, served
from tests.short_recipes import REPOSITORY, short_catalogue

EXAMPLES = REPOSITORY / "examples" / "characters"
IMAGES = 6

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory):
    """A client of a server with two embedded pods, in processes of their own."""
    folder = tmp_path_factory.mktemp("loop")
    templates = short_catalogue(folder / "templates")
    async with served(folder, EMBEDDED, {"TROUPE_TEMPLATES": str(templates)}) as client:
        yield client


async def train(client: Client, slug: str) -> dict[str, Any]:
    """Accept a character; answers what POST /characters said, at once."""
    images = sorted((EXAMPLES / slug).glob("*.png"))[:IMAGES]
    return await client.create_character(slug.replace("-", " ").title(), images, {"recipe": "fast"})


async def image(client: Client, character: str, **values: Any) -> dict[str, Any]:
    body = {"character_id": character, "prompt": "smiling, by the sea", "steps": 3, "seed": 7, **values}
    return await finished(client, await client.post("/generate-image", body))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nell(client):
    """The id of a character that is ready."""
    answer = await train(client, "captain-nell")
    await finished(client, answer)
    return answer["character"]["id"]


async def test_a_trained_character_is_ready_with_an_active_version(client, nell):
    character = await client.get(f"/characters/{nell}")
    assert (character["status"], character["active_version"]) == ("ready", 1)


async def test_a_picture_of_the_character_is_a_real_file_behind_its_url(client, nell):
    [asset] = (await image(client, nell))["assets"]
    with Image.open(io.BytesIO(await client.download(asset["url"]))) as picture:
        assert (picture.format, picture.size) == ("PNG", (asset["width"], asset["height"]))


async def test_the_same_request_and_seed_give_the_same_bytes_as_two_assets(client, nell):
    first, second = await image(client, nell, seed=11), await image(client, nell, seed=11)
    assert first["assets"][0]["sha256"] == second["assets"][0]["sha256"]
    assert first["assets"][0]["id"] != second["assets"][0]["id"]


async def test_another_seed_gives_another_picture(client, nell):
    first, second = await image(client, nell, seed=11), await image(client, nell, seed=12)
    assert first["assets"][0]["sha256"] != second["assets"][0]["sha256"]


async def test_the_lora_changes_the_picture(client, nell):
    on, off = await image(client, nell, lora_strength=4.0), await image(client, nell, lora_strength=0.0)
    assert on["assets"][0]["sha256"] != off["assets"][0]["sha256"]


async def test_a_video_holds_as_many_frames_as_asked_for(client, nell):
    body = {"character_id": nell, "prompt": "smiling", "frames": 5, "fps": 5, "seed": 3}
    job = await finished(client, await client.post("/generate-video", body))
    [asset] = [asset for asset in job["assets"] if asset["media_type"].startswith("video/")]
    with av.open(io.BytesIO(await client.download(asset["url"]))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5


async def test_a_second_character_trains_while_the_first_is_used_and_is_usable_at_once(client, nell):
    answer = await train(client, "juno")
    while (await client.job(answer["job"]["id"]))["status"] not in ("running", "succeeded"):  # noqa: ASYNC110 - in another process
        await asyncio.sleep(0.2)
    meanwhile = await image(client, nell, seed=21)
    training = await client.job(answer["job"]["id"])
    await finished(client, answer)
    other = await image(client, answer["character"]["id"], seed=21)
    assert meanwhile["assets"][0]["sha256"] != other["assets"][0]["sha256"]
    assert training["finished_at"] is None or training["finished_at"] > meanwhile["finished_at"]


async def test_a_new_version_is_used_once_it_is_active_and_the_old_one_again_after_going_back(client):
    answer = await train(client, "bram")
    await finished(client, answer)
    bram = answer["character"]["id"]
    before = await image(client, bram, lora_strength=4.0)
    again = await client.post(f"/characters/{bram}/versions", {"recipe": "standard"})
    await finished(client, again)
    await client.post(f"/characters/{bram}/versions/2/activate", {})
    second = await image(client, bram, lora_strength=4.0)
    await client.post(f"/characters/{bram}/versions/1/activate", {})
    back = await image(client, bram, lora_strength=4.0)
    assert [job["version"] for job in (before, second, back)] == [1, 2, 1]
    assert second["assets"][0]["sha256"] != before["assets"][0]["sha256"]
    assert back["assets"][0]["sha256"] == before["assets"][0]["sha256"]
