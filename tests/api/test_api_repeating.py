"""Idempotency-Keys over real HTTP: the first answer comes again byte for byte, whoever asks, however many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import Connection, update

from controlplane.db.database import Database
from controlplane.db.tables import idempotency_keys
from controlplane.domain.ids import new_id
from controlplane.settings import Settings
from tests.workflows.exports import portrait

from .api_pictures import pictures
from .api_seed import ready_character
from .api_server import Answer, Api, Server, form_of, pod_body, serving

pytestmark = pytest.mark.usefixtures("pod")
AT_ONCE = 20


def key() -> dict[str, str]:
    return {"Idempotency-Key": new_id("key")}


async def image(api: Api, headers: dict[str, str], **fields: Any) -> Answer:
    return await api.post("/generate-image", json={"prompt": "smiling, red jacket", **fields}, headers=headers)


def sent(answer: Answer) -> tuple[int, bytes, str | None]:
    return answer.status, answer.data, answer.headers.get("Location")


def is_replayed(answer: Answer) -> bool:
    return answer.headers.get("Idempotency-Replayed") == "true"


async def test_a_first_answer_is_not_marked_as_a_repeated_one(api: Api) -> None:
    hero = await ready_character(api.server)
    assert "Idempotency-Replayed" not in (await image(api, key(), character_id=hero.id)).headers


async def test_a_repeated_request_for_an_image_gets_the_same_bytes_marked_as_replayed(api: Api) -> None:
    hero, headers = await ready_character(api.server), key()
    first, again = [await image(api, headers, character_id=hero.id) for _ in range(2)]
    assert (sent(again), is_replayed(again)) == (sent(first), True)


async def test_what_became_of_the_job_since_changes_nothing_of_its_first_answer(api: Api) -> None:
    hero, headers = await ready_character(api.server), key()
    first = await image(api, headers, character_id=hero.id)
    await api.call("DELETE", first.headers["Location"])
    assert sent(await image(api, headers, character_id=hero.id)) == sent(first)


async def test_a_repeated_request_for_a_video_gets_the_same_bytes(api: Api) -> None:
    hero, headers = await ready_character(api.server), key()
    body = {"character_id": hero.id, "prompt": "waving", "frames": 16}
    first, again = [await api.post("/generate-video", json=body, headers=headers) for _ in range(2)]
    assert (sent(again), is_replayed(again)) == (sent(first), True)


async def test_an_answer_that_was_held_is_replayed_with_its_preference(api: Api) -> None:
    hero, headers = await ready_character(api.server), {**key(), "Prefer": "wait=1"}
    first, again = [await image(api, headers, character_id=hero.id) for _ in range(2)]
    assert (sent(again), again.headers["Preference-Applied"]) == (sent(first), "wait=1")


async def test_a_repeated_creation_gets_the_same_bytes(api: Api) -> None:
    headers, images = key(), pictures(6)
    fields = {"name": f"Twice {headers['Idempotency-Key'][-8:]}"}
    first, again = [await api.post("/characters", data=form_of(fields, images), headers=headers) for _ in range(2)]
    assert (first.status, sent(again), is_replayed(again)) == (202, sent(first), True)


async def test_the_same_key_with_one_other_file_is_refused(api: Api) -> None:
    headers, images = key(), pictures(6)
    fields = {"name": f"Other {headers['Idempotency-Key'][-8:]}"}
    await api.post("/characters", data=form_of(fields, images), headers=headers)
    name = next(iter(images))
    answer = await api.post(
        "/characters", data=form_of(fields, {**images, name: images[name] + b"\0"}), headers=headers
    )
    assert (answer.status, answer.body["code"]) == (422, "idempotency_mismatch")


async def test_a_repeated_training_of_a_version_gets_the_same_bytes(api: Api) -> None:
    headers = key()
    created = await api.create({"name": f"Again {headers['Idempotency-Key'][-8:]}"}, pictures(6))
    path = f"/characters/{created.body['character']['id']}/versions"
    first, again = [await api.post(path, json={"recipe": "fast"}, headers=headers) for _ in range(2)]
    assert (first.status, sent(again), is_replayed(again)) == (202, sent(first), True)


async def test_a_repeated_import_of_a_workflow_gets_the_same_bytes(api: Api) -> None:
    headers = key()
    body = {"name": f"import_{headers['Idempotency-Key'][-8:]}", "graph": portrait()}
    first, again = [await api.post("/workflows", json=body, headers=headers) for _ in range(2)]
    assert (first.status, sent(again), is_replayed(again)) == (201, sent(first), True)


async def test_a_refused_import_keeps_no_key(api: Api) -> None:
    headers = key()
    refused = await api.post("/workflows", json={"name": "sketch_image", "graph": portrait()}, headers=headers)
    name = f"import_{headers['Idempotency-Key'][-8:]}"
    taken = await api.post("/workflows", json={"name": name, "graph": portrait()}, headers=headers)
    assert (refused.status, taken.status) == (409, 201)


async def test_a_refused_request_keeps_no_key(api: Api) -> None:
    hero, headers = await ready_character(api.server), key()
    refused = await image(api, headers, character_id=hero.id, colour="red")
    taken = await image(api, headers, character_id=hero.id)
    assert (refused.status, taken.status, is_replayed(taken)) == (422, 202, False)


async def test_a_key_means_something_else_at_another_address(api: Api) -> None:
    hero, headers = await ready_character(api.server), key()
    await image(api, headers, character_id=hero.id)
    video = await api.post("/generate-video", json={"character_id": hero.id, "prompt": "waving"}, headers=headers)
    assert (video.status, is_replayed(video)) == (202, False)


async def test_a_quoted_key_is_the_same_as_a_bare_one(api: Api) -> None:
    hero, bare = await ready_character(api.server), new_id("key")
    first = await image(api, {"Idempotency-Key": bare}, character_id=hero.id)
    again = await image(api, {"Idempotency-Key": f'"{bare}"'}, character_id=hero.id)
    assert (sent(again), is_replayed(again)) == (sent(first), True)


async def test_a_quote_and_a_backslash_in_a_quoted_key_are_escaped(api: Api) -> None:
    hero, rest = await ready_character(api.server), new_id("key")
    first = await image(api, {"Idempotency-Key": f'{rest}"\\'}, character_id=hero.id)
    again = await image(api, {"Idempotency-Key": f'"{rest}\\"\\\\"'}, character_id=hero.id)
    assert sent(again) == sent(first)


@pytest.mark.parametrize("malformed", ['"', '"open', '"a"b"', '"a\\b"', '""', '"a";b=1', '"ä"', "x" * 256, " "])
async def test_a_malformed_key_is_refused(api: Api, malformed: str) -> None:
    answer = await image(api, {"Idempotency-Key": malformed})
    assert (answer.status, answer.body["code"]) == (400, "bad_request")


async def test_two_keys_on_one_request_are_refused(api: Api) -> None:
    headers = [("Idempotency-Key", "one"), ("Idempotency-Key", "two")]
    answer = await api.post("/generate-image", json={"prompt": "smiling"}, headers=headers)
    assert answer.status == 400


async def test_a_request_that_died_before_its_answer_is_answered_by_the_next_one(api: Api) -> None:
    hero, headers = await ready_character(api.server), key()
    first = await image(api, headers, character_id=hero.id)
    await asyncio.to_thread(_forget_answer, api.server, headers["Idempotency-Key"])
    next_one = await image(api, headers, character_id=hero.id)
    after_it = await image(api, headers, character_id=hero.id)
    assert next_one.body["job"]["id"] == first.body["job"]["id"]
    assert (sent(after_it), is_replayed(next_one), is_replayed(after_it)) == (sent(next_one), False, True)


async def test_duplicates_at_once_get_one_job_and_one_body(api: Api) -> None:
    hero, headers = await ready_character(api.server), key()
    answers = await asyncio.gather(*(image(api, headers, character_id=hero.id) for _ in range(AT_ONCE)))
    assert ({answer.status for answer in answers}, len({sent(answer) for answer in answers})) == ({202}, 1)
    assert sum(not is_replayed(answer) for answer in answers) == 1


async def test_duplicates_that_wait_for_the_job_get_one_body(api: Api) -> None:
    hero, headers = await ready_character(api.server), {**key(), "Prefer": "wait=60"}
    asked = [asyncio.create_task(image(api, headers, character_id=hero.id)) for _ in range(5)]
    job = await first_job_of(api, hero.id)
    await api.call("DELETE", f"/jobs/{job}")
    answers = await asyncio.gather(*asked)
    assert ({answer.status for answer in answers}, len({sent(answer) for answer in answers})) == ({200}, 1)


async def first_job_of(api: Api, character_id: str) -> str:
    for _ in range(400):
        found = (await api.get(f"/jobs?character_id={character_id}")).body["items"]
        if found:
            return str(found[0]["id"])
        await asyncio.sleep(0.05)
    raise AssertionError("no job was made")


def _forget_answer(server: Server, key: str) -> None:
    def forget(c: Connection) -> None:
        mine = idempotency_keys.c.key == key
        c.execute(update(idempotency_keys).where(mine).values(status=None, headers=None, answer=None))

    database = Database(server.settings.effective_database_url)
    try:
        database.write_sync(forget)
    finally:
        database.engine.dispose()


@pytest.fixture
async def replicas(postgresql_url: str, tmp_path: Path) -> AsyncIterator[tuple[Api, Api]]:
    settings = Settings(data=tmp_path, database_url=postgresql_url, port=0, min_images=5)
    with serving(settings) as one, serving(settings) as other:
        async with aiohttp.ClientSession() as session:
            apis = Api(one, session), Api(other, session)
            headers = {"Authorization": f"Bearer {one.join_token}"}
            assert (await apis[0].post("/pods", json=pod_body(), headers=headers)).status == 201
            yield apis


async def test_duplicates_on_two_servers_at_once_get_one_job_and_one_body(replicas: tuple[Api, Api]) -> None:
    hero, headers = await ready_character(replicas[0].server), key()
    asked = (image(replicas[number % 2], headers, character_id=hero.id) for number in range(AT_ONCE))
    answers = await asyncio.gather(*asked)
    assert ({answer.status for answer in answers}, len({sent(answer) for answer in answers})) == ({202}, 1)
    assert len((await replicas[1].get("/jobs")).body["items"]) == 1


async def test_one_key_with_two_payloads_on_two_servers_at_once_makes_one_job(replicas: tuple[Api, Api]) -> None:
    hero, headers = await ready_character(replicas[0].server), key()
    asked = (image(replicas[number % 2], headers, character_id=hero.id, seed=number % 2) for number in range(AT_ONCE))
    answers = await asyncio.gather(*asked)
    assert sorted(answer.status for answer in answers) == [202] * 10 + [422] * 10
    assert len((await replicas[1].get("/jobs")).body["items"]) == 1


async def test_a_key_of_one_server_is_known_to_the_other(replicas: tuple[Api, Api]) -> None:
    hero, headers = await ready_character(replicas[0].server), key()
    first, again = [await image(api, headers, character_id=hero.id) for api in replicas]
    assert (sent(again), is_replayed(again)) == (sent(first), True)


async def test_a_key_outlives_the_server(tmp_path: Path) -> None:
    headers, answers = key(), []
    hero_id = ""
    for _ in range(2):
        with serving(Settings(data=tmp_path, port=0, min_images=5)) as server:
            async with aiohttp.ClientSession() as session:
                api = Api(server, session)
                joined = {"Authorization": f"Bearer {server.join_token}"}
                await api.post("/pods", json=pod_body(), headers=joined)
                hero_id = hero_id or (await ready_character(server)).id
                answers.append(await image(api, headers, character_id=hero_id))
    assert (sent(answers[1]), is_replayed(answers[1])) == (sent(answers[0]), True)
