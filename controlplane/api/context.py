"""What handlers may reach: the services, the catalogue and the settings, under one typed key of the application."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from controlplane.api.metrics import RequestMetrics
from controlplane.services.assets import Assets
from controlplane.services.characters import Characters
from controlplane.services.event_streams import Events
from controlplane.services.generation import Generation
from controlplane.services.idempotency import Repeats
from controlplane.services.jobs import Jobs
from controlplane.services.overview import Overview
from controlplane.services.pods import Pods
from controlplane.services.projects import Projects
from controlplane.services.reconciling import Reconciler
from controlplane.services.rentals import Rentals
from controlplane.services.training import Training
from controlplane.services.webhook_sending import WebhookSender
from controlplane.services.webhooks import Webhooks
from controlplane.services.workflows import Workflows
from controlplane.settings import Settings
from controlplane.workflows.catalog import Catalog


@dataclass(frozen=True)
class Services:
    """Everything a handler may call."""

    settings: Settings
    catalog: Catalog
    characters: Characters
    training: Training
    generation: Generation
    jobs: Jobs
    pods: Pods
    rentals: Rentals
    reconciler: Reconciler
    assets: Assets
    events: Events
    overview: Overview
    workflows: Workflows
    projects: Projects
    repeats: Repeats
    webhooks: Webhooks
    sender: WebhookSender


SERVICES = web.AppKey("services", Services)
METRICS = web.AppKey("metrics", RequestMetrics)


def services(request: web.Request) -> Services:
    """The services of the application that serves ``request``."""
    return request.app[SERVICES]
