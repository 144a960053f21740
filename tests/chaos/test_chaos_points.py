"""The failpoints of a chaos run: what the coverage table is made of."""

from __future__ import annotations

from collections import Counter

from tests.chaos.points import KINDS, POINTS


def test_no_two_failpoints_are_counted_as_one() -> None:
    assert [title for title, times in Counter(point.title for point in POINTS).items() if times > 1] == []


def test_every_failpoint_either_knows_a_kind_or_says_why_not() -> None:
    silent = [(point.title, kind) for point in POINTS for kind in KINDS
              if kind not in point.kinds and not point.why_not.get(kind)]  # fmt: skip
    assert silent == []


def test_nobody_says_why_a_kind_is_not_known_that_is() -> None:
    assert [point.title for point in POINTS if set(point.kinds) & set(point.why_not)] == []
