"""The composition root: names every concrete adapter, wires the services and keeps the background work running."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from weakref import WeakSet

from aiohttp import web

from controlplane.api import routes
from controlplane.api.auth import check_host
from controlplane.api.context import METRICS, SERVICES, Services
from controlplane.api.docs import DOCUMENT
from controlplane.api.event_stream import ENCODED, STREAMS, EncodedEvents, end_streams
from controlplane.api.files import FILES
from controlplane.api.health import own_version
from controlplane.api.metrics import RequestMetrics
from controlplane.api.middlewares import middlewares, on_prepare
from controlplane.api.openapi import document
from controlplane.api.reading import MAX_JSON_BYTES
from controlplane.api.stream_tickets import TICKETS, StreamTickets
from controlplane.api.views import VIEWS, Views
from controlplane.comfy.client import open_session
from controlplane.db.database import Database
from controlplane.db.migrate import migrate
from controlplane.db.notices import Notices, notices_on
from controlplane.domain.addresses import any_address, is_public
from controlplane.internet import WebhookPoster
from controlplane.launchers.runpod import RunPodLauncher
from controlplane.providers.comfyui import ComfyUIProvider, Pace
from controlplane.providers.node_facts import ComfyNodeFacts
from controlplane.services import generation as generation_hooks
from controlplane.services import training as training_hooks
from controlplane.services.assets import Assets
from controlplane.services.characters import Characters
from controlplane.services.durations import Durations
from controlplane.services.event_pruning import EventPruning
from controlplane.services.event_streams import Events
from controlplane.services.event_tail import Tail
from controlplane.services.events import Hints
from controlplane.services.fleet import Fleet
from controlplane.services.generation import Generation
from controlplane.services.idempotency import Repeats
from controlplane.services.jobs import Jobs
from controlplane.services.outcomes import Hooks
from controlplane.services.overview import Overview
from controlplane.services.pods import Pods
from controlplane.services.previews import Previews
from controlplane.services.projects import Projects
from controlplane.services.reconciling import Reconciler
from controlplane.services.rental_books import RentalBooks
from controlplane.services.rentals import Rentals
from controlplane.services.retention import Retention
from controlplane.services.scheduler import Scheduler
from controlplane.services.training import Training
from controlplane.services.webhook_bodies import Shown, WebhookBodies
from controlplane.services.webhook_sending import WebhookSender
from controlplane.services.webhooks import Webhooks
from controlplane.services.workflows import Workflows, imported_folder
from controlplane.settings import Settings
from controlplane.storage.local import LocalStore
from controlplane.storage.secrets import Secrets, load_secrets
from controlplane.workflows.catalog import Catalog

log = logging.getLogger("troupe.app")

POD_SWEEP_SECONDS = 10.0
RETENTION_SWEEP_SECONDS = 60.0
PRUNE_SECONDS = 60.0
RESTART_SECONDS = 2.0
SHUTDOWN_SECONDS = 5.0


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()


@dataclass(frozen=True)
class Parts:
    """What the background work needs beside the services."""

    settings: Settings
    db: Database
    clock: SystemClock
    hints: Hints
    store: LocalStore
    services: Services
    fleet: Fleet
    durations: Durations
    launcher: RunPodLauncher | None
    notices: Notices | None
    poster: WebhookPoster


PARTS = web.AppKey("parts", Parts)


def build_app(settings: Settings) -> web.Application:
    """The whole server. It opens nothing and starts nothing before the application starts up.

    Raises InvalidTemplate for a broken catalogue and UnsafeHost where it would be open to others.
    """
    check_host(settings.host)
    metrics = RequestMetrics()
    app = web.Application(middlewares=middlewares(settings, metrics), client_max_size=MAX_JSON_BYTES)
    parts = _parts(settings, load_secrets(settings))
    app[PARTS] = parts
    app[SERVICES] = parts.services
    app[METRICS] = metrics
    app[FILES] = parts.store
    app[VIEWS] = views = Views(parts.store, settings.file_url_seconds)
    app[STREAMS] = WeakSet()
    app[ENCODED] = EncodedEvents(views.event)
    app[TICKETS] = StreamTickets(load_secrets(settings).signing_key, SystemClock())
    app[DOCUMENT] = document(routes.ROUTES, own_version())
    routes.add_routes(app)
    app.on_response_prepare.append(on_prepare(settings))
    app.on_shutdown.append(end_streams)
    app.cleanup_ctx.append(_background)
    return app


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[str]:
    """Serve while the block runs; yields the address. Port 0 takes a free port."""
    check_host(settings.host)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.create_server((settings.host, settings.port), family=family, backlog=256)
    # The port has to be known before links are made of it.
    settings = settings.model_copy(update={"port": listener.getsockname()[1]})
    runner = web.AppRunner(build_app(settings), shutdown_timeout=SHUTDOWN_SECONDS, access_log=None)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        yield f"http://{_in_url(settings.host)}:{settings.port}"
    finally:
        await runner.cleanup()
        listener.close()


def join_token(settings: Settings) -> str:
    """The secret with which pods of this installation register; made on first use."""
    return load_secrets(settings).join_token


def migrate_database(settings: Settings) -> None:
    """Bring the database to the shape that this code expects."""
    migrate(settings.effective_database_url)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _parts(settings: Settings, secrets: Secrets) -> Parts:
    notices = notices_on(settings.effective_database_url)
    clock, hints = SystemClock(), Hints(notices.tell if notices is not None else None)
    catalog = Catalog.load(settings.templates, imported_folder(settings))
    catalog.default_model(settings.default_base_model)  # a wrong name is told at start, not by the first request
    db = Database(settings.effective_database_url)
    store = LocalStore(settings.data / "files", settings.effective_files_url, secrets.signing_key, clock)
    launcher, books = _launcher(settings), RentalBooks(db, clock, settings)
    tail = Tail(db, hints, settings.poll_seconds)
    fleet = Fleet(db, clock, hints, settings)
    durations = Durations()
    jobs = Jobs(
        db,
        clock,
        hints,
        {"train": training_hooks.on_cancelled},
        fleet.explain,
        tail,
        durations,
        fleet.outlook,
        fleet.estimate,
    )
    training = Training(db, store, catalog, settings)
    characters = Characters(db, store, clock, settings, catalog, jobs, training, hints)
    views = Views(store, settings.file_url_seconds)
    shown = Shown(job=views.job, character=views.character, data=lambda event: dict(views.event(event)["data"]))
    bodies = WebhookBodies(jobs, characters, shown, settings.effective_public_url)
    poster = WebhookPoster(any_address if settings.webhook_private else is_public)
    services = Services(
        settings=settings,
        catalog=catalog,
        characters=characters,
        training=training,
        generation=Generation(db, clock, settings, catalog, jobs, hints),
        jobs=jobs,
        pods=Pods(db, clock, hints, settings, secrets.join_token),
        rentals=Rentals(db, clock, hints, settings, books, secrets.join_token, launcher),
        reconciler=Reconciler(db, clock, hints, settings, books, launcher),
        assets=Assets(db, store, clock, settings),
        events=Events(db, hints, settings.poll_seconds, tail),
        overview=Overview(db),
        workflows=Workflows(db, settings, catalog, ComfyNodeFacts()),
        projects=Projects(db, clock, hints),
        repeats=Repeats(db, clock),
        webhooks=Webhooks(db, clock, hints, settings),
        sender=WebhookSender(
            db, clock, hints, poster, bodies, give_up_seconds=settings.webhook_give_up_days * 24 * 3600.0
        ),
    )
    return Parts(settings, db, clock, hints, store, services, fleet, durations, launcher, notices, poster)


def _launcher(settings: Settings) -> RunPodLauncher | None:
    """Who rents pods out to us, if anybody."""
    key = settings.runpod_api_key.get_secret_value() if settings.runpod_api_key else ""
    return RunPodLauncher(settings.runpod_url, key) if key else None


async def _background(app: web.Application) -> AsyncIterator[None]:
    """From start to stop: the database's tables, the scheduler and the sweeps."""
    parts = app[PARTS]
    await asyncio.to_thread(migrate, parts.db.url)
    await asyncio.to_thread(parts.store.clear_incoming)
    async with open_session() as session:
        provider = ComfyUIProvider(session, parts.store, Pace(submit_seconds=parts.settings.submit_timeout_seconds))
        scheduler = _scheduler(parts, provider)
        work = _background_work(parts, scheduler)
        tasks = [asyncio.create_task(_kept_up(name, one)) for name, one in work.items()]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await provider.close()
            await parts.poster.close()
            await parts.services.rentals.stop()
    if parts.launcher is not None:
        await parts.launcher.close()
    await parts.db.close()


def _background_work(parts: Parts, scheduler: Scheduler) -> dict[str, Callable[[], Awaitable[None]]]:
    """What goes on for as long as the server lives, by name."""
    settings, services = parts.settings, parts.services
    retention = Retention(parts.db, parts.clock, settings)
    pruning = EventPruning(parts.db, parts.clock, settings)
    work: dict[str, Callable[[], Awaitable[None]]] = {
        "scheduler": scheduler.run,
        "webhook sender": services.sender.run,
        "pod sweep": lambda: _every(POD_SWEEP_SECONDS, services.pods.sweep),
        "asset sweep": lambda: _every(settings.asset_sweep_seconds, services.assets.sweep),
        "rental sweep": lambda: _every(settings.reconcile_seconds, services.reconciler.sweep),
        "retention": lambda: _every(RETENTION_SWEEP_SECONDS, retention.sweep),
        "event pruning": lambda: _every(PRUNE_SECONDS, pruning.sweep),
    }
    if (notices := parts.notices) is not None:
        work["notices"] = lambda: notices.run(parts.hints.ring)
    return work


def _scheduler(parts: Parts, provider: ComfyUIProvider) -> Scheduler:
    providers = {"embedded": provider, "comfyui": provider}
    hooks = _hooks(parts)
    previews = Previews(parts.store if parts.settings.previews else None)
    settings, clock = parts.settings, parts.clock
    return Scheduler(parts.db, providers, settings, clock, hooks, parts.hints, parts.fleet, parts.durations, previews)


def _hooks(parts: Parts) -> Hooks:
    """What each kind of job does when it ends."""
    made, trained = generation_hooks.complete, training_hooks.complete
    return Hooks(
        complete={"image": made, "video": made, "train": trained},
        on_failed={"train": training_hooks.on_failed},
        on_cancelled={"train": training_hooks.on_cancelled},
        verify=parts.services.assets.verify,
    )


async def _every(seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    while True:
        await work()
        await asyncio.sleep(seconds)


async def _kept_up(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run background work for as long as the server lives."""
    while True:
        try:
            await work()
        except Exception:
            # Whatever it was, a server without its scheduler would take requests and never do them.
            log.exception("the %s stopped; starting it again", name)
        await asyncio.sleep(RESTART_SECONDS)
