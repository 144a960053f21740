"""Importing workflows over real HTTP, and asking for pictures with them at once."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from controlplane.settings import Settings
from tests.workflows.exports import Graph, control_net, node, png_with, portrait, video

from .api_pictures import picture, png
from .api_seed import ready_character, stored_picture
from .api_server import Answer, Api, pod_body, serving

pytestmark = pytest.mark.usefixtures("pod")

RECORDED = json.loads((Path(__file__).parents[1] / "workflows" / "data" / "object_info_0.8.0.json").read_text())


def pointers(answer: Answer) -> set[str]:
    return {error["pointer"] for error in answer.body.get("errors", [])}


@pytest.fixture
async def names(api: Api) -> AsyncIterator[Any]:
    """Fresh names for workflows, which are removed when the test ends."""
    given: list[str] = []

    def name() -> str:
        given.append(f"test_{id(given)}_{len(given)}")
        return given[-1]

    yield name
    for one in given:
        await api.call("DELETE", f"/workflows/{one}")


async def put_in(api: Api, graph: Any, **fields: Any) -> Answer:
    return await api.post("/workflows", json={"graph": graph, **fields})


async def send_file(api: Api, data: bytes, file_name: str, **fields: str) -> Answer:
    form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
    for key, value in fields.items():
        form.add_field(key, value)
    form.add_field("file", data, filename=file_name, content_type="application/octet-stream")
    return await api.post("/workflows", data=form)


async def image(api: Api, **fields: Any) -> Answer:
    return await api.post("/generate-image", json={"prompt": "smiling, red jacket", **fields})


async def test_an_export_becomes_a_workflow(api: Api, names: Any) -> None:
    name = names()
    answer = await put_in(api, portrait(), name=name)
    assert (answer.status, answer.body["status"], answer.headers["Location"]) == (201, "created", f"/workflows/{name}")
    assert {"prompt", "seed", "width"} <= set((await api.get(f"/workflows/{name}")).body["inputs"])


async def test_it_can_be_asked_for_at_once(api: Api, names: Any) -> None:
    name = names()
    await put_in(api, portrait(), name=name)
    answer = await image(api, workflow=name, width=64)
    job = answer.body["job"]
    assert (answer.status, job["workflow"]) == (202, name)
    assert (job["request"]["values"]["width"], job["request"]["values"]["negative_prompt"]) == (64, "blurry")


async def test_a_character_plays_in_it(api: Api, names: Any) -> None:
    name = names()
    await put_in(api, portrait(), name=name, insert_character=True)
    hero = await ready_character(api.server)
    job = (await image(api, workflow=name, character_id=hero.id)).body["job"]
    assert job["request"]["values"]["character_id"] == hero.id
    assert job["request"]["values"]["prompt"].startswith(hero.trigger_word)


async def test_without_a_character_loader_no_character_is_taken(api: Api, names: Any) -> None:
    name = names()
    await put_in(api, portrait(), name=name)
    hero = await ready_character(api.server)
    assert pointers(await image(api, workflow=name, character_id=hero.id)) == {"/character_id"}


@pytest.mark.parametrize("data", [json.dumps(portrait()).encode(), png_with(prompt=json.dumps(portrait()))])
async def test_a_file_is_taken_as_a_form(api: Api, names: Any, data: bytes) -> None:
    answer = await send_file(api, data, "My Portrait.json", name=names(), insert_character="true")
    assert (answer.status, answer.body["workflow"]["takes_character"]) == (201, True)


async def test_a_file_gives_the_workflow_its_name(api: Api) -> None:
    answer = await send_file(api, json.dumps(portrait()).encode(), "My Portrait (1).json", dry_run="true")
    assert answer.body["workflow"]["name"] == "my_portrait_1"


async def test_an_empty_form_is_refused(api: Api) -> None:
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("name", "x")
    assert pointers(await api.post("/workflows", data=form)) == {"/file"}


async def test_a_dry_run_tells_everything_and_keeps_nothing(api: Api) -> None:
    answer = await put_in(api, portrait(), name="only_looked_at", dry_run=True)
    assert (answer.status, answer.body["status"]) == (200, "checked")
    assert (await api.get("/workflows/only_looked_at")).status == 404


async def test_what_was_found_and_changed_is_told(api: Api) -> None:
    body = (await put_in(api, portrait(), name="x", insert_character=True, dry_run=True)).body
    assert {
        "name": "seed",
        "by": "traced",
        "how": "the seed of every sampler that adds noise",
        "places": ["3.seed"],
    } in (body["findings"])
    assert [one["action"] for one in body["diff"]] == ["replaced", "inserted", "rewired", "rewired", "rewired"]


async def test_what_each_pod_lacks_is_told(api: Api) -> None:
    body = (await put_in(api, portrait(), name="x", dry_run=True)).body
    missing = {name for one in body["pods"] for name in one["missing"]}
    assert "node class S3Save" in missing
    assert any(warning.startswith("No pod can do this yet") for warning in body["warnings"])


async def test_the_same_content_again_changes_nothing(api: Api, names: Any) -> None:
    name = names()
    first = (await put_in(api, portrait(), name=name)).body["workflow"]["digest"]
    again = await put_in(api, portrait(), name=name)
    assert (again.status, again.body["status"], again.body["workflow"]["digest"]) == (200, "unchanged", first)
    assert again.body["workflow"]["versions"] == []


async def test_other_content_is_the_new_version_and_old_jobs_keep_theirs(api: Api, names: Any) -> None:
    name = names()
    first = (await put_in(api, portrait(), name=name)).body["workflow"]["digest"]
    job = (await image(api, workflow=name)).body["job"]["id"]
    graph = portrait()
    graph["3"]["inputs"]["steps"] = 30
    changed = await put_in(api, graph, name=name)
    assert (changed.status, changed.body["status"], changed.body["previous_digest"]) == (201, "changed", first)
    assert (await api.get(f"/workflows/{name}")).body["versions"] == [first]
    assert (await api.get(f"/jobs/{job}")).body["request"]["values"]["steps"] == 20


async def test_a_shipped_workflow_stays_as_it_is(api: Api) -> None:
    assert (await put_in(api, portrait(), name="sketch_image")).status == 409
    assert (await api.call("DELETE", "/workflows/sketch_image")).status == 409


async def test_a_removed_workflow_is_gone(api: Api, names: Any) -> None:
    await put_in(api, portrait(), name="soon_gone")
    assert (await api.call("DELETE", "/workflows/soon_gone")).status == 204
    assert (await image(api, workflow="soon_gone")).status == 404
    assert (await api.call("DELETE", "/workflows/soon_gone")).status == 404


async def test_the_list_tells_what_was_imported(api: Api, names: Any) -> None:
    name = names()
    await put_in(api, portrait(), name=name)
    listed = {one["name"]: one["imported"] for one in (await api.get("/workflows")).body["items"]}
    assert (listed[name], listed["sketch_image"]) == (True, False)


@pytest.mark.parametrize(
    ("graph", "status", "words"),
    [
        ({"nodes": [], "links": []}, 422, "Export (API)"),
        ({"1": {"class_type": "X"}}, 422, "no inputs object"),
        ({**portrait(), "6": node("CLIPTextEncode", clip=["4", 1])}, 422, "@prompt"),
        ([], 422, "graph"),
    ],
)
async def test_what_cannot_be_imported_is_refused_in_words(api: Api, graph: Any, status: int, words: str) -> None:
    answer = await put_in(api, graph, name="x")
    assert answer.status == status
    assert words in answer.data.decode()


@pytest.mark.parametrize("name", ["", "Üb", "../x", "a" * 65, None])
async def test_a_name_that_no_folder_could_have_is_refused(api: Api, name: str | None) -> None:
    assert pointers(await put_in(api, portrait(), name=name)) == {"/name"}


async def test_a_file_that_is_no_graph_is_refused(api: Api) -> None:
    answer = await send_file(api, b"hello", "x.json")
    assert (answer.status, answer.body["code"]) == (422, "invalid_template")


def with_style() -> Graph:
    """Two texts: the prompt, and one that its title calls style."""
    graph = portrait()
    graph["6"]["_meta"] = {"title": "@prompt"}
    graph["6b"] = node("CLIPTextEncode", "@style", text="in oil", clip=["4", 1])
    graph["6c"] = node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["6b", 0])
    graph["3"]["inputs"]["positive"] = ["6c", 0]
    return graph


async def test_an_input_that_a_title_named_is_a_field_of_requests(api: Api, names: Any) -> None:
    name = names()
    await put_in(api, with_style(), name=name)
    job = (await image(api, workflow=name, style="in ink")).body["job"]
    assert job["request"]["values"]["style"] == "in ink"


async def test_a_field_that_the_workflow_does_not_have_is_refused_by_name(api: Api, names: Any) -> None:
    name = names()
    await put_in(api, with_style(), name=name)
    assert pointers(await image(api, workflow=name, mood="dark")) == {"/mood"}


async def test_an_input_whose_name_is_that_of_a_videos_field_is_taken_for_a_picture_too(api: Api, names: Any) -> None:
    name = names()
    graph = with_style()
    graph["6b"]["_meta"]["title"] = "@motion"
    await put_in(api, graph, name=name)
    job = (await image(api, workflow=name, motion="waving")).body["job"]
    assert job["request"]["values"]["motion"] == "waving"


@pytest.mark.parametrize("title", ["@style", "@negative_prompt", "@motion", "@format_of_words"])
async def test_no_name_gets_a_text_past_the_content_rules(api: Api, names: Any, title: str) -> None:
    name = names()
    graph = with_style()
    graph["6b"]["_meta"]["title"] = title
    await put_in(api, graph, name=name)
    answer = await image(api, workflow=name, **{title[1:]: "explicit porn"})
    assert (answer.status, answer.body["code"]) == (422, "content_refused")


async def test_a_text_within_the_graph_counts_with_the_request(api: Api, names: Any) -> None:
    name = names()
    graph = with_style()
    graph["6b"] = node("CLIPTextEncode", text="nude", clip=["4", 1])
    assert (await put_in(api, graph, name=name)).status == 201
    assert (await image(api, workflow=name)).body["code"] == "content_refused"
    assert (await image(api, workflow=name, rating="mature", prompt="a schoolgirl")).body["code"] == "content_refused"


async def test_what_a_picture_is_to_keep_away_from_may_be_said(api: Api, names: Any) -> None:
    name = names()
    await put_in(api, portrait(), name=name)
    assert (await image(api, workflow=name, negative_prompt="nsfw, nude")).status == 202


async def test_a_picture_is_given_as_an_asset(api: Api, names: Any) -> None:
    name = names()
    await put_in(api, control_net(), name=name, insert_character=True)
    hero = await ready_character(api.server)
    pose = await stored_picture(api.server, hero, png(picture(3)))
    job = (await image(api, workflow=name, character_id=hero.id, image_asset_id=pose.id)).body["job"]
    assert job["request"]["values"]["image"] == f"{pose.id}.png"


async def test_a_picture_with_a_name_of_its_own_is_given_under_it(api: Api, names: Any) -> None:
    name = names()
    graph = control_net()
    graph["20"]["_meta"] = {"title": "@pose"}
    await put_in(api, graph, name=name)
    hero = await ready_character(api.server)
    pose = await stored_picture(api.server, hero, png(picture(3)))
    assert (await image(api, workflow=name, pose=pose.id)).body["job"]["request"]["values"]["pose"] == f"{pose.id}.png"
    assert pointers(await image(api, workflow=name)) == {"/pose"}
    unknown = await image(api, workflow=name, pose="asset_none")
    assert (unknown.status, pointers(unknown)) == (404, {"/pose"})


async def test_a_video_workflow_makes_videos(api: Api, names: Any) -> None:
    name = names()
    await put_in(api, video(), name=name)
    hero = await ready_character(api.server)
    still = await stored_picture(api.server, hero, png(picture(4)))
    wanted = {"prompt": "waving", "workflow": name, "image_asset_id": still.id, "frames": 10, "fps": 5}
    job = (await api.post("/generate-video", json=wanted)).body["job"]
    assert [job["request"]["values"][one] for one in ("frames", "fps")] == [10, 5.0]
    assert pointers(await image(api, workflow=name, image_asset_id=still.id)) == {"/workflow"}


async def test_imports_at_the_same_time_all_arrive(api: Api, names: Any) -> None:
    given = [names() for _ in range(8)]
    answers = await asyncio.gather(*(put_in(api, portrait(), name=name) for name in given))
    listed = {one["name"] for one in (await api.get("/workflows")).body["items"]}
    assert ({answer.status for answer in answers}, set(given) <= listed) == ({201}, True)


async def test_simultaneous_imports_of_one_workflow_make_one_version(api: Api, names: Any) -> None:
    name = names()
    answers = await asyncio.gather(*(put_in(api, portrait(), name=name) for _ in range(6)))
    assert sorted(answer.status for answer in answers) == [200] * 5 + [201]


@pytest.fixture
async def described(api: Api) -> AsyncIterator[str]:
    """A pod that says what its nodes take; it has a token, and can do nothing else."""

    async def tell(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer its token":
            return web.Response(status=401)
        name = request.match_info["name"]
        return web.json_response({name: RECORDED[name]} if name in RECORDED else {})

    app = web.Application()
    app.router.add_get("/object_info/{name}", tell)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    instance = "00000000-0000-4000-8000-00000000de5c"
    body = pod_body(
        instance_id=instance, address=address, token="its token", name="telling", node_classes=list(RECORDED)
    )
    await api.post("/pods", json=body, headers={"Authorization": f"Bearer {api.server.join_token}"})
    yield address
    await runner.cleanup()


@pytest.mark.usefixtures("described")
async def test_ranges_and_choices_are_asked_of_a_pod(api: Api) -> None:
    graph = portrait()
    graph["3"]["_meta"] = {"title": "@sampler.sampler_name"}
    body = (await put_in(api, graph, name="x", dry_run=True)).body
    inputs = body["workflow"]["inputs"]
    assert ("dpmpp_2m" in inputs["sampler"]["options"], inputs["width"]["step"]) == (True, 8)


@pytest.mark.usefixtures("described")
async def test_a_value_that_a_pod_does_not_know_is_told(api: Api) -> None:
    graph = portrait()
    graph["3"]["inputs"]["scheduler"] = "from_tomorrow"
    body = (await put_in(api, graph, name="x", dry_run=True)).body
    missing = {one["pod"]: one["missing"] for one in body["pods"]}["telling"]
    assert "KSampler.scheduler = 'from_tomorrow'" in missing


async def test_an_imported_workflow_outlives_the_server(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data", port=0)
    with serving(settings) as server:
        async with aiohttp.ClientSession() as session:
            digest = (await put_in(Api(server, session), portrait(), name="mine")).body["workflow"]["digest"]
    with serving(settings) as server:
        async with aiohttp.ClientSession() as session:
            assert (await Api(server, session).get("/workflows/mine")).body["digest"] == digest


async def test_a_broken_imported_workflow_keeps_no_server_from_starting(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data", port=0)
    shutil.copytree(settings.templates / "sketch_image", tmp_path / "data" / "workflows" / "broken")
    with serving(settings) as server:
        async with aiohttp.ClientSession() as session:
            assert (await Api(server, session).get("/workflows/broken")).status == 404
