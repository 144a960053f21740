"""Tables on a terminal and in a pipe."""

from __future__ import annotations

import io

from rich.console import Console

from controlplane.cli import show

POD = "pod_a6mw7fpd4w4l7uwbfvcvqmihri"
ADDRESS = "http://127.0.0.1:43143/a/long/way/to/the/end"


def printed(width: int) -> str:
    out = io.StringIO()
    show.table(Console(file=out, width=width), ("id", "boot", "where"), [(POD, "", ADDRESS), (POD, None, "there")])
    return out.getvalue()


def test_an_id_stays_whole_on_a_narrow_terminal() -> None:
    assert printed(50).count(POD) == 2


def test_nothing_is_cut_on_a_narrow_terminal() -> None:
    told = printed(50).split(POD)[1]
    assert "".join(told.split()) == ADDRESS


def test_a_column_that_is_empty_in_every_row_is_left_out() -> None:
    assert "boot" not in printed(200)
