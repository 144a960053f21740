"""Recipes: named, pinned training parameters of one base model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """One way to train on one base model; ``params`` go to the trainer as they are."""

    base: str
    name: str
    params: Mapping[str, Any]
    title: str = ""
    description: str = ""
    estimate_seconds: float = 600.0

    @property
    def digest(self) -> str:
        """sha256 (hex) over base, name and parameters: equal digests train equally."""
        pinned = {"base": self.base, "name": self.name, "params": dict(self.params)}
        return hashlib.sha256(json.dumps(pinned, sort_keys=True, allow_nan=False).encode()).hexdigest()
