"""Renting put together for tests: a real database, the real launcher, and RunPod's double at the other end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.db.database import Database
from controlplane.db.migrate import migrate
from controlplane.domain.pods import Pod
from controlplane.domain.rentals import Rental
from controlplane.launchers.runpod import RunPodLauncher
from controlplane.launchers.runpod_wire import Timing
from controlplane.services.events import Hints
from controlplane.services.pods import Pods
from controlplane.services.reconciling import Reconciler
from controlplane.services.rental_books import RentalBooks, RentRequest
from controlplane.services.rentals import Rentals
from controlplane.settings import Settings
from tests.launchers.runpod_double import ACCOUNT_KEY
from tests.services.engine import JOIN_TOKEN, PROJECT, WallClock

QUICK = Timing(answer=0.5, creation=0.5, pause=0.02, patience=2.0, renting=5.0)


@dataclass
class Office:
    """One control-plane process' part of renting; several may share the database file."""

    db: Database
    clock: WallClock
    rentals: Rentals
    reconciler: Reconciler
    pods: Pods
    launcher: RunPodLauncher

    async def rent(self, **wanted: Any) -> Rental:
        """Rent one pod."""
        return await self.rentals.rent(PROJECT, RentRequest(**wanted))

    async def books(self) -> list[Rental]:
        """Every rental, newest first."""
        return list((await self.rentals.list(PROJECT)).items)

    async def rental(self, rental_id: str) -> Rental:
        """One rental as it is now."""
        return await self.rentals.get(PROJECT, rental_id)

    async def register(self, rental: Rental, **values: Any) -> Pod:
        """Let the agent of a rental's pod register."""
        body = {
            "protocol": 1,
            "instance_id": f"instance of {rental.provider_id}",
            "address": f"https://{rental.provider_id}-8188.proxy.runpod.net",
            "token": "a pod token",
            "kind": "comfyui",
            "provider": "runpod",
            "provider_id": rental.provider_id,
            **values,
        }
        pod, _ = await self.pods.register(body, JOIN_TOKEN)
        return pod


def settings_for(folder: Path, url: str, **values: Any) -> Settings:
    """Settings that can rent, with the double as RunPod."""
    given = {
        "public_url": "https://troupe.example",
        "runpod_url": url,
        "runpod_api_key": ACCOUNT_KEY,
        "pod_image": "ghcr.io/example/troupe-comfyui@sha256:00",
        "installation": "",
        **values,
    }
    return Settings(data=folder, _env_file=None, **given)


@contextlib.asynccontextmanager
async def office(folder: Path, url: str, timing: Timing = QUICK, **values: Any) -> AsyncIterator[Office]:
    """An office on the database in ``folder``."""
    settings = settings_for(folder, url, **values)
    migrate(settings.effective_database_url)
    db, clock, hints = Database(settings.effective_database_url), WallClock(), Hints()
    launcher = RunPodLauncher(url, ACCOUNT_KEY, timing)
    books = RentalBooks(db, clock, settings)
    rentals = Rentals(db, clock, hints, settings, books, JOIN_TOKEN, launcher)
    try:
        yield Office(
            db=db,
            clock=clock,
            rentals=rentals,
            reconciler=Reconciler(db, clock, hints, settings, books, launcher),
            pods=Pods(db, clock, hints, settings, JOIN_TOKEN),
            launcher=launcher,
        )
    finally:
        await rentals.stop()
        await launcher.close()
        await db.close()
