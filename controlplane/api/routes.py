"""The route table: every address of the server, what goes in, what comes out and what may go wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web
from pydantic import BaseModel

from controlplane import errors as e
from controlplane.api import (
    assets,
    characters,
    docs,
    event_stream,
    files,
    generation,
    health,
    jobs,
    pods,
    pods_self,
    projects,
    rentals,
    webhooks,
    workflows,
)
from controlplane.api.schemas import assets as s_assets
from controlplane.api.schemas import base as s_base
from controlplane.api.schemas import catalog as s_catalog
from controlplane.api.schemas import characters as s_characters
from controlplane.api.schemas import events as s_events
from controlplane.api.schemas import generation as s_generation
from controlplane.api.schemas import jobs as s_jobs
from controlplane.api.schemas import pods as s_pods
from controlplane.api.schemas import projects as s_projects
from controlplane.api.schemas import rentals as s_rentals
from controlplane.api.schemas import webhooks as s_webhooks

Model = type[BaseModel]


@dataclass(frozen=True)
class Media:
    """A response that is not JSON."""

    media_type: str
    description: str


@dataclass(frozen=True)
class Route:
    """One address and method. ``request`` is a JSON body, or a form where ``files`` names its file field.

    ``file`` is (member, field): a form whose file field stands for that member is taken beside the JSON body.

    ``headers`` are request headers with a meaning of their own; ``credential`` is who may call.
    """

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    summary: str
    tag: str
    responses: Mapping[int, Model | Media | None]
    request: Model | None = None
    files: str | None = None
    file: tuple[str, str] | None = None
    optional_body: bool = False
    raw_body: str | None = None
    query: Model = s_base.NoQuery
    problems: tuple[type[e.TroupeError], ...] = ()
    headers: tuple[str, ...] = ()
    credential: str | None = None


BODY = (e.BadRequest, e.PayloadTooLarge, e.UnsupportedMediaType, e.Unprocessable)
LIST = (e.BadRequest, e.Unprocessable)
IDEMPOTENT = (e.IdempotencyMismatch,)
GENERATE = (*BODY, *IDEMPOTENT, e.CharacterNotFound, e.NotFound, e.CharacterNotReady, e.BaseMismatch, e.NoPods)
CREATE_HEADERS = ("Idempotency-Key", "Prefer")
LAUNCHER = (e.RentingImpossible, e.LauncherRefused, e.LauncherUnpaid, e.LauncherUnreachable)
POD_KEY = "pod_key"
STREAM = Media("text/event-stream", "Server-sent events; the data of each is an Event.")

ROUTES: tuple[Route, ...] = (
    Route("GET", "/characters", characters.list_characters, "List characters", "characters",
          {200: s_characters.CharacterPage}, query=s_characters.CharactersQuery, problems=LIST),
    Route("POST", "/characters", characters.create_character, "Create a character from reference images", "characters",
          {202: s_characters.TrainingReply}, request=s_characters.CreateCharacter, files="images",
          problems=(*BODY, *IDEMPOTENT, e.DatasetRejected, e.NoPods), headers=("Idempotency-Key",)),
    Route("GET", "/characters/{character_id}", characters.get_character, "Read a character", "characters",
          {200: s_characters.Character}, problems=(e.CharacterNotFound,)),
    Route("PATCH", "/characters/{character_id}", characters.patch_character, "Change a character", "characters",
          {200: s_characters.Character}, request=s_characters.PatchCharacter,
          problems=(*BODY, e.CharacterNotFound)),
    Route("DELETE", "/characters/{character_id}", characters.delete_character, "Delete a character", "characters",
          {204: None}, problems=(e.CharacterNotFound, e.Conflict)),
    Route("POST", "/characters/{character_id}/versions", characters.train_version, "Train a further version",
          "characters", {202: s_characters.TrainingReply}, request=s_characters.TrainVersion, optional_body=True,
          problems=(*BODY, *IDEMPOTENT, e.CharacterNotFound, e.Conflict, e.NoPods), headers=("Idempotency-Key",)),
    Route("POST", "/characters/{character_id}/versions/{number}/activate", characters.activate_version,
          "Activate a version", "characters", {200: s_characters.Character},
          problems=(e.CharacterNotFound, e.NotFound, e.CharacterNotReady)),
    Route("POST", "/generate-image", generation.generate_image, "Make images", "generation",
          {200: s_jobs.JobReply, 202: s_jobs.JobReply}, request=s_generation.GenerateImage, problems=GENERATE,
          headers=CREATE_HEADERS),
    Route("POST", "/generate-video", generation.generate_video, "Make a video", "generation",
          {200: s_jobs.JobReply, 202: s_jobs.JobReply}, request=s_generation.GenerateVideo, problems=GENERATE,
          headers=CREATE_HEADERS),
    Route("GET", "/jobs", jobs.list_jobs, "List jobs", "jobs", {200: s_jobs.JobPage}, query=s_jobs.JobsQuery,
          problems=LIST),
    Route("GET", "/jobs/{job_id}", jobs.get_job, "Read a job", "jobs", {200: s_jobs.Job}, problems=(e.NotFound,),
          headers=("Prefer",)),
    Route("DELETE", "/jobs/{job_id}", jobs.cancel_job, "Cancel a job", "jobs",
          {200: s_jobs.JobReply, 202: s_jobs.JobReply}, problems=(e.NotFound, e.Conflict)),
    Route("GET", "/jobs/{job_id}/events", event_stream.job_events, "Follow a job", "jobs",
          {200: STREAM, 204: None}, query=s_events.OneStreamQuery,
          problems=(e.BadRequest, e.BadTicket, e.NotFound, e.Unprocessable), headers=("Last-Event-ID",)),
    Route("GET", "/characters/{character_id}/events", event_stream.character_events, "Follow a character", "jobs",
          {200: STREAM}, query=s_events.OneStreamQuery,
          problems=(e.BadRequest, e.BadTicket, e.CharacterNotFound, e.Unprocessable), headers=("Last-Event-ID",)),
    Route("GET", "/events", event_stream.project_events, "Follow everything", "jobs", {200: STREAM},
          query=s_events.EventsQuery, problems=(*LIST, e.BadTicket), headers=("Last-Event-ID",)),
    Route("POST", "/events/ticket", event_stream.stream_ticket, "Get a ticket for a browser's EventSource", "jobs",
          {201: s_events.Ticket}, request=s_events.TicketRequest, optional_body=True,
          problems=(*BODY, e.NotFound, e.CharacterNotFound)),
    Route("GET", "/assets", assets.list_assets, "List assets", "assets", {200: s_assets.AssetPage},
          query=s_assets.AssetsQuery, problems=LIST),
    Route("GET", "/assets/{asset_id}", assets.get_asset, "Read an asset", "assets", {200: s_assets.Asset},
          problems=(e.NotFound,)),
    Route("PATCH", "/assets/{asset_id}", assets.patch_asset, "Mark an asset", "assets", {200: s_assets.Asset},
          request=s_assets.PatchAsset, problems=(*BODY, e.NotFound)),
    Route("DELETE", "/assets/{asset_id}", assets.delete_asset, "Delete an asset", "assets", {204: None},
          problems=(e.NotFound, e.Conflict)),
    Route("GET", "/files/{key}", files.get_file, "Read a stored file", "files",
          {200: Media("*/*", "The file."), 206: Media("*/*", "One range of the file."), 304: None},
          query=s_base.FileQuery, headers=("Range", "If-None-Match", "If-Range"),
          problems=(e.BadRequest, e.LinkExpired, e.NotFound, e.RangeNotSatisfiable)),
    Route("PUT", "/files/{key}", files.put_file, "Store a file through a signed link", "files",
          {201: s_base.StoredFile}, raw_body="*/*", query=s_base.UploadQuery,
          problems=(e.BadRequest, e.LinkExpired, e.NotFound, e.Conflict)),
    Route("GET", "/workflows", workflows.list_workflows, "List workflow templates", "workflows",
          {200: s_catalog.WorkflowPage}),
    Route("POST", "/workflows", workflows.import_workflow, "Import a workflow from ComfyUI", "workflows",
          {200: s_catalog.ImportedWorkflow, 201: s_catalog.ImportedWorkflow}, request=s_catalog.ImportWorkflow,
          file=("graph", "file"), headers=("Idempotency-Key",),
          problems=(*BODY, *IDEMPOTENT, e.InvalidTemplate, e.ContentRefused, e.Conflict)),
    Route("GET", "/workflows/{name}", workflows.get_workflow, "Read a workflow template", "workflows",
          {200: s_catalog.WorkflowDetail}, problems=(e.NotFound,)),
    Route("DELETE", "/workflows/{name}", workflows.delete_workflow, "Remove an imported workflow", "workflows",
          {204: None}, problems=(e.NotFound, e.Conflict)),
    Route("GET", "/models", workflows.list_models, "List base models", "workflows", {200: s_catalog.ModelPage}),
    Route("GET", "/pods", pods.list_pods, "List pods", "pods", {200: s_pods.PodPage}),
    Route("POST", "/pods", pods.register_pod, "Register a pod", "pods", {201: s_pods.Registered},
          request=s_pods.RegisterPod, problems=(*BODY, e.BadJoinToken, e.UnknownProtocol), credential="join_token"),
    Route("POST", "/pods/{pod_id}/heartbeat", pods.heartbeat, "Report that a pod lives", "pods",
          {200: s_pods.HeartbeatReply}, request=s_pods.Heartbeat, problems=(*BODY, e.Unauthorized, e.NotFound),
          credential=POD_KEY),
    Route("DELETE", "/pods/{pod_id}", pods.drain_pod, "Drain a pod", "pods", {202: s_pods.PodReply},
          problems=(e.NotFound,)),
    Route("GET", "/rentals", rentals.list_rentals, "List rented pods", "pods", {200: s_rentals.RentalPage},
          query=s_rentals.RentalsQuery, problems=LIST),
    Route("POST", "/rentals", rentals.rent_pod, "Rent a pod", "pods", {202: s_rentals.RentalReply},
          request=s_rentals.RentPod, optional_body=True, headers=("Idempotency-Key",),
          problems=(*BODY, *IDEMPOTENT, *LAUNCHER, e.NoOffer, e.SpendLimit)),
    Route("POST", "/rentals/reconcile", rentals.reconcile_rentals, "End rented pods that nobody owns", "pods",
          {200: s_rentals.Reconciled}, problems=LAUNCHER),
    Route("GET", "/rentals/{rental_id}", rentals.get_rental, "Read a rental", "pods", {200: s_rentals.Rental},
          problems=(e.NotFound,)),
    Route("DELETE", "/rentals/{rental_id}", rentals.end_rental, "End a rented pod", "pods",
          {202: s_rentals.RentalReply}, problems=(e.NotFound, *LAUNCHER)),
    Route("GET", "/pods/self/characters/{character_id}/lora", pods_self.get_lora, "Where a LoRA is", "nodes",
          {200: s_pods.PodLora}, query=s_pods.LoraQuery, credential=POD_KEY,
          problems=(e.Unauthorized, e.CharacterNotFound, e.NotFound, e.CharacterNotReady, e.Unprocessable)),
    Route("GET", "/pods/self/characters/{character_id}/versions/{number}/dataset", pods_self.get_dataset,
          "What a training needs", "nodes", {200: s_pods.PodDataset}, credential=POD_KEY,
          problems=(e.Unauthorized, e.CharacterNotFound, e.NotFound)),
    Route("POST", "/pods/self/uploads", pods_self.create_upload, "Ask to store a file", "nodes",
          {201: s_pods.UploadTicket}, request=s_pods.UploadRequest, credential=POD_KEY,
          problems=(*BODY, e.Unauthorized, e.NotFound, e.Conflict, e.StaleAttempt)),
    Route("POST", "/pods/self/attempts/{prompt_id}/progress", pods_self.report_progress, "Report progress", "nodes",
          {200: s_pods.AttemptReply}, request=s_pods.AttemptProgress, credential=POD_KEY,
          problems=(*BODY, e.Unauthorized, e.NotFound, e.StaleAttempt)),
    Route("GET", "/project", projects.get_project, "Read your project", "project", {200: s_projects.Project}),
    Route("PATCH", "/project", projects.patch_project, "Pause or resume your project", "project",
          {200: s_projects.Project}, request=s_projects.PatchProject, problems=BODY),
    Route("GET", "/webhooks", webhooks.list_webhooks, "List webhooks", "webhooks", {200: s_webhooks.WebhookPage}),
    Route("POST", "/webhooks", webhooks.create_webhook, "Make a webhook", "webhooks", {201: s_webhooks.WebhookSecret},
          request=s_webhooks.CreateWebhook, problems=(*BODY, e.Conflict)),
    Route("GET", "/webhooks/{webhook_id}", webhooks.get_webhook, "Read a webhook", "webhooks",
          {200: s_webhooks.Webhook}, problems=(e.NotFound,)),
    Route("PATCH", "/webhooks/{webhook_id}", webhooks.patch_webhook, "Change a webhook", "webhooks",
          {200: s_webhooks.Webhook}, request=s_webhooks.PatchWebhook, problems=(*BODY, e.NotFound)),
    Route("DELETE", "/webhooks/{webhook_id}", webhooks.delete_webhook, "Remove a webhook", "webhooks", {204: None},
          problems=(e.NotFound,)),
    Route("POST", "/webhooks/{webhook_id}/rotate", webhooks.rotate_webhook, "Give a webhook a new secret", "webhooks",
          {200: s_webhooks.WebhookSecret}, problems=(e.NotFound,)),
    Route("POST", "/webhooks/{webhook_id}/test", webhooks.test_webhook, "Send a test message", "webhooks",
          {202: s_webhooks.DeliveryReply}, problems=(e.NotFound, e.Conflict)),
    Route("GET", "/webhooks/{webhook_id}/deliveries", webhooks.list_deliveries, "List deliveries", "webhooks",
          {200: s_webhooks.DeliveryPage}, query=s_webhooks.DeliveriesQuery, problems=(*LIST, e.NotFound)),
    Route("GET", "/webhooks/{webhook_id}/deliveries/{delivery_id}", webhooks.get_delivery, "Read a delivery",
          "webhooks", {200: s_webhooks.WebhookDelivery}, problems=(e.NotFound,)),
    Route("POST", "/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver", webhooks.redeliver,
          "Send a delivery again", "webhooks", {202: s_webhooks.DeliveryReply}, headers=("Idempotency-Key",),
          problems=(e.BadRequest, e.IdempotencyMismatch, e.NotFound, e.Conflict)),
    Route("GET", "/healthz", health.healthz, "Whether the process answers", "server", {200: s_catalog.Health}),
    Route("GET", "/readyz", health.readyz, "Whether work can be accepted and done", "server",
          {200: s_catalog.Readiness, 503: s_catalog.Readiness}),
    Route("GET", "/metrics", health.metrics, "Prometheus metrics", "server",
          {200: Media("text/plain", "Prometheus' text format.")}),
    Route("GET", "/openapi.json", docs.get_openapi, "This document", "server", {200: s_base.AnyDocument}),
    Route("GET", "/docs", docs.get_docs, "This document as a page", "server",
          {200: Media("text/html", "A self-contained page.")}),
)  # fmt: skip


def add_routes(app: web.Application) -> None:
    """Register the whole table."""
    for route in ROUTES:
        # Keys of files have slashes in them; aiohttp needs to be told, OpenAPI has no way to say it.
        path = route.path.replace("{key}", "{key:.+}")
        app.router.add_route(route.method, path, route.handler)
        if route.handler is files.get_file:
            app.router.add_route("HEAD", path, route.handler)
