"""Handing files over beside the worker: what is promised, what becomes of it, and how little may wait."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from comfy_nodes import hand_over as room
from comfy_nodes import host, state
from comfy_nodes.control_plane import ControlPlane, Upload
from comfy_nodes.hand_over import HandOver, Parcel
from comfy_nodes.s3_save import S3Save
from comfy_nodes.transport import Lines, TransportError

PICTURE = torch.full((1, 8, 8, 3), 0.5)


@pytest.fixture(autouse=True)
def fresh(linked: Any, folder_host: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[HandOver]:
    """One of its own for each test, empty again before the server ends."""
    made = HandOver(waiting_bytes=1000)
    monkeypatch.setattr(room, "_hand_over", made)
    yield made
    assert made.flush(30)


def parcel(link: ControlPlane, prompt: str, reference: str, weight: int = 100, pack: Any = None) -> Parcel:
    def upload() -> Upload:
        return Upload(f"{reference}.png", "image/png", reference.encode(), "output", 0)

    return Parcel(prompt, reference, link, weight, pack or upload)


def link(server: Any) -> ControlPlane:
    return ControlPlane(server.url)


def held(until: threading.Event) -> Callable[[], Upload]:
    def pack() -> Upload:
        until.wait(30)
        return Upload("held.png", "image/png", b"held", "output", 0)

    return pack


def save(images: torch.Tensor = PICTURE) -> list[dict[str, Any]]:
    assets: list[dict[str, Any]] = S3Save().save(images, "mira", "png")["ui"]["assets"]
    return assets


def test_the_node_returns_before_its_file_is_stored(linked: Any, folder_host: Any, fresh: HandOver) -> None:
    linked.slow_puts = 0.5
    (asset,) = save()
    assert fresh.told(folder_host.prompt)["pending"] == [asset["upload"]]


def test_a_file_that_arrived_is_told_as_stored(linked: Any, folder_host: Any, fresh: HandOver) -> None:
    (asset,) = save()
    assert fresh.flush(30)
    told = fresh.told(folder_host.prompt)
    assert (told["pending"], told["failed"], told["stored"]) == ([], [], [asset["upload"]])


def test_an_upload_survives_errors_and_dropped_connections(linked: Any, folder_host: Any, fresh: HandOver) -> None:
    linked.faults["/files/"] = [500, 0]
    linked.faults["/pods/self/uploads"] = [503, 0]
    save()
    assert fresh.flush(30)
    assert [content[:4] for content in linked.files.values()] == [b"\x89PNG"]


def test_a_refused_put_fails_at_once_in_the_servers_words(linked: Any, folder_host: Any, fresh: HandOver) -> None:
    linked.faults["/files/"] = [413]
    (asset,) = save()
    assert fresh.flush(30)
    assert fresh.told(folder_host.prompt)["failed"] == [
        {"upload": asset["upload"], "reason": "a fault was ordered (HTTP 413, ordered)"}
    ]


def test_a_stale_attempt_drops_all_its_files_after_one_answer(linked: Any, folder_host: Any, fresh: HandOver) -> None:
    go = threading.Event()
    fresh.add(parcel(link(linked), "before", "a", pack=held(go)), host.pause)
    linked.attempt = "another"
    save(PICTURE.expand(6, 8, 8, 3))
    threading.Timer(0.2, go.set).start()
    assert fresh.flush(30)
    asked = linked.calls.count("POST /pods/self/uploads")
    assert (len(fresh.told(folder_host.prompt)["failed"]), asked <= 1 + room.THREADS) == (6, True)


def test_a_stale_attempt_costs_no_other_prompt_its_files(linked: Any, folder_host: Any, fresh: HandOver) -> None:
    fresh.add(parcel(link(linked), "stale", "a"), host.pause)
    fresh.add(parcel(link(linked), folder_host.prompt, "b"), host.pause)
    assert fresh.flush(30)
    assert (fresh.told("stale")["stored"], fresh.told(folder_host.prompt)["stored"]) == ([], ["b"])


def test_an_encoder_that_fails_is_told_with_its_words(linked: Any, folder_host: Any, fresh: HandOver) -> None:
    def broken() -> Upload:
        raise RuntimeError("no mp4 encoder works here")

    fresh.add(parcel(link(linked), "p", "a", pack=broken), host.pause)
    assert fresh.flush(30)
    assert fresh.told("p")["failed"] == [{"upload": "a", "reason": "RuntimeError: no mp4 encoder works here"}]


def test_an_encoder_that_ends_its_thread_leaves_the_others_at_work(
    linked: Any, folder_host: Any, fresh: HandOver
) -> None:
    def ending() -> Upload:
        raise SystemExit

    for number in range(room.THREADS):
        fresh.add(parcel(link(linked), "p", str(number), pack=ending), host.pause)
    fresh.add(parcel(link(linked), folder_host.prompt, "last"), host.pause)
    assert fresh.flush(30)
    assert fresh.told(folder_host.prompt)["stored"] == ["last"]


def test_a_full_queue_makes_the_node_wait(linked: Any, folder_host: Any, fresh: HandOver) -> None:
    go = threading.Event()
    fresh.add(parcel(link(linked), folder_host.prompt, "a", 900, held(go)), host.pause)
    threading.Timer(0.4, go.set).start()
    began = time.monotonic()
    fresh.add(parcel(link(linked), folder_host.prompt, "b", 200), host.pause)
    assert time.monotonic() - began > 0.3


def test_one_file_larger_than_all_room_is_taken_alone(linked: Any, folder_host: Any, fresh: HandOver) -> None:
    fresh.add(parcel(link(linked), folder_host.prompt, "huge", 10_000), host.pause)
    assert fresh.flush(30)
    assert fresh.told(folder_host.prompt)["stored"] == ["huge"]


def test_an_interrupt_ends_the_wait_for_room(linked: Any, folder_host: Any, fresh: HandOver) -> None:
    go = threading.Event()
    fresh.add(parcel(link(linked), "another", "a", 900, held(go)), host.pause)
    threading.Timer(0.2, folder_host.interrupt.set).start()
    with pytest.raises(folder_host.Interrupted):
        save(torch.full((1, 16, 16, 3), 0.5))
    go.set()


def test_an_interrupted_node_leaves_none_of_its_files_waiting(linked: Any, folder_host: Any, fresh: HandOver) -> None:
    go = threading.Event()
    fresh.add(parcel(link(linked), "another", "a", 600, held(go)), host.pause)
    threading.Timer(0.2, folder_host.interrupt.set).start()
    with pytest.raises(folder_host.Interrupted):
        save(PICTURE.expand(8, 8, 8, 3))
    go.set()
    assert fresh.flush(30)
    assert fresh.told(folder_host.prompt)["stored"] == []


def test_the_state_counts_what_is_on_its_way(linked: Any, folder_host: Any, fresh: HandOver) -> None:
    go = threading.Event()
    fresh.add(parcel(link(linked), folder_host.prompt, "a", pack=held(go)), host.pause)
    during = state.snapshot(True, {}, [])["uploads_pending"]
    go.set()
    assert fresh.flush(30)
    assert (during, state.snapshot(True, {}, [])["uploads_pending"]) == (1, 0)


def test_a_flush_gives_up_in_time(linked: Any, folder_host: Any, fresh: HandOver) -> None:
    go = threading.Event()
    fresh.add(parcel(link(linked), folder_host.prompt, "a", pack=held(go)), host.pause)
    stored = fresh.flush(0.1)
    go.set()
    assert not stored


def test_nothing_is_known_of_a_prompt_that_promised_nothing(fresh: HandOver) -> None:
    told = fresh.told("unheard of")
    assert (told["pending"], told["failed"], told["stored"]) == ([], [], [])


def test_only_the_newest_prompts_are_remembered(
    linked: Any, folder_host: Any, fresh: HandOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "KEPT_PROMPTS", 2)
    for number in range(4):
        linked.attempt = f"p{number}"
        fresh.add(parcel(link(linked), f"p{number}", "a"), host.pause)
        assert fresh.flush(30)
    assert [fresh.told(f"p{number}")["stored"] for number in range(4)] == [[], [], ["a"], ["a"]]


def test_a_refusal_before_the_end_of_a_large_file_is_heard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            line, _ = server.accept()
            with line:
                line.recv(1000)
                line.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 8\r\nConnection: close\r\n\r\nno more!")
                line.shutdown(socket.SHUT_WR)
                time.sleep(0.3)

        threading.Thread(target=refuse, daemon=True).start()
        with pytest.raises(TransportError, match="no more!"):
            Lines().exchange("PUT", f"http://127.0.0.1:{server.getsockname()[1]}/x", {}, bytes(64 << 20))


def test_one_connection_serves_many_files(linked: Any, folder_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = HandOver(threads=1)
    for number in range(5):
        one.add(parcel(link(linked), folder_host.prompt, str(number)), host.pause)
    assert one.flush(30)
    assert (len(linked.files), len(linked.peers)) == (5, 1)
