"""Requests for pictures and videos over real HTTP, up to the point where a pod would take over."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from controlplane.settings import Settings

from .api_pictures import picture, pictures, png
from .api_seed import ready_character, stored_picture
from .api_server import Answer, Api, Server, pod_body, serving

pytestmark = pytest.mark.usefixtures("pod")


def pointers(answer: Answer) -> set[str]:
    return {error["pointer"] for error in answer.body.get("errors", [])}


async def image(api: Api, **fields: Any) -> Answer:
    headers = fields.pop("headers", None)
    return await api.post("/generate-image", json={"prompt": "smiling, red jacket", **fields}, headers=headers)


async def test_a_request_for_an_image_is_accepted(api: Api) -> None:
    hero = await ready_character(api.server)
    answer = await image(api, character_id=hero.id, seed=7)
    assert answer.status == 202
    job = answer.body["job"]
    assert (job["kind"], job["status"], job["seed"], job["version"]) == ("image", "queued", 7, 1)
    assert answer.headers["Location"] == answer.body["links"]["self"] == f"/jobs/{job['id']}"


async def test_the_prompt_gets_the_trigger_in_front(api: Api) -> None:
    hero = await ready_character(api.server)
    job = (await image(api, character_id=hero.id)).body["job"]
    assert job["request"]["values"]["prompt"].startswith(f"{hero.trigger_word} man")


async def test_a_seed_that_nobody_gave_is_recorded(api: Api) -> None:
    hero = await ready_character(api.server)
    job = (await image(api, character_id=hero.id)).body["job"]
    assert 0 <= job["seed"] < 2**53


async def test_a_request_for_a_video_is_accepted(api: Api) -> None:
    hero = await ready_character(api.server)
    answer = await api.post("/generate-video", json={"character_id": hero.id, "prompt": "waving", "frames": 16})
    assert (answer.status, answer.body["job"]["workflow"]) == (202, "sketch_video")


async def test_a_video_of_a_picture_starts_at_that_picture(api: Api) -> None:
    hero = await ready_character(api.server)
    still = await stored_picture(api.server, hero, png(picture(3)))
    wanted = {"character_id": hero.id, "prompt": "waving", "image_asset_id": still.id}
    answer = await api.post("/generate-video", json=wanted)
    assert (answer.status, answer.body["job"]["workflow"]) == (202, "sketch_video_from_image")


async def test_an_unknown_character_is_not_found(api: Api) -> None:
    answer = await image(api, character_id="nobody")
    assert (answer.status, answer.body["code"]) == (404, "character_not_found")


async def test_a_character_still_training_is_a_conflict_that_says_when_to_come_back(api: Api) -> None:
    created = await api.create({"name": "Still Training", "recipe": "fast"}, pictures(6))
    answer = await image(api, character_id=created.body["character"]["id"])
    assert (answer.status, answer.body["code"]) == (409, "character_not_ready")
    assert int(answer.headers["Retry-After"]) > 0


async def test_an_unknown_version_is_not_found(api: Api) -> None:
    hero = await ready_character(api.server)
    assert (await image(api, character_id=hero.id, version=9)).status == 404


async def test_an_unknown_workflow_is_not_found(api: Api) -> None:
    hero = await ready_character(api.server)
    assert (await image(api, character_id=hero.id, workflow="nothing")).status == 404


async def test_an_unknown_field_is_refused_by_name(api: Api) -> None:
    hero = await ready_character(api.server)
    answer = await image(api, character_id=hero.id, colour="red")
    assert (answer.status, pointers(answer)) == (422, {"/colour"})


async def test_a_field_that_only_the_server_sets_is_refused_by_name(api: Api) -> None:
    hero = await ready_character(api.server)
    answer = await image(api, character_id=hero.id, lora_sha256="0" * 64)
    assert (answer.status, pointers(answer)) == (422, {"/lora_sha256"})


async def test_an_over_long_prompt_is_refused_at_its_place(api: Api) -> None:
    hero = await ready_character(api.server)
    answer = await image(api, character_id=hero.id, prompt="red jacket, " * 1000)
    assert (answer.status, pointers(answer)) == (422, {"/prompt"})


async def test_a_size_that_the_workflow_does_not_make_is_refused_at_its_place(api: Api) -> None:
    hero = await ready_character(api.server)
    answer = await image(api, character_id=hero.id, width=129)
    assert (answer.status, pointers(answer)) == (422, {"/width"})


async def test_the_same_idempotency_key_gets_the_same_job(api: Api) -> None:
    hero = await ready_character(api.server)
    headers = {"Idempotency-Key": f"same-{hero.id}"}
    first = await image(api, character_id=hero.id, headers=headers)
    second = await image(api, character_id=hero.id, headers=headers)
    assert second.body["job"]["id"] == first.body["job"]["id"]


async def test_simultaneous_requests_with_one_key_make_one_job(api: Api) -> None:
    hero = await ready_character(api.server)
    headers = {"Idempotency-Key": f"race-{hero.id}"}
    answers = await asyncio.gather(*(image(api, character_id=hero.id, headers=headers) for _ in range(8)))
    assert len({answer.body["job"]["id"] for answer in answers}) == 1


async def test_the_same_key_with_another_body_is_refused(api: Api) -> None:
    hero = await ready_character(api.server)
    headers = {"Idempotency-Key": f"other-{hero.id}"}
    await image(api, character_id=hero.id, headers=headers)
    answer = await image(api, character_id=hero.id, seed=3, headers=headers)
    assert (answer.status, answer.body["code"]) == (422, "idempotency_mismatch")


@pytest.mark.parametrize("key", ["", "x" * 256, "ä"])
async def test_a_key_that_cannot_be_kept_is_refused(api: Api, key: str) -> None:
    assert (await image(api, headers={"Idempotency-Key": key})).status == 400


async def test_waiting_holds_the_answer_no_longer_than_asked(api: Api) -> None:
    hero = await ready_character(api.server)
    answer = await image(api, character_id=hero.id, headers={"Prefer": "wait=1"})
    assert (answer.status, answer.headers["Preference-Applied"]) == (202, "wait=1")


async def test_waiting_answers_as_soon_as_the_job_is_final(api: Api) -> None:
    hero = await ready_character(api.server)
    job = (await image(api, character_id=hero.id)).body["job"]["id"]
    waiting = asyncio.create_task(api.get(f"/jobs/{job}", headers={"Prefer": "wait=60"}))
    await asyncio.sleep(0.2)
    await api.call("DELETE", f"/jobs/{job}")
    answer = await asyncio.wait_for(waiting, 20)
    assert answer.body["status"] == "cancelled"


async def test_cancelling_twice_is_fine(api: Api) -> None:
    hero = await ready_character(api.server)
    job = (await image(api, character_id=hero.id)).body["job"]["id"]
    assert (await api.call("DELETE", f"/jobs/{job}")).status == 200
    assert (await api.call("DELETE", f"/jobs/{job}")).status == 200


async def test_work_that_no_pod_can_do_says_why_in_its_placement(api: Api) -> None:
    hero = await ready_character(api.server)
    job = (await image(api, character_id=hero.id)).body["job"]["id"]
    for _ in range(100):
        placement = (await api.get(f"/jobs/{job}")).body["placement"]
        if placement:
            break
        await asyncio.sleep(0.1)
    assert "label" in json.dumps(placement)


async def test_lists_go_on_where_the_page_before_ended(api: Api) -> None:
    hero = await ready_character(api.server)
    wanted = [(await image(api, character_id=hero.id)).body["job"]["id"] for _ in range(5)]
    seen, cursor = [], ""
    while True:
        page = (await api.get(f"/jobs?character_id={hero.id}&limit=2{cursor}")).body
        seen += [job["id"] for job in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == wanted[::-1]


async def test_a_jobs_events_can_be_followed_to_the_end(api: Api) -> None:
    hero = await ready_character(api.server)
    job = (await image(api, character_id=hero.id)).body["job"]["id"]
    await api.call("DELETE", f"/jobs/{job}")
    text = (await asyncio.wait_for(api.get(f"/jobs/{job}/events"), 20)).data.decode()
    types = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert (types[0], types[-1]) == ("job.queued", "job.cancelled")


async def test_events_go_on_behind_the_last_one_seen(api: Api) -> None:
    hero = await ready_character(api.server)
    job = (await image(api, character_id=hero.id)).body["job"]["id"]
    await api.call("DELETE", f"/jobs/{job}")
    text = (await api.get(f"/jobs/{job}/events")).data.decode()
    ids = [line.removeprefix("id: ") for line in text.splitlines() if line.startswith("id: ")]
    rest = (await api.get(f"/jobs/{job}/events", headers={"Last-Event-ID": ids[-2]})).data.decode()
    assert [line.removeprefix("id: ") for line in rest.splitlines() if line.startswith("id: ")] == ids[-1:]


async def test_the_project_stream_tells_of_new_work_while_it_happens(api: Api) -> None:
    hero = await ready_character(api.server)
    async with aiohttp.ClientSession() as session, session.get(f"{api.server.url}/events") as stream:
        job = (await image(api, character_id=hero.id)).body["job"]["id"]
        async with asyncio.timeout(20):
            async for line in stream.content:
                if line.startswith(b"data: ") and job in line.decode():
                    event = json.loads(line.removeprefix(b"data: "))
                    break
    assert (event["type"], event["character_id"]) == ("job.queued", hero.id)


async def test_a_last_event_id_that_is_none_is_refused(api: Api) -> None:
    assert (await api.get("/events", headers={"Last-Event-ID": "last"})).status == 400


async def test_explicit_requests_are_refused(api: Api) -> None:
    hero = await ready_character(api.server)
    answer = await image(api, character_id=hero.id, prompt="hero, explicit hentai")
    assert (answer.status, answer.body["code"]) == (422, "content_refused")


@pytest.fixture(scope="module")
def lonely(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a second base model, deadlines of a second, and no pod at all.

    Made anew whenever ``server`` is: the last test here gives it a pod.
    """
    folder: Path = tmp_path_factory.mktemp("lonely")
    templates = folder / "templates"
    shutil.copytree(Settings().templates, templates)
    models = yaml.safe_load((templates / "models.yaml").read_text())
    other = {**models[0], "id": "other", "title": "Another base", "checkpoint": "other.safetensors", "templates": {}}
    (templates / "models.yaml").write_text(yaml.safe_dump([*models, other]))
    settings = Settings(data=folder / "data", port=0, templates=templates, poll_seconds=0.2, image_deadline_seconds=1.0)
    with serving(settings) as server:
        yield server


async def test_without_any_pod_work_is_refused_for_now(lonely: Server) -> None:
    hero = await ready_character(lonely)
    async with aiohttp.ClientSession() as session:
        answer = await image(Api(lonely, session), character_id=hero.id)
    assert (answer.status, answer.body["code"]) == (503, "no_pods")


async def test_without_any_pod_the_server_is_degraded(lonely: Server) -> None:
    async with aiohttp.ClientSession() as session:
        answer = await Api(lonely, session).get("/readyz")
    assert (answer.status, answer.body["status"], answer.body["checks"]["pods"]["ok"]) == (200, "degraded", False)


async def test_a_workflow_of_another_base_is_refused_naming_both(lonely: Server) -> None:
    hero = await ready_character(lonely, base_model="other")
    async with aiohttp.ClientSession() as session:
        answer = await image(Api(lonely, session), character_id=hero.id, workflow="sketch_image")
    assert (answer.status, answer.body["code"]) == (422, "base_mismatch")
    assert "sketch" in answer.body["detail"]
    assert "other" in answer.body["detail"]


async def test_work_that_no_pod_can_do_fails_at_its_deadline_with_the_words_of_its_placement(lonely: Server) -> None:
    hero = await ready_character(lonely)
    async with aiohttp.ClientSession() as session:
        api = Api(lonely, session)
        await api.post("/pods", json=pod_body(), headers={"Authorization": f"Bearer {lonely.join_token}"})
        accepted = await image(api, character_id=hero.id)
        assert accepted.status == 202
        answer = await api.get(f"/jobs/{accepted.body['job']['id']}", headers={"Prefer": "wait=30"})
    assert answer.body["status"] == "failed"
    assert answer.body["placement"]["reason"] in answer.body["error"]["detail"]
