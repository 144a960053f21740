"""Workflow templates, base models and the server's own state as clients see them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from controlplane.api.schemas.base import Links, Reply, Request


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
    imported: bool = Field(description="Whether it was imported here; the others belong to Troupe itself.")
    takes_character: bool = Field(description="Whether a request names a `character_id`.")
    estimate_seconds: float
    example: dict[str, Any]


class WorkflowDetail(Workflow):
    """A workflow template with its graph."""

    graph: dict[str, Any] = Field(description="ComfyUI's API format.")
    versions: list[str] = Field(description="Digests of the versions before this one, newest last.")


class ImportWorkflow(Request):
    """A graph to import. As a form, a file takes the place of `graph`: an API export, or a picture that carries one."""

    graph: dict[str, Any] = Field(description='ComfyUI\'s API format, or `{"prompt": ...}` around it.')
    name: str | None = Field(
        None, pattern=r"^[a-z][a-z0-9_]{0,63}$", description="What requests call it; default: the file's name."
    )
    title: str | None = Field(None, min_length=1, max_length=200)
    kind: Literal["image", "video"] | None = Field(None, description="Default: what the graph saves.")
    base: str | None = Field(
        None, min_length=1, max_length=64, description="The base model of its characters; default: by its checkpoint."
    )
    insert_character: bool = Field(False, description="Put a CharacterLoRALoader behind checkpoint and LoRA loaders.")
    dry_run: bool = Field(False, description="Only tell what would come of it.")


class FoundInput(Reply):
    """One input that was found, and how."""

    name: str
    by: Literal["titled", "traced"]
    how: str
    places: list[str] = Field(description="`node.field`")


class GraphChange(Reply):
    """One difference between the file and the template."""

    action: Literal["replaced", "inserted", "removed", "rewired"]
    node: str
    detail: str


class PodFit(Reply):
    """What one pod lacks for the workflow; nothing where it can run it."""

    pod: str
    state: str
    missing: list[str]


class ImportedWorkflow(Reply):
    """What an import came to; `checked` is the answer to a dry run."""

    status: Literal["created", "changed", "unchanged", "checked"]
    workflow: WorkflowDetail
    previous_digest: str | None
    findings: list[FoundInput]
    diff: list[GraphChange]
    pods: list[PodFit]
    warnings: list[str]
    links: Links


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
