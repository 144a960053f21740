"""``troupe pause`` and ``troupe resume``: holding a project's waiting work back, and letting it begin again."""

from __future__ import annotations

import argparse
import json

from rich.console import Console

from controlplane.client import Client, Json


async def pause(options: argparse.Namespace, console: Console) -> int:
    """Let nothing new begin; what runs goes on, and new requests wait."""
    return await _patch(options, console, {"paused": True, "reason": options.reason})


async def resume(options: argparse.Namespace, console: Console) -> int:
    """Let waiting work begin again."""
    return await _patch(options, console, {"paused": False})


async def _patch(options: argparse.Namespace, console: Console, change: Json) -> int:
    async with Client(options.url) as client:
        project = await client.patch("/project", change)
    if options.json:
        console.print(json.dumps(project, indent=2, ensure_ascii=False), markup=False, soft_wrap=True)
    else:
        state = f"paused since {project['paused_at']}" if project["paused"] else "not paused"
        console.print(f"project {project['id']} is {state}", markup=False)
    return 0
