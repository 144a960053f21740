"""Pages: a stretch of a list, newest first, and the cursor that continues it."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from controlplane.errors import Unprocessable

T = TypeVar("T")

MAX_LIMIT = 100
DEFAULT_LIMIT = 20


@dataclass(frozen=True)
class Position:
    """Where in a list: behind the row with this time (seconds since the epoch) and id."""

    created_at: float
    id: str


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some items of a list; ``next_cursor`` is None at its end."""

    items: tuple[T, ...]
    next_cursor: str | None = None


def encode(position: Position) -> str:
    """The cursor that continues behind a position."""
    packed = json.dumps([position.created_at, position.id]).encode()
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode(cursor: str | None) -> Position | None:
    """The position of a cursor, None for none. Raises Unprocessable for anything that is not one of ours."""
    if not cursor:
        return None
    try:
        unpacked = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        created_at, row_id = unpacked
        position = Position(float(created_at), str(row_id))
        if not math.isfinite(position.created_at) or not position.id.isascii():
            raise ValueError("neither a time nor an id of ours")
        return position
    except (binascii.Error, ValueError, TypeError, OverflowError):
        detail = "The cursor is not one that this list gave out."
        raise Unprocessable(detail, errors=[{"pointer": "/cursor", "detail": "not valid"}]) from None


def checked_limit(limit: int | None) -> int:
    """The page size within 1..100; 20 for None."""
    return DEFAULT_LIMIT if limit is None else max(1, min(limit, MAX_LIMIT))


def page_of(rows: Sequence[T], limit: int, positions: Sequence[Position]) -> Page[T]:
    """The page of up to ``limit`` rows, when one row more was read to see whether the list goes on."""
    kept = tuple(rows[:limit])
    more = len(rows) > limit
    return Page(kept, encode(positions[limit - 1]) if more else None)
