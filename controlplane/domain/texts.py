"""Texts: what any text must be to be kept at all."""

from __future__ import annotations


def is_storable(text: str) -> bool:
    """Whether a text is free of NUL and of half a surrogate pair, which no database or file name can keep."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)
