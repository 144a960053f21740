"""Texts: what any text must be to be kept at all."""

from __future__ import annotations

import re

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def is_storable(text: str) -> bool:
    """Whether a text is free of NUL and of half a surrogate pair, which no database or file name can keep."""
    return _UNSTORABLE.search(text) is None
