"""The end of ComfyUI's log: which lines are kept, and without what."""

from __future__ import annotations

import logging
import sys

from pod_images.agent.log_tail import LONGEST_LINE, LogTail, RedactingFormatter, Redactor


def tail_of(*chunks: bytes, secrets: tuple[str, ...] = (), lines: int = 100) -> list[str]:
    tail = LogTail(Redactor(secrets), lines)
    for chunk in chunks:
        tail.feed(chunk)
    return tail.last(100)


def test_lines_are_kept_whole_however_they_arrive() -> None:
    assert tail_of(b"on", b"e\ntw", b"o\n") == ["one", "two"]


def test_a_progress_bar_keeps_its_last_state_only() -> None:
    assert tail_of(b"\r 10%|#  |\r 20%|## |", b"\r 30%|###|") == [" 30%|###|"]


def test_the_oldest_lines_go_first() -> None:
    assert tail_of(b"1\n2\n3\n", lines=2) == ["2", "3"]


def test_the_newest_are_the_ones_asked_for() -> None:
    tail = LogTail(Redactor())
    tail.feed(b"1\n2\n3")
    assert (tail.last(2), tail.last(0)) == (["2", "3"], [])


def test_a_bar_without_an_end_does_not_grow_for_ever() -> None:
    assert len(tail_of(*[b"x" * 10_000] * 100)[0]) == LONGEST_LINE


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert tail_of(b"\xff\xfe\n") == ["\ufffd\ufffd"]


def test_secrets_are_taken_out() -> None:
    assert tail_of(b"the key is sesame!\n", secrets=("sesame",)) == ["the key is ***!"]


def test_a_secret_that_is_learnt_later_is_taken_out_from_then_on() -> None:
    redactor = Redactor()
    redactor.learn("sesame")
    assert redactor("open sesame") == "open ***"


def test_signatures_of_addresses_are_taken_out() -> None:
    address = "GET http://x/files/a?exp=1&sig=abc&len=3 and https://s3/b?X-Amz-Signature=def"
    assert Redactor()(address) == "GET http://x/files/a?exp=1&sig=***&len=3 and https://s3/b?X-Amz-Signature=***"


def test_a_traceback_in_the_agents_own_log_has_no_secret() -> None:
    formatter = RedactingFormatter("%(message)s", Redactor(["sesame"]))
    try:
        raise ValueError("sesame")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "said %s", ("sesame",), sys.exc_info())
    shown = formatter.format(record)
    assert ("ValueError: ***" in shown, "sesame" in shown) == (True, False)


def test_a_word_too_short_to_guard_anything_is_left_in_the_log() -> None:
    assert Redactor(["e"])("sesame opens") == "sesame opens"
