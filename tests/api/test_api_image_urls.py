"""Pictures given by address: fetched from a real server, and never from our own network unless a rule says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from controlplane.api.image_urls import Fetching, fetched, is_public
from controlplane.errors import Unprocessable

from .api_pictures import picture, pictures, png
from .api_server import Api


@pytest.fixture
async def gallery() -> AsyncIterator[str]:
    """The address of a server with pictures, redirects and errors."""

    async def good(request: web.Request) -> web.Response:
        return web.Response(body=png(picture(int(request.match_info["number"]))), content_type="image/png")

    async def moved(request: web.Request) -> web.Response:
        raise web.HTTPFound("/1.png")

    async def inside(request: web.Request) -> web.Response:
        raise web.HTTPFound("http://10.0.0.1/secret")

    async def around(request: web.Request) -> web.Response:
        raise web.HTTPFound("/around")

    app = web.Application()
    app.add_routes(
        [
            web.get(r"/{number:\d+}.png", good),
            web.get("/moved", moved),
            web.get("/inside", inside),
            web.get("/around", around),
        ]
    )
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


def on_loopback(address: str) -> bool:
    return address in ("127.0.0.1", "::1")


def fetching(folder: Path, max_bytes: int = 10**6, left: int = 10**7) -> Fetching:
    return Fetching(folder, max_bytes, left, on_loopback)


async def reason(urls: list[str], rules: Fetching) -> str:
    with pytest.raises(Unprocessable) as refused:
        await fetched(urls, rules)
    return refused.value.errors[0]["detail"]


async def test_pictures_are_fetched_in_order(gallery: str, tmp_path: Path) -> None:
    uploads = await fetched([f"{gallery}/{number}.png" for number in range(5)], fetching(tmp_path))
    assert [upload.path.read_bytes() for upload in uploads] == [png(picture(number)) for number in range(5)]
    assert [upload.name for upload in uploads] == [f"{number}.png" for number in range(5)]


async def test_a_redirect_is_followed(gallery: str, tmp_path: Path) -> None:
    uploads = await fetched([f"{gallery}/moved"], fetching(tmp_path))
    assert uploads[0].path.read_bytes() == png(picture(1))


async def test_a_redirect_into_our_network_is_not_followed(gallery: str, tmp_path: Path) -> None:
    assert "public internet" in await reason([f"{gallery}/inside"], fetching(tmp_path))


async def test_an_endless_redirect_ends(gallery: str, tmp_path: Path) -> None:
    assert "too often" in await reason([f"{gallery}/around"], fetching(tmp_path))


async def test_a_picture_that_is_too_large_is_not_kept(gallery: str, tmp_path: Path) -> None:
    assert "larger" in await reason([f"{gallery}/1.png"], fetching(tmp_path, max_bytes=100))


async def test_all_pictures_together_are_bounded(gallery: str, tmp_path: Path) -> None:
    urls = [f"{gallery}/{number}.png" for number in range(5)]
    assert "together" in await reason(urls, fetching(tmp_path, left=3000))


async def test_a_missing_picture_is_named_by_its_place(gallery: str, tmp_path: Path) -> None:
    with pytest.raises(Unprocessable) as refused:
        await fetched([f"{gallery}/1.png", f"{gallery}/missing"], fetching(tmp_path))
    assert [error["pointer"] for error in refused.value.errors] == ["/image_urls/1"]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "nonsense", "http://u:p@127.0.0.1/", ""])
async def test_only_plain_web_addresses_are_fetched(url: str, tmp_path: Path) -> None:
    assert await reason([url], fetching(tmp_path))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "10.1.2.3", "169.254.169.254", "[::ffff:10.0.0.1]"]
)
async def test_our_own_network_is_never_reached(host: str, tmp_path: Path) -> None:
    rules = Fetching(tmp_path, 10**6, 10**7)
    assert "public internet" in await reason([f"http://{host}:9/x.png"], rules)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "fe80::1", "0.0.0.0"]
)
def test_addresses_of_our_own_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.usefixtures("pod")
async def test_a_character_is_not_made_from_our_own_network(api: Api) -> None:
    answer = await api.create({"name": "Mira", "image_urls": f"{api.server.url}/healthz"}, pictures(6))
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (422, "/image_urls/0")
