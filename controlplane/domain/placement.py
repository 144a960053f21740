"""Placement: which waiting job goes to which pod next, as pure functions of what waits and what the pods are doing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def lane_of(project_id: str, kind: str, needs: Mapping[str, Any], base_model: str | None) -> str:
    """A short digest of all that a job asks of a pod but its LoRA: what one job of a lane can use, all can."""
    asked = {name: value for name, value in needs.items() if name != "lora_sha256"}
    told = json.dumps([project_id, kind, asked, base_model], sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(told.encode(), digest_size=12).hexdigest()
