"""``troupe webhooks``: who is told of what happens, and whether it arrived."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from rich.console import Console

from controlplane.cli import show
from controlplane.client import Client, Json

LOOK_SECONDS = 0.2
TEST_SECONDS = 20.0
"""A test is followed so long; a first attempt takes less."""


async def run(options: argparse.Namespace, console: Console) -> int:
    """Do what comes behind ``troupe webhooks``; nothing means ``list``."""
    work = {
        "list": webhooks, "add": add, "remove": remove, "rotate": rotate, "test": test, "deliveries": deliveries,
        "redeliver": redeliver, "enable": enable, "disable": disable,
    }  # fmt: skip
    async with Client(options.url) as client:
        return await work[options.action or "list"](client, options, console)


async def webhooks(client: Client, options: argparse.Namespace, console: Console) -> int:
    """List webhooks."""
    page = await client.get("/webhooks")
    if options.json:
        return _print_json(console, page)
    columns = ("id", "state", "url", "types", "why", "description")
    rows = [
        (one["id"], _state(one), one["url"], ", ".join(one["types"]), one["disabled_reason"], one["description"])
        for one in page["items"]
    ]
    show.table(console, columns, rows)
    return 0


async def add(client: Client, options: argparse.Namespace, console: Console) -> int:
    """Make a webhook and print its secret, once."""
    body = {"url": options.address, "types": options.type or None, "description": options.description}
    return _show_secret(console, options, await client.post("/webhooks", body))


async def rotate(client: Client, options: argparse.Namespace, console: Console) -> int:
    """Give a webhook a new secret and print it, once."""
    return _show_secret(console, options, await client.post(f"{_path(options)}/rotate", {}))


async def remove(client: Client, options: argparse.Namespace, console: Console) -> int:
    """Remove a webhook."""
    await client.delete(_path(options))
    console.print(f"removed {options.id}", markup=False)
    return 0


async def enable(client: Client, options: argparse.Namespace, console: Console) -> int:
    """Tell a webhook things again."""
    return _show(console, options, await client.patch(_path(options), {"enabled": True}))


async def disable(client: Client, options: argparse.Namespace, console: Console) -> int:
    """Tell a webhook nothing for now."""
    return _show(console, options, await client.patch(_path(options), {"enabled": False}))


async def test(client: Client, options: argparse.Namespace, console: Console) -> int:
    """Send a test message and say whether it arrived."""
    sent = (await client.post(f"{_path(options)}/test", {}))["delivery"]
    end = time.monotonic() + TEST_SECONDS
    while not sent["attempts"] and time.monotonic() < end:
        await asyncio.sleep(LOOK_SECONDS)
        sent = await client.get(f"{_path(options)}/deliveries/{quote(sent['id'])}")
    if options.json:
        _print_json(console, sent)
    else:
        _show_deliveries(console, [sent])
    return 0 if sent["state"] == "delivered" else 1


async def deliveries(client: Client, options: argparse.Namespace, console: Console) -> int:
    """List what a webhook was told, newest first."""
    page = await client.get(f"{_path(options)}/deliveries", limit=options.limit, state=options.state)
    if options.json:
        return _print_json(console, page)
    _show_deliveries(console, page["items"])
    return 0


async def redeliver(client: Client, options: argparse.Namespace, console: Console) -> int:
    """Send messages again."""
    sent = [
        (await client.post(f"{_path(options)}/deliveries/{quote(one)}/redeliver", {}))["delivery"]
        for one in options.deliveries
    ]
    if options.json:
        return _print_json(console, {"items": sent})
    _show_deliveries(console, sent)
    return 0


def _path(options: argparse.Namespace) -> str:
    return f"/webhooks/{quote(options.id)}"


def _state(webhook: Mapping[str, Any]) -> str:
    if not webhook["enabled"]:
        return "disabled"
    return "failing" if webhook["failing_since"] else "ok"


def _show(console: Console, options: argparse.Namespace, webhook: Json) -> int:
    if options.json:
        return _print_json(console, webhook)
    console.print(f"webhook {webhook['id']}: {_state(webhook)}", markup=False)
    return 0


def _show_secret(console: Console, options: argparse.Namespace, made: Json) -> int:
    if options.json:
        return _print_json(console, made)
    console.print(f"webhook {made['webhook']['id']}: {made['webhook']['url']}", markup=False, soft_wrap=True)
    console.print(f"secret {made['secret']}", markup=False, soft_wrap=True)
    console.print("Keep it: it is not shown again.")
    return 0


def _show_deliveries(console: Console, items: list[Json]) -> None:
    columns = ("id", "state", "type", "tries", "answer", "next", "made")
    rows = [
        (
            one["id"],
            one["state"],
            one["type"],
            len(one["attempts"]),
            _last(one),
            one["next_at"] or "",
            one["created_at"],
        )
        for one in items
    ]
    show.table(console, columns, rows)


def _last(delivery: Mapping[str, Any]) -> str:
    """What came of the last try: ``200 in 0.02 s``."""
    if not delivery["attempts"]:
        return ""
    last = delivery["attempts"][-1]
    return f"{last['status'] or last['error']} in {last['seconds']:.2f} s"


def _print_json(console: Console, value: Mapping[str, Any]) -> int:
    console.print(json.dumps(value, indent=2, ensure_ascii=False), markup=False, soft_wrap=True)
    return 0
