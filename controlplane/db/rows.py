"""Rows: how a result row becomes a frozen value."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row


def values_of(row: Row[Any]) -> dict[str, Any]:
    """The row by column name, JSON arrays as tuples where the value is a list."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row._mapping.items()}
