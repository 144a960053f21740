"""The catalogue: every template, base model and recipe of one folder, read and checked once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from controlplane.domain.recipes import Recipe
from controlplane.errors import InvalidTemplate, NotFound, Unprocessable
from controlplane.workflows import library
from controlplane.workflows import models as model_files
from controlplane.workflows import template as template_files
from controlplane.workflows.models import BaseModel
from controlplane.workflows.template import Template

PURPOSES = {"image": "image", "video": "video", "video_from_image": "video", "train": "train"}
"""What a base model names a template for, and the kind that this template must have."""

log = logging.getLogger("troupe.workflows")


class Shelf(Mapping[str, Template]):
    """Templates by name: the shipped ones, which never change, and the imported ones.

    What is read is always one whole, immutable state; a change puts the next state in its place, from any thread.
    """

    def __init__(self, shipped: Mapping[str, Template], imported: Mapping[str, Template]) -> None:
        self._shipped = frozenset(shipped)
        self._lock = threading.Lock()
        self._state: Mapping[str, Template] = MappingProxyType({**imported, **shipped})

    def __getitem__(self, name: str) -> Template:
        return self._state[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def state(self) -> Mapping[str, Template]:
        """Everything as it is now; it will not change while it is read."""
        return self._state

    def is_shipped(self, name: str) -> bool:
        """Whether a template belongs to the code, and can be neither replaced nor removed."""
        return name in self._shipped

    def put(self, template: Template) -> None:
        """Add an imported template, or let it take the place of the one of its name."""
        with self._lock:
            self._state = MappingProxyType({**self._state, template.name: template})

    def drop(self, name: str) -> None:
        """Take an imported template away."""
        with self._lock:
            self._state = MappingProxyType({key: one for key, one in self._state.items() if key != name})


@dataclass(frozen=True)
class Catalog:
    """Templates by name, base models by id, recipes by base and name."""

    templates: Shelf
    models: Mapping[str, BaseModel]
    recipes: Mapping[str, Mapping[str, Recipe]]

    @classmethod
    def load(cls, folder: Path, imported: Path | None = None) -> Catalog:
        """Read a folder of templates with its models.yaml and recipes.yaml; InvalidTemplate where it does not fit.

        ``imported`` is the folder of imported templates: one that cannot be read, or has the name of a shipped one, is
        left out, so that nothing imported ever keeps a server from starting.
        """
        folders = sorted(path.parent for path in folder.glob("*/manifest.yaml"))
        shipped = {template.name: template for template in map(template_files.load, folders)}
        added = library.load_all(imported) if imported is not None else {}
        for name in sorted(set(added) & set(shipped)):
            log.error("imported workflow %s is left out: a workflow of that name belongs to this version", name)
        catalog = cls(
            templates=Shelf(shipped, added),
            models=model_files.load_models(folder / "models.yaml"),
            recipes=model_files.load_recipes(folder / "recipes.yaml"),
        )
        catalog._check()
        return catalog

    def template(self, name: str) -> Template:
        """The template of that name; NotFound lists what there is."""
        known = self.templates.state()
        if name not in known:
            raise NotFound(f"There is no workflow {name!r}; there are {_listed(known)}.")
        return known[name]

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
