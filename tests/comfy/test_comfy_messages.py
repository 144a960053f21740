"""ComfyUI's messages: every recorded one is understood."""

from __future__ import annotations

import json
import struct

import pytest

from controlplane.comfy.messages import (
    Cached,
    Ended,
    Executing,
    Preview,
    Progress,
    ProgressState,
    Started,
    Status,
    Unknown,
    parse_binary,
    parse_history,
    parse_queue,
    parse_text,
)
from tests.comfy.comfyui_double import ERROR, INTERRUPT, SUCCESS, TRANSCRIPTS, lines, recorded_history

NAMES = sorted(path.stem for path in TRANSCRIPTS.glob("*.jsonl"))


@pytest.mark.parametrize("name", NAMES)
def test_no_recorded_message_is_unknown(name: str) -> None:
    messages = [parse_text(json.dumps(line["msg"])) for line in lines(name) if line["kind"] == "ws_recv"]
    assert [message for message in messages if isinstance(message, Unknown)] == []


def test_a_success_reads_as_start_cache_nodes_and_end() -> None:
    kinds = [type(parse_text(json.dumps(line["msg"]))) for line in lines(SUCCESS) if line["kind"] == "ws_recv"]
    assert [kinds[0], kinds[3], kinds[4], kinds[5], kinds[6], kinds[-3], kinds[-1]] == [
        Status,
        Started,
        Cached,
        ProgressState,
        Executing,
        Ended,
        Executing,
    ]


def test_progress_carries_value_and_maximum() -> None:
    texts = [json.dumps(line["msg"]) for line in lines("04_progress_preview_legacy") if line["kind"] == "ws_recv"]
    progress = [message for message in map(parse_text, texts) if isinstance(message, Progress)]
    assert (progress[0].value, progress[0].maximum, progress[0].node) == (1.0, progress[-1].maximum, "9")


def test_a_reconnected_socket_hears_executing_without_a_prompt_id() -> None:
    texts = [json.dumps(line["msg"]) for line in lines("15_disconnect_reconnect_midrun") if line["kind"] == "ws_recv"]
    executing = [message for message in map(parse_text, texts) if isinstance(message, Executing)]
    assert any(message.prompt_id is None and message.node is not None for message in executing)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"type": "progress"}', '{"type": "status", "data": 3}', "null"])
def test_a_message_that_cannot_be_read_is_unknown_and_not_an_error(text: str) -> None:
    assert isinstance(parse_text(text), Unknown)


def test_a_preview_with_metadata_names_its_prompt() -> None:
    about = json.dumps({"prompt_id": "p", "node_id": "9"}).encode()
    frame = struct.pack(">II", 4, len(about)) + about + b"\xff\xd8jpeg"
    assert parse_binary(frame) == Preview(b"\xff\xd8jpeg", "p", "9")


def test_a_legacy_preview_is_the_bytes_behind_its_two_words() -> None:
    assert parse_binary(struct.pack(">II", 1, 1) + b"\xff\xd8jpeg") == Preview(b"\xff\xd8jpeg")


@pytest.mark.parametrize("frame", [b"", b"\x00\x00", struct.pack(">II", 4, 99) + b"{"])
def test_a_broken_frame_is_unknown(frame: bytes) -> None:
    assert isinstance(parse_binary(frame), Unknown)


@pytest.mark.parametrize(("name", "how"), [(SUCCESS, "succeeded"), (ERROR, "failed"), (INTERRUPT, "interrupted")])
def test_a_history_entry_tells_how_the_prompt_ended(name: str, how: str) -> None:
    finished = parse_history("p", {"p": recorded_history(name)})
    assert finished is not None
    assert finished.how == how


def test_a_failed_history_entry_names_the_exception_and_the_node() -> None:
    finished = parse_history("p", {"p": recorded_history(ERROR)})
    assert finished is not None
    assert finished.error == {
        "type": "ValueError",
        "message": "lab failure",
        "node_id": "9",
        "node_type": "LabFail",
    }


def test_an_empty_history_says_nothing() -> None:
    assert parse_history("p", {}) is None


def test_the_pending_heap_is_sorted_by_number_then_id() -> None:
    raw = {"queue_running": [[7, "r", {}]], "queue_pending": [[9, "c", {}], [8, "b", {}], [8, "a", {}]]}
    assert parse_queue(raw).pending == ("a", "b", "c")
