"""The prompt language without a model: which part of a prompt weighs what, and which tokens share a chunk."""

from __future__ import annotations

import pytest

from pod_images.embedded.prompting import chunks, weighted_parts

START, END, PAD = 100, 101, 0


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("red hair", [("red hair", 1.0)]),
        ("(red) hair", [("red", 1.1), (" hair", 1.0)]),
        ("((red))", [("red", 1.21)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("((red:1.3) hair)", [("red", 1.3), (" hair", 1.1)]),
        ("(12:30:0.5)", [("12:30", 0.5)]),
        ("(red:hair)", [("red:hair", 1.1)]),
        ("(red:nan)", [("red:nan", 1.1)]),
        (r"\(red\)", [("(red)", 1.0)]),
        (r"(\(red\):2)", [("(red)", 2.0)]),
        ("red (hair", [("red ", 1.0), ("(hair", 1.0)]),
        ("", []),
    ],
)
def test_parentheses_weigh_what_they_hold(text: str, parts: list[tuple[str, float]]) -> None:
    assert [(part, pytest.approx(weight)) for part, weight in weighted_parts(text)] == parts


def tokens(groups: list[int], length: int = 12) -> list[list[int]]:
    """Rows of tokens for groups of so many tokens, the n-th group's tokens being n."""
    weighted = [[(number, 1.5)] * count for number, count in enumerate(groups, start=1)]
    return [[token for token, _ in row] for row in chunks(weighted, START, END, PAD, length)]


def test_an_empty_prompt_is_one_chunk() -> None:
    assert tokens([], 5) == [[START, END, PAD, PAD, PAD]]


def test_a_full_chunk_is_not_followed_by_an_empty_one() -> None:
    assert tokens([7, 3]) == [[START, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, END]]


def test_a_short_part_is_not_cut() -> None:
    assert tokens([7, 4])[1] == [START, 2, 2, 2, 2, END, PAD, PAD, PAD, PAD, PAD, PAD]


def test_a_long_part_is_cut_where_the_chunk_ends() -> None:
    assert tokens([7, 8])[0] == [START, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, END]


def test_every_chunk_has_the_same_length() -> None:
    assert {len(row) for row in tokens([3, 25, 4, 4, 9, 1, 30])} == {12}


def test_only_the_words_are_weighed() -> None:
    (row,) = chunks([[(7, 1.5)]], START, END, PAD, 5)
    assert row == [(START, 1.0), (7, 1.5), (END, 1.0), (PAD, 1.0), (PAD, 1.0)]
