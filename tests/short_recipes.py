"""A catalogue whose recipes end after a few steps, for tests that train for real with the tiny engine."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
STEPS = 40
PARAMS = {"steps": STEPS, "batch_size": 1, "rank": 4, "alpha": 4, "views": 1, "precision": "float32"}


def short_catalogue(folder: Path) -> Path:
    """Copy the workflow templates to ``folder``; ``fast`` ends after ``STEPS`` steps, ``standard`` after a few less."""
    shutil.copytree(REPOSITORY / "workflow_templates", folder)
    recipes = {"sketch": {"fast": {"params": PARAMS}, "standard": {"params": {**PARAMS, "steps": STEPS - 10}}}}
    (folder / "recipes.yaml").write_text(yaml.safe_dump(recipes), encoding="utf-8")
    return folder
