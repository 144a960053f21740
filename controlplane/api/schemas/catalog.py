"""Workflow templates, base models and the server's own state as clients see them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from controlplane.api.schemas.base import Reply


class WorkflowInput(Reply):
    """One value that a workflow takes."""

    type: Literal["string", "integer", "number", "boolean", "image"]
    required: bool
    default: bool | int | float | str | None = None
    min: float | None = None
    max: float | None = None
    step: int | None = Field(None, description="Counted from `min`.")
    min_length: int | None = None
    max_length: int | None = None
    options: list[str] | None = None
    description: str


class WorkflowOutput(Reply):
    """One thing that a workflow makes."""

    node: str
    kind: str


class Workflow(Reply):
    """A workflow template."""

    name: str
    title: str
    kind: Literal["image", "video", "train"]
    base: str = Field(description="A base model's id, or `any`.")
    description: str
    digest: str = Field(description="Content hash of graph and manifest.")
    inputs: dict[str, WorkflowInput]
    outputs: list[WorkflowOutput]
    needs: dict[str, Any]
    takes_character: bool = Field(description="Whether a request names a `character_id`.")
    estimate_seconds: float
    example: dict[str, Any]


class WorkflowDetail(Workflow):
    """A workflow template with its graph."""

    graph: dict[str, Any] = Field(description="ComfyUI's API format.")


class WorkflowPage(Reply):
    """All workflow templates."""

    items: list[Workflow]
    next_cursor: str | None = None


class Model(Reply):
    """A base model."""

    id: str
    title: str
    description: str
    width: int = Field(description="Default size, pixels.")
    height: int
    min_image_side: int = Field(description="Reference images with a smaller side are not trained on, pixels.")
    templates: dict[str, str] = Field(description="Default workflow by purpose.")
    recipes: list[str]
    default_recipe: str
    lora_strength: float
    prompt_style: Literal["tags", "sentences"]
    licence: str


class ModelPage(Reply):
    """All base models."""

    items: list[Model]
    next_cursor: str | None = None


class Health(Reply):
    """The process answers."""

    status: Literal["ok"]
    version: str


class Check(Reply):
    """One thing that readiness depends on."""

    ok: bool
    detail: str


class Readiness(Reply):
    """`ready`: work can be done; `degraded`: requests are accepted, but no pod is ready; `unavailable`: neither."""

    status: Literal["ready", "degraded", "unavailable"]
    checks: dict[str, Check]
