"""The guard: nothing is sent into our own network, whatever a name says at which moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from controlplane.domain.addresses import is_public, url_fault
from controlplane.errors import Unprocessable, WebhookUnreachable
from controlplane.internet import WebhookPoster
from tests.services.engine import PROJECT

from .sending import room

NAME = "hook.example"


@pytest.fixture
async def inside() -> AsyncIterator[tuple[str, list[str]]]:
    """A server on loopback, as http://<host>:<port>, and the hosts that it was asked for."""
    asked: list[str] = []

    async def take(request: web.Request) -> web.Response:
        asked.append(request.host)
        return web.Response(text="secret")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", take)
    async with TestServer(app) as server:
        yield f"http://127.0.0.1:{server.port}", asked


class Names:
    """A name server whose answer changes from one question to the next."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        address = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [{"hostname": host, "host": address, "port": port, "family": 2, "proto": 6, "flags": 0}]

    async def close(self) -> None:
        pass


async def posted(poster: WebhookPoster, url: str) -> str:
    """What was answered, or why nothing was."""
    try:
        return (await poster.post(url, b"{}", {})).head
    except WebhookUnreachable as error:
        return error.detail
    finally:
        await poster.close()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "127.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"],
)
async def test_our_own_machine_is_not_dialled_under_any_of_its_names(inside: tuple[str, list[str]], host: str) -> None:
    port = inside[0].rsplit(":", 1)[1]
    told = await posted(WebhookPoster(is_public), f"http://{host}:{port}/")
    assert ("public internet" in told or "plain http(s) address" in told, inside[1]) == (True, [])


async def test_a_name_of_our_own_network_is_not_dialled(
    inside: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiohttp, "ThreadedResolver", lambda: Names("127.0.0.1"))
    told = await posted(WebhookPoster(is_public), inside[0].replace("127.0.0.1", NAME))
    assert ("public internet" in told, inside[1]) == (True, [])


async def test_what_was_checked_is_what_is_dialled(
    inside: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name means another address a moment later; the connection goes to the one that was looked at."""
    names = Names("127.0.0.1", "127.0.0.2")
    monkeypatch.setattr(aiohttp, "ThreadedResolver", lambda: names)
    poster = WebhookPoster(lambda address: address == "127.0.0.1")
    told = await posted(poster, inside[0].replace("127.0.0.1", NAME))
    assert (told, names.answers) == ("secret", ["127.0.0.2"])


async def test_a_name_that_changes_to_our_own_network_is_refused_from_then_on(
    inside: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names("127.0.0.1", "127.0.0.2")
    monkeypatch.setattr(aiohttp, "ThreadedResolver", lambda: names)
    poster = WebhookPoster(lambda address: address == "127.0.0.1")
    url = inside[0].replace("127.0.0.1", NAME)
    await posted(poster, url)
    assert "public internet" in await posted(poster, url)


async def test_a_redirect_into_our_own_network_is_an_answer_and_no_more(inside: tuple[str, list[str]]) -> None:
    async def moved(request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect(inside[0])

    app = web.Application()
    app.router.add_post("/", moved)
    async with TestServer(app) as server:
        poster = WebhookPoster(lambda address: True)
        status = (await poster.post(str(server.make_url("/")), b"{}", {})).status
        await poster.close()
    assert (status, inside[1]) == (307, [])


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 1000)

    app = web.Application()
    app.router.add_post("/", endless)
    async with TestServer(app) as server:
        told = await posted(WebhookPoster(lambda address: True), str(server.make_url("/")))
    assert told == "x" * 500


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/", "https://[::1]/", "https://10.0.0.1/", "https://169.254.169.254/latest", "ftp://a.example/",
        "http://a.example/", "https://u:p@a.example/", "https:///x", "nonsense", "https://a.example:99999/",
        "https://127.1/", "https://2130706433/",
    ],
)  # fmt: skip
async def test_an_address_that_would_never_be_dialled_is_refused_at_once(url: str, tmp_path: Path) -> None:
    async with room(tmp_path, private=False) as here:
        with pytest.raises(Unprocessable):
            await here.webhooks.create(PROJECT, url)


@pytest.mark.parametrize("url", ["https://a.example/hook?x=1", "https://8.8.8.8/", "https://[2606:4700::1111]:8443/"])
def test_an_address_on_the_public_internet_is_fine(url: str) -> None:
    assert url_fault(url, private=False) == ""


@pytest.mark.parametrize(
    "address",
    [
        "64:ff9b::a00:1", "2002:a00:1::1", "::ffff:10.0.0.1", "224.0.0.1", "100.64.0.1",
        "64:ff9b:1::808:808", "fec0::1", "::10.0.0.1", "::ffff:0:10.0.0.1",
    ],
)  # fmt: skip
def test_an_address_that_stands_for_one_of_our_own_is_not_public(address: str) -> None:
    assert not is_public(address)
