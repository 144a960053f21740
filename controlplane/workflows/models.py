"""Base models and training recipes as data: which checkpoint, trainer and templates belong to a base model id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from controlplane.domain.recipes import Recipe
from controlplane.errors import InvalidTemplate

_NUMBER_AS_TEXT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class Sampler(pydantic.BaseModel):
    """How a base model is sampled where a request does not say."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    steps: int = pydantic.Field(ge=1)
    cfg: float
    sampler_name: str
    scheduler: str


class BaseModel(pydantic.BaseModel):
    """One base model of models.yaml.

    ``templates`` names the default template of each purpose (image, video, video_from_image, train); ``width`` and
    ``height`` are pixels; a reference image with a side under ``min_image_side`` pixels is not trained on;
    ``prompt_style`` is how its prompts read (``tags`` or ``sentences``).
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    id: str = pydantic.Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")
    title: str
    description: str = ""
    checkpoint: str
    trainer: str
    templates: Mapping[str, str]
    width: int = pydantic.Field(ge=8)
    height: int = pydantic.Field(ge=8)
    min_image_side: int = pydantic.Field(ge=1)
    sampler: Sampler
    negative_prompt: str = ""
    lora_strength: float = 1.0
    prompt_style: Literal["tags", "sentences"]
    default_recipe: str
    licence: str


def load_models(path: Path) -> dict[str, BaseModel]:
    """Read models.yaml, a list of base models; InvalidTemplate says what is wrong with it."""
    raw = _yaml(path)
    if not isinstance(raw, list) or not raw:
        raise InvalidTemplate(f"{path.name} is a list of base models.")
    models: dict[str, BaseModel] = {}
    for entry in raw:
        try:
            model = BaseModel.model_validate(entry)
        except pydantic.ValidationError as error:
            raise InvalidTemplate(f"{path.name}: {error}") from None
        if model.id in models:
            raise InvalidTemplate(f"{path.name}: base model {model.id} is there twice.")
        models[model.id] = model
    return models


def load_recipes(path: Path) -> dict[str, dict[str, Recipe]]:
    """Read recipes.yaml, ``{base: {name: {params, title?, description?, estimate_seconds?}}}``; no file, no recipes."""
    if not path.is_file():
        return {}
    raw = _yaml(path)
    if not isinstance(raw, Mapping):
        raise InvalidTemplate(f"{path.name} is an object of recipes by base model.")
    return {
        str(base): {str(name): _recipe(path, str(base), str(name), params) for name, params in recipes.items()}
        for base, recipes in raw.items()
    }


def _recipe(path: Path, base: str, name: str, raw: Any) -> Recipe:
    params = raw.get("params") if isinstance(raw, Mapping) else None
    if not isinstance(params, Mapping) or not params:
        raise InvalidTemplate(f"{path.name}: recipe {base}/{name} has no parameters.")
    unknown = set(raw) - {"params", "title", "description", "estimate_seconds"}
    if unknown:
        raise InvalidTemplate(f"{path.name}: recipe {base}/{name} has unknown {', '.join(sorted(unknown))}.")
    for key, value in params.items():
        # YAML 1.1 reads 1e-3 as text; a trainer would fail on it an hour later.
        if isinstance(value, str) and _NUMBER_AS_TEXT.match(value):
            raise InvalidTemplate(f"{path.name}: {base}/{name}/{key} reads as text; write {float(value):f} instead.")
    return Recipe(
        base=base,
        name=name,
        params=dict(params),
        title=str(raw.get("title", name)),
        description=str(raw.get("description", "")),
        estimate_seconds=float(raw.get("estimate_seconds", 600.0)),
    )


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidTemplate(f"{path.name}: {error}") from None
