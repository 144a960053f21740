"""The local store over real HTTP: uploads through signed links only, safe reading, ranges."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from controlplane.app import SystemClock
from controlplane.storage.local import LocalStore
from controlplane.storage.secrets import load_secrets

from .api_server import Api

DATA = bytes(range(256)) * 40
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(api: Api) -> LocalStore:
    settings = api.server.settings
    key = load_secrets(settings).signing_key
    return LocalStore(settings.data / "files", f"{api.server.url}/files", key, SystemClock())


@pytest.fixture
async def stored(store: LocalStore) -> str:
    """The path of a stored, public file."""
    await store.put("default/mira/2026-11-20/job_x-1.png", DATA, "image/png")
    return "/files/default/mira/2026-11-20/job_x-1.png"


async def put(api: Api, store: LocalStore, key: str, data: Any = DATA, **changes: Any) -> Any:
    url, headers = store.signed_put(key, "image/png", len(DATA), 60)
    return await api.call("PUT", url, data=data, headers={**headers, **changes})


async def test_a_signed_upload_is_stored(api: Api, store: LocalStore) -> None:
    answer = await put(api, store, "default/a/2026-11-20/up-1.png")
    assert (answer.status, answer.body["sha256"]) == (201, SHA256)
    assert (await api.get("/files/default/a/2026-11-20/up-1.png")).data == DATA


async def test_the_same_upload_again_is_fine(api: Api, store: LocalStore) -> None:
    await put(api, store, "default/a/2026-11-20/up-2.png")
    assert (await put(api, store, "default/a/2026-11-20/up-2.png")).status == 201


async def test_other_bytes_through_the_same_link_are_a_conflict(api: Api, store: LocalStore) -> None:
    await put(api, store, "default/a/2026-11-20/up-3.png")
    assert (await put(api, store, "default/a/2026-11-20/up-3.png", data=bytes(len(DATA)))).status == 409


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x"], ids=["short", "long"])
async def test_an_upload_of_another_size_is_refused(api: Api, store: LocalStore, data: bytes) -> None:
    assert (await put(api, store, "default/a/2026-11-20/up-4.png", data=data)).status == 400
    assert (await api.get("/files/default/a/2026-11-20/up-4.png")).status == 404


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x"], ids=["short", "long"])
async def test_a_chunked_upload_of_another_size_is_refused(api: Api, store: LocalStore, data: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    assert (await put(api, store, "default/a/2026-11-20/up-5.png", data=chunks())).status == 400
    assert (await api.get("/files/default/a/2026-11-20/up-5.png")).status == 404


async def test_an_upload_of_another_type_is_refused(api: Api, store: LocalStore) -> None:
    answer = await put(api, store, "default/a/2026-11-20/up-6.png", **{"Content-Type": "text/html"})
    assert answer.status == 400


async def test_an_upload_without_a_signature_is_refused(api: Api) -> None:
    answer = await api.call("PUT", "/files/default/a/b/c.png", data=DATA)
    assert (answer.status, answer.body["code"]) == (403, "link_expired")


async def test_an_expired_upload_link_is_refused(api: Api, store: LocalStore) -> None:
    url, headers = store.signed_put("default/a/2026-11-20/up-7.png", "image/png", len(DATA), -1)
    answer = await api.call("PUT", url, data=DATA, headers=headers)
    assert (answer.status, answer.body["code"]) == (403, "link_expired")


async def test_an_upload_that_breaks_off_leaves_no_file(api: Api, store: LocalStore) -> None:
    url, headers = store.signed_put("default/a/2026-11-20/up-8.png", "image/png", len(DATA), 60)
    host, port = api.server.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    target = url.removeprefix(api.server.url)
    head = f"PUT {target} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: {headers['Content-Type']}\r\n"
    writer.write(f"{head}Content-Length: {len(DATA)}\r\n\r\n".encode() + DATA[:100])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.2)
    assert (await api.get("/files/default/a/2026-11-20/up-8.png")).status == 404
    assert list((api.server.settings.data / "files" / ".incoming").iterdir()) == []


async def test_reading_a_picture_shows_it_inline_and_never_as_anything_else(api: Api, stored: str) -> None:
    headers = (await api.get(stored)).headers
    assert headers["Content-Type"] == "image/png"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Disposition"] == 'inline; filename="job_x-1.png"'
    assert headers["ETag"] == f'"{SHA256}"'


async def test_a_stored_page_is_offered_for_saving_not_run(api: Api, store: LocalStore) -> None:
    await store.put("default/a/2026-11-20/page.html", b"<script>alert(1)</script>", "text/html")
    headers = (await api.get("/files/default/a/2026-11-20/page.html")).headers
    assert headers["Content-Disposition"].startswith("attachment")
    assert "sandbox" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("asked", "start", "stop"), [("bytes=0-9", 0, 10), ("bytes=10000-", 10000, len(DATA)), ("bytes=-5", -5, len(DATA))]
)
async def test_a_range_is_answered_with_just_these_bytes(
    api: Api, stored: str, asked: str, start: int, stop: int
) -> None:
    answer = await api.get(stored, headers={"Range": asked})
    assert (answer.status, answer.data) == (206, DATA[start:stop])
    first = start % len(DATA)
    assert answer.headers["Content-Range"] == f"bytes {first}-{stop - 1}/{len(DATA)}"


async def test_a_range_beyond_the_end_cannot_be_satisfied(api: Api, stored: str) -> None:
    answer = await api.get(stored, headers={"Range": f"bytes={len(DATA)}-"})
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")


@pytest.mark.parametrize("asked", ["lines=1-2", "bytes=0-1,5-6", "bytes=9-3", "nonsense"])
async def test_a_range_that_cannot_be_read_gets_the_whole_file(api: Api, stored: str, asked: str) -> None:
    answer = await api.get(stored, headers={"Range": asked})
    assert (answer.status, answer.data) == (200, DATA)


async def test_a_range_of_another_version_gets_the_whole_file(api: Api, stored: str) -> None:
    answer = await api.get(stored, headers={"Range": "bytes=0-9", "If-Range": '"another"'})
    assert (answer.status, answer.data) == (200, DATA)


async def test_who_has_the_file_already_is_told_so(api: Api, stored: str) -> None:
    answer = await api.get(stored, headers={"If-None-Match": f'"{SHA256}"'})
    assert (answer.status, answer.data) == (304, b"")


async def test_head_answers_without_the_bytes(api: Api, stored: str) -> None:
    answer = await api.call("HEAD", stored)
    assert (answer.status, answer.headers["Content-Length"], answer.data) == (200, str(len(DATA)), b"")


async def test_an_empty_file_can_be_read(api: Api, store: LocalStore) -> None:
    await store.put("default/a/2026-11-20/empty.png", b"", "image/png")
    answer = await api.get("/files/default/a/2026-11-20/empty.png")
    assert (answer.status, answer.data) == (200, b"")


async def test_a_lora_is_read_through_a_signed_link_only(api: Api, store: LocalStore) -> None:
    key = "default/mira/loras/job_x-1.safetensors"
    await store.put(key, DATA, "application/safetensors")
    assert (await api.get(f"/files/{key}")).status == 403
    assert (await api.get(store.signed_get_url(key, 60))).data == DATA


@pytest.mark.parametrize(
    "path", ["..%2f..%2fsecrets.json", ".facts/x", "%2e%2e/secrets.json", "a%00b", "%2fetc%2fpasswd", "a%5c..%5cb"]
)
async def test_no_address_leads_out_of_the_store(api: Api, path: str) -> None:
    from yarl import URL

    answer = await api.call("GET", str(URL(f"{api.server.url}/files/{path}", encoded=True)))
    assert answer.status in (400, 404)
