"""Identifiers: how new ones are made."""

from __future__ import annotations

import base64
import secrets
import uuid


def new_id(prefix: str) -> str:
    """``<prefix>_`` and 26 characters of lower-case base32: 128 random bits, safe in URLs and file names."""
    return f"{prefix}_{base64.b32encode(secrets.token_bytes(16)).decode('ascii').rstrip('=').lower()}"


def new_prompt_id() -> str:
    """A UUID4: an attempt's id, which is also ComfyUI's ``prompt_id``."""
    return str(uuid.uuid4())
