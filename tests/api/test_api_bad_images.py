"""Bad reference images over real HTTP: a clear problem document with reasons, and nothing half-done."""

from __future__ import annotations

import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from controlplane.api.archives import unpacked
from controlplane.errors import PayloadTooLarge
from controlplane.services.characters import Upload

from .api_pictures import picture, pictures, png
from .api_server import Answer, Api

pytestmark = pytest.mark.usefixtures("pod")


async def create(api: Api, images: dict[str, bytes], **fields: str) -> Answer:
    return await api.create({"name": "Mira", "recipe": "fast", **fields}, images)


def verdicts(answer: Answer) -> dict[str, str]:
    return {image["name"]: image["verdict"] for image in answer.body["dataset"]["images"]}


def huge_png() -> bytes:
    """A PNG whose header declares 30,000 x 30,000 px, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def animated_gif() -> bytes:
    data = BytesIO()
    picture(50).save(data, "GIF", save_all=True, append_images=[picture(51), picture(52)], duration=100)
    return data.getvalue()


def palette_png_with_alpha() -> bytes:
    image = picture(60).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    data = BytesIO()
    image.quantize(64).save(data, "PNG")
    return data.getvalue()


def turned_jpeg() -> bytes:
    """A landscape JPEG that EXIF says stands on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = BytesIO()
    picture(70, size=(200, 120)).save(data, "JPEG", quality=95, exif=exif)
    return data.getvalue()


BAD = {
    "a text file named .png": b"this is only text\n" * 50,
    "a truncated PNG": png(picture(40))[:300],
    "a 1 x 1 image": png(Image.new("RGB", (1, 1))),
    "30,000 x 30,000 px": huge_png(),
    "an animated GIF": animated_gif(),
    "an empty file": b"",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
async def test_a_bad_image_among_good_ones_is_rejected_with_a_reason(api: Api, data: bytes) -> None:
    answer = await create(api, {**pictures(6), "bad.png": data})
    assert answer.status == 202
    bad = next(image for image in answer.body["dataset"]["images"] if image["name"] == "bad.png")
    assert bad["verdict"] == "reject"
    assert bad["reasons"]


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
async def test_only_bad_images_are_refused_with_the_place_of_each(api: Api, data: bytes) -> None:
    answer = await create(api, {f"{number}.png": data for number in range(6)})
    assert (answer.status, answer.body["code"]) == (422, "dataset_rejected")
    assert {error["pointer"] for error in answer.body["errors"]} >= {"/images/0"}


@pytest.mark.parametrize("count", [0, 1, 4])
async def test_too_few_images_are_refused(api: Api, count: int) -> None:
    answer = await create(api, pictures(count))
    assert (answer.status, answer.body["code"]) == (422, "dataset_rejected")


async def test_five_hundred_images_are_refused(api: Api) -> None:
    data = png(picture(1))
    answer = await create(api, {f"{number:03d}.png": data for number in range(500)})
    assert (answer.status, answer.body["code"]) == (422, "dataset_rejected")
    assert "500" in answer.body["detail"]


async def test_a_palette_png_with_alpha_is_accepted(api: Api) -> None:
    answer = await create(api, {**pictures(6), "palette.png": palette_png_with_alpha()})
    assert verdicts(answer)["palette.png"] in ("ok", "warn")


async def test_a_turned_jpeg_is_accepted_and_turned(api: Api) -> None:
    answer = await create(api, {**pictures(6), "turned.jpg": turned_jpeg()})
    turned = next(image for image in answer.body["dataset"]["images"] if image["name"] == "turned.jpg")
    assert turned["verdict"] in ("ok", "warn")
    assert (turned["width"], turned["height"]) == (120, 200)


async def test_a_refused_set_leaves_no_character_and_no_file(api: Api) -> None:
    async def known() -> list[str]:
        return [item["id"] for item in (await api.get("/characters?limit=100")).body["items"]]

    def files() -> set[Path]:
        return {path for path in (api.server.settings.data / "files").rglob("*") if path.is_file()}

    before = await known(), files()
    answer = await create(api, {f"{number}.png": b"text" for number in range(8)}, name="Nobody at all")
    assert answer.status == 422
    assert (await known(), files()) == before


async def test_a_zip_of_images_is_opened(api: Api) -> None:
    data = BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, image in pictures(6).items():
            archive.writestr(f"mira/{name}", image)
        archive.writestr("__MACOSX/mira/._000.png", b"junk")
    answer = await create(api, {"mira.zip": data.getvalue()})
    assert answer.status == 202
    assert answer.body["dataset"]["usable"] == 6


async def test_a_zip_whose_names_lead_elsewhere_writes_nothing_there(api: Api, tmp_path: Path) -> None:
    data = BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, image in pictures(6).items():
            archive.writestr(f"../../../../../../../../{tmp_path}/{name}", image)
    answer = await create(api, {"mira.zip": data.getvalue()})
    assert answer.status in (202, 422)
    assert list(tmp_path.iterdir()) == []


async def test_a_broken_zip_is_refused(api: Api) -> None:
    answer = await create(api, {"mira.zip": b"PK\x03\x04" + b"broken" * 100})
    assert answer.status == 422


def test_a_zip_that_unpacks_to_too_much_is_refused_however_small_it_is(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(2 * 2**20))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(PayloadTooLarge):
        unpacked([Upload("bomb.zip", bomb)], tmp_path, 2**20)


async def test_the_verdicts_come_with_the_answer(api: Api) -> None:
    body: dict[str, Any] = (await create(api, pictures(6))).body
    assert body["dataset"]["usable"] == 6
    assert body["character"]["status"] == "training"
    assert (body["job"]["kind"], body["job"]["status"]) == ("train", "queued")
    assert body["links"]["self"] == f"/jobs/{body['job']['id']}"
