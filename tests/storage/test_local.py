"""The local store on a real file system: atomic, immutable, and closed to anything but clean keys and valid links."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from controlplane.errors import BadRequest, Conflict, LinkExpired, NotFound
from controlplane.storage import facts, local
from controlplane.storage.local import IN_MEMORY, LocalStore

KEY = "default/mira/2026-11-20/job_1-1.png"
DATA = b"not really a picture"


class FixedClock:
    """A clock that tests move by hand."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def now(self) -> float:
        return self.time


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def store(tmp_path: Path, clock: FixedClock) -> LocalStore:
    return LocalStore(tmp_path / "files", "http://127.0.0.1:8700/files", "a signing key", clock)


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def visible_files(store: LocalStore) -> list[str]:
    paths = (path.relative_to(store.root) for path in store.root.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if not path.parts[0].startswith(".facts"))


async def test_what_is_put_can_be_read_again(store: LocalStore) -> None:
    await store.put(KEY, DATA, "image/png")
    assert await store.get(KEY) == DATA


async def test_a_blob_lies_under_its_own_key_in_the_clean_layout(store: LocalStore) -> None:
    await store.put(KEY, DATA, "image/png")
    assert visible_files(store) == [KEY]


async def test_head_knows_size_type_and_digest(store: LocalStore) -> None:
    put = await store.put(KEY, DATA, "image/png")
    assert await store.head(KEY) == put
    assert (put.bytes, put.media_type, put.sha256) == (len(DATA), "image/png", hashlib.sha256(DATA).hexdigest())


@pytest.fixture(params=["attributes", "files"])
def facts_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the store keeps what it knows: on the blob, or beside it where the file system cannot."""
    monkeypatch.setattr(facts, "HAS_ATTRIBUTES", request.param == "attributes" and facts.HAS_ATTRIBUTES)
    return str(request.param)


async def test_head_answers_without_reading_the_file_again(
    store: LocalStore, facts_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = await store.put(KEY, DATA, "image/png")
    monkeypatch.setattr(local, "_digest", lambda path: pytest.fail("the file was read"))
    assert await store.head(KEY) == put


async def test_head_reads_a_file_that_lost_its_facts_anew(store: LocalStore, facts_in: str) -> None:
    put = await store.put(KEY, DATA, "image/png")
    copied = store.path(KEY).read_bytes()
    store.path(KEY).unlink()
    store.path(KEY).write_bytes(copied)
    for file in (store.root / ".facts").iterdir():
        file.unlink()
    assert await store.head(KEY) == put


async def test_what_was_known_of_a_deleted_blob_is_not_told_of_the_next_one(store: LocalStore, facts_in: str) -> None:
    await store.put(KEY, DATA, "image/png")
    await store.delete(KEY)
    put = await store.put(KEY, DATA[::-1], "image/webp")
    assert await store.head(KEY) == put


async def test_head_of_nothing_is_none(store: LocalStore) -> None:
    assert await store.head(KEY) is None


async def test_get_of_nothing_is_not_found(store: LocalStore) -> None:
    with pytest.raises(NotFound):
        await store.get(KEY)


async def test_the_same_bytes_may_come_again(store: LocalStore) -> None:
    await store.put(KEY, DATA, "image/png")
    await store.put_file(KEY, BytesIO(DATA), "image/png")
    assert await store.get(KEY) == DATA


async def test_other_bytes_under_the_same_key_are_refused_and_change_nothing(store: LocalStore) -> None:
    first = await store.put(KEY, DATA, "image/png")
    with pytest.raises(Conflict):
        await store.put(KEY, b"something else 12345", "image/jpeg")
    assert await store.head(KEY) == first


async def test_a_key_below_a_file_is_refused(store: LocalStore) -> None:
    await store.put(KEY, DATA, "image/png")
    with pytest.raises(Conflict):
        await store.put(f"{KEY}/below", DATA, "image/png")


async def test_a_stream_is_stored_when_it_has_the_announced_size(store: LocalStore) -> None:
    info = await store.put_stream(KEY, chunks(DATA[:5], DATA[5:]), "image/png", len(DATA))
    assert info.sha256 == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
async def test_a_stream_of_another_size_leaves_nothing_behind(store: LocalStore, size: int) -> None:
    with pytest.raises(BadRequest):
        await store.put_stream(KEY, chunks(DATA), "image/png", size)
    assert visible_files(store) == []


async def test_a_large_stream_is_stored_piece_by_piece(store: LocalStore) -> None:
    parts = [bytes([number]) * (IN_MEMORY // 2) for number in range(5)]
    info = await store.put_stream(KEY, chunks(*parts), "video/mp4", sum(map(len, parts)))
    assert info == await store.head(KEY)
    assert await store.get(KEY) == b"".join(parts)
    assert visible_files(store) == [KEY]


async def test_a_stream_that_breaks_leaves_nothing_behind(store: LocalStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield DATA
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put_stream(KEY, broken(), "image/png", 10**6)
    assert visible_files(store) == []


async def test_deleting_also_removes_the_folders_it_emptied(store: LocalStore) -> None:
    await store.put(KEY, DATA, "image/png")
    assert await store.delete(KEY)
    assert not (store.root / "default").exists()


async def test_deleting_nothing_says_so(store: LocalStore) -> None:
    assert not await store.delete(KEY)


async def test_deleting_leaves_the_neighbours(store: LocalStore) -> None:
    await store.put(KEY, DATA, "image/png")
    await store.put("default/mira/2026-11-20/job_1-2.png", DATA, "image/png")
    await store.delete(KEY)
    assert visible_files(store) == ["default/mira/2026-11-20/job_1-2.png"]


@pytest.mark.parametrize(
    "key",
    ["", "..", "../a", "a/../b", "a//b", "/etc/passwd", "a/", ".facts/x", "a/.hidden", "a\\b", "a b", "ä", "a\0b",
     "a/%2e%2e/b", "a" * 201, "/".join(["a"] * 500)],
)  # fmt: skip
async def test_a_key_that_is_not_clean_is_refused(store: LocalStore, key: str) -> None:
    with pytest.raises(BadRequest):
        await store.put(key, DATA, "image/png")


async def test_a_signed_upload_link_carries_type_and_size(store: LocalStore) -> None:
    url, headers = store.signed_put(KEY, "image/png", 20, 60)
    assert store.check_put(KEY, query_of(url)) == ("image/png", 20)
    assert headers == {"Content-Type": "image/png"}


@pytest.mark.parametrize(
    ("name", "value"), [("ct", "text/html"), ("len", "21"), ("exp", "1900000000"), ("sig", "0" * 64), ("sig", "ä")]
)
async def test_changing_any_part_of_an_upload_link_breaks_it(store: LocalStore, name: str, value: str) -> None:
    url, _ = store.signed_put(KEY, "image/png", 20, 60)
    with pytest.raises(LinkExpired):
        store.check_put(KEY, {**query_of(url), name: value})


@pytest.mark.parametrize("name", ["ct", "len", "exp", "sig"])
async def test_an_upload_link_is_nothing_without_all_its_parts(store: LocalStore, name: str) -> None:
    query = query_of(store.signed_put(KEY, "image/png", 20, 60)[0])
    del query[name]
    with pytest.raises(LinkExpired):
        store.check_put(KEY, query)


async def test_an_upload_link_is_for_one_key_only(store: LocalStore) -> None:
    query = query_of(store.signed_put(KEY, "image/png", 20, 60)[0])
    with pytest.raises(LinkExpired):
        store.check_put("default/mira/2026-11-20/job_1-2.png", query)


async def test_an_upload_link_expires(store: LocalStore, clock: FixedClock) -> None:
    query = query_of(store.signed_put(KEY, "image/png", 20, 60)[0])
    clock.time += 61
    with pytest.raises(LinkExpired):
        store.check_put(KEY, query)


async def test_a_reading_link_does_not_write(store: LocalStore) -> None:
    query = query_of(store.signed_get_url(KEY, 60))
    with pytest.raises(LinkExpired):
        store.check_put(KEY, {**query, "ct": "", "len": "0"})


async def test_another_installations_links_are_not_valid(store: LocalStore, clock: FixedClock) -> None:
    other = LocalStore(store.root, "http://127.0.0.1:8700/files", "another key", clock)
    with pytest.raises(LinkExpired):
        store.check_get(KEY, query_of(other.signed_get_url(KEY, 60)))


@pytest.mark.parametrize("folder", ["datasets", "loras", "samples", "checkpoints", "anything", "2026-11-20x"])
async def test_reference_pictures_and_weights_need_a_signed_link(store: LocalStore, folder: str) -> None:
    with pytest.raises(LinkExpired):
        store.check_get(f"default/mira/{folder}/x-1.png", {})


async def test_a_signed_link_reads_a_private_file(store: LocalStore) -> None:
    key = "default/mira/loras/job_1-1.safetensors"
    store.check_get(key, query_of(store.signed_get_url(key, 60)))


async def test_a_results_clean_link_needs_no_signature(store: LocalStore) -> None:
    store.check_get(KEY, query_of(store.public_url(KEY)))
    assert store.public_url(KEY) == f"http://127.0.0.1:8700/files/{KEY}"


async def test_leftovers_of_a_killed_process_are_cleared_after_a_day(store: LocalStore, clock: FixedClock) -> None:
    leftover = store.root / ".incoming" / "abc"
    leftover.write_bytes(DATA)
    clock.time = leftover.stat().st_mtime + 3600
    store.clear_incoming()
    assert leftover.exists()
    clock.time += 25 * 3600
    store.clear_incoming()
    assert not leftover.exists()


async def test_a_store_whose_folder_is_away_does_not_say_that_its_blobs_are_gone(store: LocalStore) -> None:
    await store.put("default/_/2026-01-02/a.png", b"a", "image/png")
    away = store.root.with_name("away")
    store.root.rename(away)
    for ask in (store.head, store.delete):
        with pytest.raises(FileNotFoundError):
            await ask("default/_/2026-01-02/a.png")
    away.rename(store.root)
    assert await store.get("default/_/2026-01-02/a.png") == b"a"
