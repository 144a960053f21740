"""Characters, versions and assets once they exist: reading, changing, training again, deleting."""

from __future__ import annotations

from typing import Any

import pytest

from .api_pictures import picture, pictures, png
from .api_seed import ready_character, stored_picture
from .api_server import Api, form_of

pytestmark = pytest.mark.usefixtures("pod")


async def test_a_character_shows_its_versions_and_counts(api: Api) -> None:
    hero = await ready_character(api.server)
    await stored_picture(api.server, hero, png(picture(1)))
    body = (await api.get(f"/characters/{hero.id}")).body
    assert (body["status"], body["active_version"], len(body["versions"])) == ("ready", 1, 1)
    assert body["counts"] == {"images": 1, "videos": 0, "versions": 1}


async def test_a_characters_cover_can_be_fetched(api: Api) -> None:
    created = await api.create({"name": "With Cover", "recipe": "fast"}, pictures(6))
    cover = await api.get(created.body["character"]["cover_url"])
    assert (cover.status, cover.headers["Content-Type"]) == (200, "image/png")


async def test_the_references_of_a_character_are_not_public(api: Api) -> None:
    created = await api.create({"name": "With Secrets", "recipe": "fast"}, pictures(6))
    bare = created.body["character"]["cover_url"].split("?")[0]
    assert (await api.get(bare)).status == 403


async def test_a_character_can_be_renamed_and_keeps_its_id(api: Api) -> None:
    hero = await ready_character(api.server)
    body = (await api.call("PATCH", f"/characters/{hero.id}", json={"name": "Héro 🦸"})).body
    assert (body["id"], body["name"]) == (hero.id, "Héro 🦸")


async def test_a_picture_can_become_the_cover(api: Api) -> None:
    hero = await ready_character(api.server)
    chosen = await stored_picture(api.server, hero, png(picture(1)))
    await stored_picture(api.server, hero, png(picture(2)))
    body = (await api.call("PATCH", f"/characters/{hero.id}", json={"cover_asset_id": chosen.id})).body
    assert chosen.key in body["cover_url"]


@pytest.mark.parametrize("field", ["id", "trigger_word", "consent", "subject", "active_version"])
async def test_what_makes_a_character_cannot_be_changed(api: Api, field: str) -> None:
    hero = await ready_character(api.server)
    answer = await api.call("PATCH", f"/characters/{hero.id}", json={field: "other"})
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (422, f"/{field}")


async def test_a_deleted_character_is_gone_with_its_files(api: Api) -> None:
    hero = await ready_character(api.server)
    shown = await stored_picture(api.server, hero, png(picture(1)))
    assert (await api.call("DELETE", f"/characters/{hero.id}")).status == 204
    assert (await api.get(f"/characters/{hero.id}")).status == 404
    assert (await api.get(f"/files/{shown.key}")).status == 404


async def test_a_character_with_work_in_progress_is_not_deleted(api: Api) -> None:
    created = await api.create({"name": "Busy", "recipe": "fast"}, pictures(6))
    answer = await api.call("DELETE", f"/characters/{created.body['character']['id']}")
    assert (answer.status, answer.body["code"]) == (409, "conflict")


@pytest.mark.parametrize("options", [{}, {"json": {"recipe": "fast"}}], ids=["no body", "json"])
async def test_training_again_without_images_uses_the_last_ones(api: Api, options: dict[str, Any]) -> None:
    created = (await api.create({"name": "Again", "recipe": "fast"}, pictures(6))).body
    again = await api.post(f"/characters/{created['character']['id']}/versions", **options)
    assert (again.status, again.body["job"]["version"]) == (202, 2)
    assert again.body["job"]["request"]["dataset_digest"] == created["job"]["request"]["dataset_digest"]


async def test_training_again_with_images_uses_these(api: Api) -> None:
    created = (await api.create({"name": "Anew", "recipe": "fast"}, pictures(6))).body
    form = form_of({"recipe": "fast"}, pictures(7, first=20))
    again = await api.post(f"/characters/{created['character']['id']}/versions", data=form)
    assert (again.status, again.body["dataset"]["usable"]) == (202, 7)


async def test_a_version_still_training_cannot_be_activated(api: Api) -> None:
    created = (await api.create({"name": "Too Early", "recipe": "fast"}, pictures(6))).body
    answer = await api.post(f"/characters/{created['character']['id']}/versions/1/activate")
    assert (answer.status, answer.body["code"]) == (409, "character_not_ready")


async def test_the_same_name_gets_another_id_and_trigger(api: Api) -> None:
    first = (await api.create({"name": "Twin", "recipe": "fast"}, pictures(6))).body["character"]
    second = (await api.create({"name": "Twin", "recipe": "fast"}, pictures(6))).body["character"]
    assert second["id"] == f"{first['id']}-2"
    assert second["trigger_word"] != first["trigger_word"]


async def test_creating_again_with_the_same_key_gets_the_same_character(api: Api) -> None:
    headers = {"Idempotency-Key": "create once"}
    data = pictures(6)
    answers = [
        await api.post("/characters", data=form_of({"name": "Once", "recipe": "fast"}, data), headers=headers)
        for _ in range(2)
    ]
    assert len({answer.body["character"]["id"] for answer in answers}) == 1


async def test_an_asset_can_be_marked(api: Api) -> None:
    hero = await ready_character(api.server)
    asset = await stored_picture(api.server, hero, png(picture(1)))
    change = {"favourite": True, "rating": "general", "metadata": {"shelf": 3}}
    body = (await api.call("PATCH", f"/assets/{asset.id}", json=change)).body
    assert {name: body[name] for name in change} == change


async def test_marked_assets_can_be_listed(api: Api) -> None:
    hero = await ready_character(api.server)
    marked = await stored_picture(api.server, hero, png(picture(1)))
    await stored_picture(api.server, hero, png(picture(2)))
    await api.call("PATCH", f"/assets/{marked.id}", json={"favourite": True})
    items = (await api.get(f"/assets?character_id={hero.id}&favourite=true")).body["items"]
    assert [item["id"] for item in items] == [marked.id]


async def test_a_deleted_asset_is_gone_with_its_file(api: Api) -> None:
    hero = await ready_character(api.server)
    asset = await stored_picture(api.server, hero, png(picture(1)))
    assert (await api.call("DELETE", f"/assets/{asset.id}")).status == 204
    assert (await api.get(f"/assets/{asset.id}")).status == 404
    assert (await api.get(f"/files/{asset.key}")).status == 404


async def test_a_lora_in_use_is_not_deleted(api: Api) -> None:
    hero = await ready_character(api.server)
    lora = (await api.get(f"/assets?character_id={hero.id}&kind=lora")).body["items"][0]
    answer = await api.call("DELETE", f"/assets/{lora['id']}")
    assert (answer.status, answer.body["code"]) == (409, "conflict")
