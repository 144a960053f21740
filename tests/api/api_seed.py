"""Rows and files that tests put beside a running server, as if a training had ended well."""

from __future__ import annotations

import asyncio
import hashlib
import time

from sqlalchemy import Connection

from controlplane.app import SystemClock
from controlplane.db import assets as asset_rows
from controlplane.db import characters as character_rows
from controlplane.db.database import Database
from controlplane.domain.assets import Asset
from controlplane.domain.characters import Character, Version
from controlplane.domain.ids import new_id
from controlplane.storage.local import LocalStore
from controlplane.storage.secrets import load_secrets

from .api_server import Server

LORA = b"weights " * 100


def store_of(server: Server) -> LocalStore:
    """The server's own store, opened a second time."""
    key = load_secrets(server.settings).signing_key
    return LocalStore(server.settings.data / "files", f"{server.url}/files", key, SystemClock())


async def ready_character(server: Server, base_model: str = "sketch") -> Character:
    """A character with one usable version, its LoRA file included."""
    now = time.time()
    slug = new_id("hero").replace("_", "-")
    key = f"default/{slug}/loras/{new_id('job')}-1.safetensors"
    await store_of(server).put(key, LORA, "application/safetensors")
    sha256 = hashlib.sha256(LORA).hexdigest()
    character = Character("default", slug, "Hero", "man", f"h{slug[-8:]}", base_model, now, now, active_version=1)
    lora = Asset(
        new_id("asset"), "default", "lora", "stored", key, "application/safetensors", len(LORA), sha256, now, slug, 1
    )
    version = Version(
        "default", slug, 1, "ready", base_model, "fast", "0" * 64, new_id("dataset"), new_id("job"), now,
        lora_asset_id=lora.id, lora_sha256=sha256,
    )  # fmt: skip

    def write(c: Connection) -> None:
        character_rows.insert_character(c, character)
        asset_rows.insert_assets(c, [lora])
        character_rows.insert_version(c, version)

    await asyncio.to_thread(_written, server, write)
    return character


async def stored_picture(server: Server, character: Character, data: bytes) -> Asset:
    """A picture of a character, as if a job had made it."""
    now = time.time()
    asset_id = new_id("asset")
    key = f"default/{character.id}/2026-11-20/{asset_id}-1.png"
    await store_of(server).put(key, data, "image/png")
    sha256 = hashlib.sha256(data).hexdigest()
    asset = Asset(asset_id, "default", "image", "stored", key, "image/png", len(data), sha256, now, character.id, 1)
    await asyncio.to_thread(_written, server, lambda c: asset_rows.insert_assets(c, [asset]))
    return asset


def _written(server: Server, write: object) -> None:
    database = Database(server.settings.effective_database_url)
    try:
        database.write_sync(write)  # type: ignore[arg-type]
    finally:
        database.engine.dispose()
