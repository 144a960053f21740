"""The catalogue: every template, base model and recipe of one folder, read and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.domain.recipes import Recipe
from controlplane.errors import InvalidTemplate, NotFound, Unprocessable
from controlplane.workflows import models as model_files
from controlplane.workflows import template as template_files
from controlplane.workflows.models import BaseModel
from controlplane.workflows.template import Template

PURPOSES = {"image": "image", "video": "video", "video_from_image": "video", "train": "train"}
"""What a base model names a template for, and the kind that this template must have."""


@dataclass(frozen=True)
class Catalog:
    """Templates by name, base models by id, recipes by base and name."""

    templates: Mapping[str, Template]
    models: Mapping[str, BaseModel]
    recipes: Mapping[str, Mapping[str, Recipe]]

    @classmethod
    def load(cls, folder: Path) -> Catalog:
        """Read a folder of templates with its models.yaml and recipes.yaml; InvalidTemplate where it does not fit."""
        folders = sorted(path.parent for path in folder.glob("*/manifest.yaml"))
        loaded = [template_files.load(path) for path in folders]
        catalog = cls(
            templates={template.name: template for template in loaded},
            models=model_files.load_models(folder / "models.yaml"),
            recipes=model_files.load_recipes(folder / "recipes.yaml"),
        )
        catalog._check()
        return catalog

    def template(self, name: str) -> Template:
        """The template of that name; NotFound lists what there is."""
        if name not in self.templates:
            raise NotFound(f"There is no workflow {name!r}; there are {_listed(self.templates)}.")
        return self.templates[name]

    def model(self, base: str) -> BaseModel:
        """The base model of that id; Unprocessable lists what there is."""
        if base not in self.models:
            raise Unprocessable(
                f"There is no base model {base!r}; there are {_listed(self.models)}.",
                errors=[{"pointer": "/base_model", "detail": "unknown base model"}],
            )
        return self.models[base]

    def default_model(self, wanted: str) -> BaseModel:
        """The base model where a request names none: ``wanted``, the first of models.yaml where that is empty."""
        return self.model(wanted) if wanted else next(iter(self.models.values()))

    def recipe(self, base: str, name: str = "") -> Recipe:
        """A recipe of a base model, its default one where no name is given; Unprocessable lists what there is."""
        wanted = name or self.model(base).default_recipe
        recipes = self.recipes.get(base, {})
        if wanted not in recipes:
            raise Unprocessable(
                f"There is no recipe {wanted!r} for {base}; there are {_listed(recipes)}.",
                errors=[{"pointer": "/recipe", "detail": "unknown recipe"}],
            )
        return recipes[wanted]

    def template_for(self, base: str, purpose: str) -> Template:
        """The default template of a base model for ``image``, ``video``, ``video_from_image`` or ``train``."""
        model = self.model(base)
        if purpose not in model.templates:
            raise Unprocessable(f"Base model {base} has no template for {purpose}.")
        return self.template(model.templates[purpose])

    def needs(self, template: Template, base: str, lora_sha256: str | None = None) -> dict[str, Any]:
        """What a pod must have for one job: ``{nodes, models, labels, trainer, lora_sha256}`` (``jobs.needs``)."""
        model = self.model(base)
        folders = {folder: list(files) for folder, files in template.needs.models.items()}
        if template.kind == "train" and model.checkpoint not in folders.get("checkpoints", []):
            folders["checkpoints"] = [*folders.get("checkpoints", []), model.checkpoint]
        return {
            "nodes": list(template.needs.nodes),
            "models": folders,
            "labels": list(template.needs.labels),
            "trainer": model.trainer if template.kind == "train" else None,
            "lora_sha256": lora_sha256,
        }

    def _check(self) -> None:
        for model in self.models.values():
            for purpose, name in model.templates.items():
                template = self.templates.get(name)
                if purpose not in PURPOSES or template is None:
                    raise InvalidTemplate(f"models.yaml: {model.id} names {name!r} for {purpose}, which is not there.")
                if template.kind != PURPOSES[purpose] or not template.fits(model.id):
                    raise InvalidTemplate(f"models.yaml: {name} cannot be the {purpose} template of {model.id}.")
            if model.id in self.recipes and model.default_recipe not in self.recipes[model.id]:
                raise InvalidTemplate(f"recipes.yaml: {model.id} has no recipe {model.default_recipe!r}, its default.")
        unknown = set(self.recipes) - set(self.models)
        if unknown:
            raise InvalidTemplate(f"recipes.yaml: there is no base model {', '.join(sorted(unknown))}.")


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"
