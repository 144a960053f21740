"""Uploads, /view and its guards, LoadImage."""

from __future__ import annotations

import io
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from PIL import Image

from .client import Client
from .test_validation import picture


def png(colour: tuple[int, ...], mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


async def upload(client: Client, content: bytes, name: str, **fields: str) -> tuple[int, Any]:
    form = aiohttp.FormData()
    form.add_field("image", content, filename=name, content_type="image/png")
    for field, value in fields.items():
        form.add_field(field, value)
    return await client.call("POST", "/upload/image", data=form)


async def test_an_upload_answers_with_name_subfolder_and_type(client: Client) -> None:
    name = f"{uuid4().hex}.png"
    assert await upload(client, png((1, 2, 3)), name) == (200, {"name": name, "subfolder": "", "type": "input"})


async def test_the_same_bytes_keep_their_name(client: Client) -> None:
    name = f"{uuid4().hex}.png"
    await upload(client, png((1, 2, 3)), name)
    _, again = await upload(client, png((1, 2, 3)), name)
    assert again["name"] == name


async def test_other_bytes_under_a_taken_name_get_a_number(client: Client) -> None:
    stem = uuid4().hex
    await upload(client, png((1, 2, 3)), f"{stem}.png")
    _, other = await upload(client, png((3, 2, 1)), f"{stem}.png")
    assert other["name"] == f"{stem} (1).png"


async def test_overwrite_replaces_the_file(client: Client) -> None:
    name = f"{uuid4().hex}.png"
    await upload(client, png((1, 2, 3)), name)
    _, answer = await upload(client, png((9, 9, 9)), name, overwrite="true")
    async with client.session.get(f"{client.pod.address}/view?filename={name}&type=input") as response:
        assert (answer["name"], await response.read()) == (name, png((9, 9, 9)))


async def test_an_upload_may_go_into_a_subfolder(client: Client) -> None:
    _, answer = await upload(client, png((1, 1, 1)), "deep.png", subfolder="sub/a", overwrite="1")
    assert answer == {"name": "deep.png", "subfolder": "sub/a", "type": "input"}


@pytest.mark.parametrize("subfolder", ["../../outside", "/etc"])
async def test_an_upload_may_not_leave_its_folder(client: Client, subfolder: str) -> None:
    status, _ = await upload(client, png((1, 1, 1)), "escape.png", subfolder=subfolder)
    assert status == 400


async def test_an_upload_without_a_file_is_refused(client: Client) -> None:
    form = aiohttp.FormData()
    form.add_field("type", "input")
    status, _ = await client.call("POST", "/upload/image", data=form)
    assert status in (400, 500)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("filename=nofile.png", 404),
        ("", 404),
        ("filename=../x.png", 400),
        ("filename=/etc/passwd", 400),
        ("filename=x.png&subfolder=../..", 403),
        ("filename=x.png&type=nowhere", 400),
    ],
)
async def test_view_refuses_what_is_not_its_own(client: Client, query: str, status: int) -> None:
    found, _ = await client.call("GET", f"/view?{query}")
    assert found == status


async def test_a_saved_picture_can_be_viewed(client: Client) -> None:
    entry = await client.run(picture(0x102030), client_id="me")
    image = entry["outputs"]["2"]["images"][0]
    async with client.session.get(client.pod.address + "/view", params=image) as response:
        pixels = Image.open(io.BytesIO(await response.read())).convert("RGB").getpixel((0, 0))
        assert (response.content_type, pixels) == ("image/png", (0x10, 0x20, 0x30))


async def test_a_saved_picture_carries_its_graph(client: Client) -> None:
    import json

    graph = picture(0x112233)
    entry = await client.run(graph, client_id="me")
    async with client.session.get(client.pod.address + "/view", params=entry["outputs"]["2"]["images"][0]) as response:
        opened = Image.open(io.BytesIO(await response.read()))
    assert json.loads(opened.info["prompt"]) == graph  # type: ignore[attr-defined]


async def test_a_range_of_a_file_can_be_read(client: Client) -> None:
    name = f"{uuid4().hex}.png"
    await upload(client, png((5, 5, 5)), name)
    url = f"{client.pod.address}/view?filename={name}&type=input"
    async with client.session.get(url, headers={"Range": "bytes=1-3"}) as response:
        assert (response.status, await response.read()) == (206, b"PNG")


async def test_an_uploaded_picture_can_be_loaded_from_temp(client: Client) -> None:
    name = f"{uuid4().hex}.png"
    await upload(client, png((255, 0, 0)), name, type="temp")
    entry = await client.run(loading(f"{name} [temp]"), client_id="me")
    assert entry["status"]["status_str"] == "success"


async def test_a_picture_is_turned_as_its_exif_says(client: Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (40, 24), (200, 10, 10)).save(buffer, format="JPEG", exif=exif)
    name = f"{uuid4().hex}.jpg"
    await upload(client, buffer.getvalue(), name)
    entry = await client.run(loading(name), client_id="me")
    async with client.session.get(client.pod.address + "/view", params=entry["outputs"]["2"]["images"][0]) as response:
        assert Image.open(io.BytesIO(await response.read())).size == (24, 40)


def loading(name: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "loaded"}},
    }
