"""Views: how the domain's values read as JSON. What is not named here is not shown.

Frozen mappings stay what they are: ``replies`` knows how to encode them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from controlplane.domain.assets import Asset
from controlplane.domain.characters import Consent, Version
from controlplane.domain.datasets import DatasetReport
from controlplane.domain.events import Event
from controlplane.domain.jobs import Attempt, Job
from controlplane.domain.pods import Pod
from controlplane.domain.recipes import Recipe
from controlplane.ports import BlobStore
from controlplane.services.jobs import JobView
from controlplane.services.summaries import CharacterSummary
from controlplane.workflows.graph import to_api
from controlplane.workflows.models import BaseModel
from controlplane.workflows.template import Input, Template

Json = dict[str, Any]

PREVIEW_SECONDS = 600.0
"""How long a link to a preview lives; the preview itself goes when the pod has finished."""
PROGRESS = ("phase", "percent", "eta_seconds", "step", "total_steps", "loss")


@dataclass(frozen=True)
class Views:
    """Views that hold links to files; ``link_seconds`` is how long a private link lives."""

    store: BlobStore
    link_seconds: float

    def link(self, key: str, *, public: bool) -> str:
        """The address of a blob: clean where it is public, else signed."""
        return self.store.public_url(key) if public else self.store.signed_get_url(key, self.link_seconds)

    def asset(self, asset: Asset) -> Json:
        """An asset in full."""
        public = asset.is_public
        return {
            "id": asset.id,
            "kind": asset.kind,
            "url": self.link(asset.key, public=public),
            "thumbnail_url": self.link(asset.thumbnail_key, public=public) if asset.thumbnail_key else None,
            "name": asset.name,
            "media_type": asset.media_type,
            "bytes": asset.bytes,
            "sha256": asset.sha256,
            "width": asset.width,
            "height": asset.height,
            "duration": asset.duration,
            "fps": asset.fps,
            "frames": asset.frames,
            "character_id": asset.character_id,
            "version": asset.version,
            "job_id": asset.job_id,
            "seed": asset.seed,
            "recipe": asset.recipe,
            "rating": asset.rating,
            "favourite": asset.favourite,
            "metadata": asset.metadata,
            "created_at": moment(asset.created_at),
        }

    def progress(self, progress: Mapping[str, Any], *, running: bool) -> Json:
        """How far a job is, with links to the newest samples of a training, or to a preview while it is ``running``."""
        told: Json = {name: progress.get(name) for name in PROGRESS}
        samples = progress.get("samples") or ()
        told["samples"] = [{"asset_id": one["asset_id"], "url": self.link(one["key"], public=False)} for one in samples]
        preview = progress.get("preview") if running else None
        told["preview_url"] = self.store.signed_get_url(preview, PREVIEW_SECONDS) if preview else None
        return told

    def event(self, event: Event) -> Json:
        """The data of one server-sent event."""
        data = plain(event.data)
        if "progress" in data:
            data["progress"] = self.progress(data["progress"], running=data.get("status") == "running")
        return {
            "id": event.id,
            "type": event.type,
            "job_id": event.job_id,
            "character_id": event.character_id,
            "created_at": moment(event.created_at),
            "data": data,
        }

    def job(self, view: JobView) -> Json:
        """A job in full."""
        job = view.job
        return {
            "id": job.id,
            "kind": job.kind,
            "status": job.status,
            "progress": self.progress(job.progress, running=job.status == "running"),
            "character_id": job.character_id,
            "version": job.version,
            "base_model": job.base_model,
            "workflow": job.template,
            "seed": job.seed,
            "request": job.request,
            "assets": [self.asset(asset) for asset in view.assets],
            "error": fault(job.error),
            "warnings": [str(warning) for warning in job.warnings],
            "attempts": [_attempt(attempt) for attempt in view.attempts],
            "placement": job.placement,
            "result": job.result,
            "metadata": job.metadata,
            "end_user": job.end_user,
            "rating": job.rating,
            "created_at": moment(job.created_at),
            "started_at": moment_or_none(job.started_at),
            "finished_at": moment_or_none(job.finished_at),
            "deadline_at": moment(job.deadline_at),
            "priority": job.priority,
        }

    def character(self, summary: CharacterSummary) -> Json:
        """A character in full."""
        character, cover = summary.character, summary.cover
        thumbnail = cover.thumbnail_key if cover is not None else None
        return {
            "id": character.id,
            "name": character.name,
            "status": summary.status,
            "class_word": character.class_word,
            "trigger_word": character.trigger_word,
            "description": character.description,
            "subject": character.subject,
            "consent": _consent(character.consent),
            "base_model": character.base_model,
            "metadata": character.metadata,
            "active_version": character.active_version,
            "cover_url": self.link(cover.key, public=cover.is_public) if cover else None,
            "cover_thumbnail_url": self.link(thumbnail, public=cover.is_public) if cover and thumbnail else None,
            "counts": {name: summary.counts.get(name, 0) for name in ("images", "videos", "versions")},
            "last_job": _short_job(summary.last_job),
            "versions": [version_body(version) for version in summary.versions],
            "created_at": moment(character.created_at),
            "updated_at": moment(character.updated_at),
        }


VIEWS = web.AppKey("views", Views)


def views(request: web.Request) -> Views:
    """The views of the application that serves ``request``."""
    return request.app[VIEWS]


def job_links(job: Job) -> dict[str, str]:
    """Where to follow a job, relative to the server."""
    links = {"self": f"/jobs/{job.id}", "events": f"/jobs/{job.id}/events"}
    if job.character_id:
        links["character"] = f"/characters/{job.character_id}"
    return links


def version_body(version: Version) -> Json:
    """One trained LoRA."""
    return {
        "number": version.number,
        "status": version.status,
        "base_model": version.base_model,
        "recipe": version.recipe,
        "job_id": version.job_id,
        "lora_sha256": version.lora_sha256,
        "default_strength": version.default_strength,
        "score": version.score,
        "proof": version.proof,
        "error": fault(version.error),
        "created_at": moment(version.created_at),
        "finished_at": moment_or_none(version.finished_at),
    }


def dataset_body(report: DatasetReport) -> Json:
    """The verdicts on a set of reference images."""
    images = [
        {
            "name": image.name,
            "verdict": image.verdict,
            "reasons": list(image.reasons),
            "width": image.width,
            "height": image.height,
        }
        for image in report.images
    ]
    return {
        "usable": len(report.usable),
        "counts": dict(report.counts),
        "images": images,
        "advice": list(report.advice),
    }


def pod_body(pod: Pod) -> Json:
    """A pod without its secrets."""
    return {
        "id": pod.id,
        "name": pod.name,
        "kind": pod.kind,
        "state": pod.state,
        "address": pod.address,
        "gpu": pod.gpu,
        "vram_bytes": pod.vram_bytes,
        "comfyui_version": pod.comfyui_version,
        "protocol": pod.protocol,
        "node_pack_digest": pod.node_pack_digest,
        "node_classes": list(pod.node_classes),
        "models": {folder: list(files) for folder, files in pod.models.items()},
        "trainers": list(pod.trainers),
        "trainer_obstacles": dict(pod.trainer_obstacles),
        "labels": list(pod.labels),
        "loras": list(pod.loras),
        "queue_length": pod.queue_length,
        "vram_free_bytes": pod.vram_free_bytes,
        "disk_free_bytes": pod.disk_free_bytes,
        "boot": pod.boot,
        "restarts": pod.restarts,
        "restart_reason": pod.restart_reason,
        "provider": pod.provider,
        "provider_id": pod.provider_id,
        "price_per_hour": pod.price_per_hour,
        "created_at": moment(pod.created_at),
        "last_heartbeat_at": moment(pod.last_heartbeat_at),
    }


def workflow_body(template: Template, *, imported: bool, with_graph: bool = False) -> Json:
    """A workflow template; inputs that only the control plane sets are not shown."""
    body: Json = {
        "name": template.name,
        "title": template.title,
        "kind": template.kind,
        "base": template.base,
        "description": template.description,
        "digest": template.digest,
        "inputs": {name: _input(spec) for name, spec in template.public_inputs.items()},
        "imported": imported,
        "takes_character": template.takes("character_id"),
        "outputs": [{"node": output.node, "kind": output.kind} for output in template.outputs],
        "needs": template.needs.model_dump(mode="json"),
        "estimate_seconds": template.estimate_seconds,
        "example": plain(template.example),
    }
    if with_graph:
        body["graph"] = to_api(template.graph)
    return body


def model_body(model: BaseModel, recipes: Mapping[str, Recipe]) -> Json:
    """A base model and the recipes that train on it."""
    return {
        "id": model.id,
        "title": model.title,
        "description": model.description,
        "width": model.width,
        "height": model.height,
        "min_image_side": model.min_image_side,
        "templates": dict(model.templates),
        "recipes": sorted(recipes),
        "default_recipe": model.default_recipe,
        "lora_strength": model.lora_strength,
        "prompt_style": model.prompt_style,
        "licence": model.licence,
    }


def fault(error: Mapping[str, Any] | None) -> Json | None:
    """Why something failed, ``{code, detail}``, and ``log_tail`` where the pod had a log."""
    if error is None:
        return None
    log_tail = [str(line) for line in error.get("log_tail") or ()]
    told = {"code": str(error.get("code", "")), "detail": str(error.get("detail", ""))}
    return {**told, **({"log_tail": log_tail} if log_tail else {})}


def moment(seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment_or_none(seconds: float | None) -> str | None:
    """The same, None for None."""
    return None if seconds is None else moment(seconds)


def plain(value: Any) -> Any:
    """Frozen JSON (mappings, tuples) as the dicts and lists that the encoder knows."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def _consent(consent: Consent | None) -> Json | None:
    if consent is None:
        return None
    return {
        "attested_by": consent.attested_by,
        "text_version": consent.text_version,
        "attested_at": moment_or_none(consent.attested_at),
    }


def _short_job(job: Job | None) -> Json | None:
    if job is None:
        return None
    return {"id": job.id, "kind": job.kind, "status": job.status, "created_at": moment(job.created_at)}


def _attempt(attempt: Attempt) -> Json:
    return {
        "id": attempt.id,
        "number": attempt.number,
        "pod_id": attempt.pod_id,
        "status": attempt.status,
        "error": fault(attempt.error),
        "placement": attempt.placement,
        "created_at": moment(attempt.created_at),
        "submitted_at": moment_or_none(attempt.submitted_at),
        "started_at": moment_or_none(attempt.started_at),
        "finished_at": moment_or_none(attempt.finished_at),
    }


def _input(spec: Input) -> Json:
    return {
        "type": spec.type,
        "required": spec.required,
        "default": spec.default,
        "min": spec.min,
        "max": spec.max,
        "step": spec.step,
        "min_length": spec.min_length or None,
        "max_length": spec.max_length,
        "options": list(spec.options) or None,
        "description": spec.description,
    }
