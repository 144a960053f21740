"""The LoRA cache over real HTTP: one download, resumed, checked, bounded."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from comfy_nodes.lora_cache import LoraCache, LoraCacheError
from comfy_nodes.lora_file import LoraFileError, read_header
from comfy_nodes.transport import Stream, TransportError, open_stream


def no_wait(_seconds: float) -> None:
    return None


def source_of(server: Any, name: str) -> Any:
    return lambda offset: open_stream(f"{server.url}/files/{name}", offset)


def put(server: Any, content: bytes) -> tuple[str, int, Any]:
    sha256 = hashlib.sha256(content).hexdigest()
    server.files[sha256] = content
    return sha256, len(content), source_of(server, sha256)


def test_many_waiters_share_one_download(server: Any, tmp_path: Path, lora_bytes: Any) -> None:
    server.slow_seconds = 0.2
    cache = LoraCache(tmp_path)
    sha256, size, source = put(server, lora_bytes())
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.get(sha256, size, source, no_wait))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (len(found), len(server.downloads)) == (8, 1)


def test_what_is_resident_is_not_parsed_again(server: Any, tmp_path: Path, lora_bytes: Any) -> None:
    cache = LoraCache(tmp_path)
    sha256, size, source = put(server, lora_bytes())
    first = cache.get(sha256, size, source, no_wait)
    assert cache.get(sha256, size, source, no_wait) is first


def test_a_file_on_disk_is_used_by_the_next_process(server: Any, tmp_path: Path, lora_bytes: Any) -> None:
    sha256, size, source = put(server, lora_bytes())
    LoraCache(tmp_path).get(sha256, size, source, no_wait)
    LoraCache(tmp_path).get(sha256, size, source, no_wait)
    assert len(server.downloads) == 1


def test_a_download_that_is_cut_off_goes_on_where_it_stopped(server: Any, tmp_path: Path, lora_bytes: Any) -> None:
    sha256, size, source = put(server, lora_bytes(floats=50_000))
    server.cuts[sha256] = [1000, 70_000]
    cache = LoraCache(tmp_path)
    cache.get(sha256, size, source, no_wait)
    assert [ranged for _name, ranged in server.downloads] == ["", "bytes=1000-", "bytes=71000-"]


def test_a_part_left_by_an_earlier_process_is_resumed(server: Any, tmp_path: Path, lora_bytes: Any) -> None:
    content = lora_bytes()
    sha256, size, source = put(server, content)
    (tmp_path / f"{sha256}.part").write_bytes(content[:100])
    LoraCache(tmp_path).get(sha256, size, source, no_wait)
    assert server.downloads == [(sha256, "bytes=100-")]


def test_a_bad_part_is_thrown_away_and_downloaded_again(server: Any, tmp_path: Path, lora_bytes: Any) -> None:
    sha256, size, source = put(server, lora_bytes())
    (tmp_path / f"{sha256}.part").write_bytes(b"x" * 100)
    assert LoraCache(tmp_path).get(sha256, size, source, no_wait).sha256 == sha256


def test_other_bytes_than_promised_are_refused_and_nothing_is_left(
    server: Any, tmp_path: Path, lora_bytes: Any
) -> None:
    sha256, size, source = put(server, lora_bytes())
    server.files[sha256] = lora_bytes(up=9.0)
    with pytest.raises(LoraCacheError, match="not what was promised"):
        LoraCache(tmp_path).get(sha256, size, source, no_wait)
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_is_refused_by_name_and_nothing_is_left(server: Any, tmp_path: Path) -> None:
    body = io.BytesIO()
    pickle.dump({"lora_unet_a.alpha": 1.0}, body)
    sha256, size, source = put(server, body.getvalue())
    with pytest.raises(LoraFileError, match="pickle"):
        LoraCache(tmp_path).get(sha256, size, source, no_wait)
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_lora_is_refused_with_the_bytes_that_are_there(
    server: Any, tmp_path: Path, lora_bytes: Any
) -> None:
    sha256, size, source = put(server, lora_bytes()[:-10])
    with pytest.raises(LoraFileError, match=r"truncated: \d+ of \d+ data bytes"):
        LoraCache(tmp_path).get(sha256, size, source, no_wait)
    assert list(tmp_path.iterdir()) == []


def test_the_file_used_longest_ago_makes_room(server: Any, tmp_path: Path, lora_bytes: Any) -> None:
    contents = [lora_bytes(up=float(number)) for number in range(1, 4)]
    cache = LoraCache(tmp_path, limit_bytes=2 * len(contents[0]) + 10)
    first, second, third = (put(server, content) for content in contents)
    cache.get(*first, no_wait)
    cache.get(*second, no_wait)
    for age, (sha256, *_rest) in enumerate((second, first)):
        os.utime(tmp_path / f"{sha256}.safetensors", (1000 + age, 1000 + age))
    cache.get(*third, no_wait)
    assert cache.digests() == sorted([first[0], third[0]])


def test_using_a_lora_from_memory_keeps_it_on_disk_longer(server: Any, tmp_path: Path, lora_bytes: Any) -> None:
    contents = [lora_bytes(up=float(number)) for number in range(1, 4)]
    cache = LoraCache(tmp_path, limit_bytes=2 * len(contents[0]) + 10)
    first, second, third = (put(server, content) for content in contents)
    cache.get(*first, no_wait)
    cache.get(*second, no_wait)
    for sha256 in (first[0], second[0]):
        os.utime(tmp_path / f"{sha256}.safetensors", (1000, 1000))
    cache.get(*first, no_wait)
    cache.get(*third, no_wait)
    assert cache.digests() == sorted([first[0], third[0]])


def test_a_lora_larger_than_the_cache_is_refused_before_the_first_byte(
    server: Any, tmp_path: Path, lora_bytes: Any
) -> None:
    sha256, size, source = put(server, lora_bytes())
    with pytest.raises(LoraCacheError, match="the cache of this pod holds 10"):
        LoraCache(tmp_path, limit_bytes=10).get(sha256, size, source, no_wait)
    assert server.downloads == []


def test_space_is_reserved_for_a_download_that_is_still_running(tmp_path: Path, lora_bytes: Any) -> None:
    content, other = lora_bytes(), lora_bytes(up=7.0)
    cache = LoraCache(tmp_path, limit_bytes=len(content) + 10)
    started, go_on = threading.Event(), threading.Event()

    class Held:
        def __enter__(self) -> Stream:
            started.set()
            go_on.wait(10)
            return Stream(0, iter([content]))

        def __exit__(self, *_error: object) -> None:
            return None

    sha256 = hashlib.sha256(content).hexdigest()
    thread = threading.Thread(target=lambda: cache.get(sha256, len(content), lambda _offset: Held(), no_wait))
    thread.start()
    started.wait(10)
    try:
        with pytest.raises(LoraCacheError, match="no space"):
            cache.get(hashlib.sha256(other).hexdigest(), len(other), lambda _offset: Held(), no_wait)
    finally:
        go_on.set()
        thread.join(10)


def test_a_server_that_stays_away_is_an_error_that_says_so(server: Any, tmp_path: Path, lora_bytes: Any) -> None:
    sha256, size, source = put(server, lora_bytes())
    server.faults["/files/"] = [0] * 6
    with pytest.raises(TransportError, match="did not answer"):
        LoraCache(tmp_path).get(sha256, size, source, no_wait)


def test_an_interrupt_ends_a_download_midway(server: Any, tmp_path: Path, lora_bytes: Any) -> None:
    class Stop(Exception):
        pass

    def interrupted(_seconds: float) -> None:
        raise Stop

    sha256, size, source = put(server, lora_bytes())
    with pytest.raises(Stop):
        LoraCache(tmp_path).get(sha256, size, source, interrupted)


def test_a_discarded_lora_is_downloaded_again(server: Any, tmp_path: Path, lora_bytes: Any) -> None:
    cache = LoraCache(tmp_path)
    sha256, size, source = put(server, lora_bytes())
    cache.get(sha256, size, source, no_wait)
    cache.discard(sha256)
    cache.get(sha256, size, source, no_wait)
    assert len(server.downloads) == 2


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480])
def test_a_header_length_that_looks_like_a_pickle_is_no_pickle(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}".ljust(length))
    assert read_header(path).tensors == {}


def test_a_text_file_is_no_lora(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("hello, I am a text file")
    with pytest.raises(LoraFileError, match="not a safetensors file"):
        read_header(path)


def test_bytes_behind_the_last_tensor_are_refused(tmp_path: Path, lora_bytes: Any) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(lora_bytes() + b"tail")
    with pytest.raises(LoraFileError, match="4 bytes behind"):
        read_header(path)


def test_the_header_tells_the_trigger(tmp_path: Path, lora_bytes: Any) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(lora_bytes(metadata={"modelspec.trigger_phrase": "mira woman"}))
    assert read_header(path).trigger == "mira woman"


def test_a_prompt_is_interrupted_while_the_store_says_nothing(server: Any, tmp_path: Path, lora_bytes: Any) -> None:
    class InterruptedError_(Exception):
        pass

    def interrupted(_seconds: float) -> None:
        if server.downloads:
            raise InterruptedError_

    server.slow_seconds = 20.0
    sha256, size, source = put(server, lora_bytes())
    started = time.monotonic()
    with pytest.raises(InterruptedError_):
        LoraCache(tmp_path).get(sha256, size, source, interrupted)
    assert time.monotonic() - started < server.slow_seconds / 2


def test_a_file_that_was_damaged_on_disk_is_downloaded_again(server: Any, tmp_path: Path, lora_bytes: Any) -> None:
    sha256, size, source = put(server, lora_bytes())
    LoraCache(tmp_path).get(sha256, size, source, no_wait)
    (tmp_path / f"{sha256}.safetensors").write_bytes(bytes(size))
    assert LoraCache(tmp_path).get(sha256, size, source, no_wait).header.modules == {"lora_unet_a"}
    assert len(server.downloads) == 2


def test_what_is_resident_outlives_damage_to_its_file(server: Any, tmp_path: Path, lora_bytes: Any) -> None:
    cache = LoraCache(tmp_path)
    sha256, size, source = put(server, lora_bytes())
    first = cache.get(sha256, size, source, no_wait)
    (tmp_path / f"{sha256}.safetensors").write_bytes(b"")
    assert float(first.state_dict["lora_unet_a.alpha"]) == 2.0
