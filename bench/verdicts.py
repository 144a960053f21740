"""Verdicts: how each part of the engine's bench ends; its aims, met or missed, on the screen and beside the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Verdict = tuple[str, bool]
"""An aim and what came of it, as a sentence, and whether it is met."""


def conclude(verdicts: Sequence[Verdict], figures: Mapping[str, Any], path: Path | None) -> None:
    """Print the verdicts; write them with the figures to ``path`` where there is one."""
    for told, met in verdicts:
        print(f"{'met   ' if met else 'MISSED'} {told}")
    if path is not None:
        path.write_text(json.dumps({**figures, "aims": verdicts}, indent=1) + "\n", encoding="utf-8")
