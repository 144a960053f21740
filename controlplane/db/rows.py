"""Rows: how a result row becomes a frozen value, and how a list is read page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Row, Select, Table, tuple_

from controlplane.domain.pages import Position

T = TypeVar("T")


def values_of(row: Row[Any]) -> dict[str, Any]:
    """The row by column name, JSON arrays as tuples where the value is a list."""
    return {key: tuple(value) if type(value) is list else value for key, value in zip(row._fields, row, strict=True)}


def newest_first(query: Select[Any], table: Table, behind: Position | None, limit: int) -> Select[Any]:
    """One page of a list with ``created_at`` and ``id``: an index that ends with the two is read from there on."""
    if behind is not None:
        query = query.where(older_than(table, behind))
    return query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit)


def older_than(table: Table, position: Position) -> ColumnElement[bool]:
    """What comes behind a position, newest first; as one comparison of two columns, which databases seek by."""
    return tuple_(table.c.created_at, table.c.id) < tuple_(position.created_at, position.id)


def merged(pages: Iterable[Sequence[T]], limit: int, position_of: Callable[[T], tuple[float, str]]) -> list[T]:
    """The first ``limit`` rows of several lists, newest first, each of which is given with at least so many."""
    rows = [row for page in pages for row in page]
    return sorted(rows, key=position_of, reverse=True)[:limit]
