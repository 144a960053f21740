"""``troupe pods``: what pods there are, and renting, ending and reconciling those that cost money."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from rich.console import Console

from controlplane.cli import show
from controlplane.client import Client, Json
from controlplane.errors import NotFound

OPEN = ("requested", "booting", "joined", "ending")
OVER = ("ending", "ended", "failed")
LOOK_SECONDS = 3.0
RENT_FIELDS = {
    "gpu": "gpus", "memory": "min_memory_gb", "count": "gpu_count", "max_price": "max_price_per_hour",
    "max_hours": "max_hours", "cloud": "cloud", "data_centre": "data_centres", "label": "labels",
}  # fmt: skip
DONE = {
    "ended": "ended", "adopted": "taken into the books", "gone": "no longer there", "given_up": "given up",
}  # fmt: skip


async def run(options: argparse.Namespace, console: Console) -> int:
    """Do what comes behind ``troupe pods``; nothing means ``list``."""
    work = {"list": pods, "rentals": rentals, "rent": rent, "end": end, "reconcile": reconcile}
    async with Client(options.url) as client:
        return await work[options.action or "list"](client, options, console)


async def pods(client: Client, options: argparse.Namespace, console: Console) -> int:
    """List pods, and below them the rented ones that have not joined or are going."""
    rented = await client.get("/rentals", limit=100)
    page = await client.get("/pods")
    if options.json:
        return _print_json(console, page)
    prices = {rental["pod_id"]: rental["price_per_hour"] for rental in rented["items"]}
    columns = ("id", "name", "state", "boot", "price/h", "restarts", "gpu", "labels", "address")
    show.table(console, columns, [_pod_row(pod, prices.get(pod["id"])) for pod in page["items"]])
    waiting = [rental for rental in rented["items"] if rental["state"] in OPEN and rental["state"] != "joined"]
    if waiting:
        console.print()
        _show_rentals(console, waiting, "Rented, not among the pods yet or going")
    return 0


async def rentals(client: Client, options: argparse.Namespace, console: Console) -> int:
    """List what was rented, newest first, with what it has cost so far."""
    page = await client.get("/rentals", limit=options.limit)
    if options.json:
        return _print_json(console, page)
    _show_rentals(console, page["items"])
    running = [rental for rental in page["items"] if rental["state"] in OPEN]
    spent = sum(rental["price_per_hour"] or 0.0 for rental in running)
    console.print(f"{len(running)} rented now, {_dollars(spent)} per hour")
    return 0


async def rent(client: Client, options: argparse.Namespace, console: Console) -> int:
    """Rent a pod; with ``--wait``, follow it until it can work."""
    body = {field: getattr(options, name) or None for name, field in RENT_FIELDS.items()}
    rental = (await client.post("/rentals", body))["rental"]
    if not options.json:
        price = _price(rental["price_per_hour"])
        console.print(f"rental {rental['id']}: {rental['gpu']} at {price}, {rental['state']}", markup=False)
    if options.wait:
        rental = await _follow(client, rental, console, quiet=options.json)
    if options.json:
        _print_json(console, rental)
    return 1 if rental["state"] in OVER else 0


async def end(client: Client, options: argparse.Namespace, console: Console) -> int:
    """End rented pods, named by rental, pod or the provider's id."""
    known = await _all_rentals(client)
    ended = []
    for name in options.ids:
        rental = next((one for one in known if name in (one["id"], one["pod_id"], one["provider_id"])), None)
        if rental is None:
            raise NotFound(f"{name} was not rented by this server, so it is not this server's to end.")
        ended.append((await client.delete(f"/rentals/{quote(rental['id'])}"))["rental"])
    if options.json:
        return _print_json(console, {"items": ended})
    _show_rentals(console, ended)
    return 0


async def reconcile(client: Client, options: argparse.Namespace, console: Console) -> int:
    """Bring provider and books together; exit code 1 where something could not be done."""
    report = await client.post("/rentals/reconcile", {})
    if options.json:
        _print_json(console, report)
    else:
        for kind, words in DONE.items():
            for one in report[kind]:
                console.print(f"{words}: {one['name']} ({one['reason']})", markup=False, soft_wrap=True)
        for problem in report["problems"]:
            console.print(f"not done: {problem}", markup=False, soft_wrap=True)
        if not any(report.values()):
            console.print("provider and books agree")
    return 1 if report["problems"] else 0


async def _all_rentals(client: Client) -> list[Json]:
    found: list[Json] = []
    cursor = None
    while True:
        page = await client.get("/rentals", limit=100, cursor=cursor)
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


async def _follow(client: Client, rental: Json, console: Console, *, quiet: bool) -> Json:
    """Wait until the rental's pod can work, or will not; every change is told in a line."""
    told = ""
    while True:
        rental = await client.get(f"/rentals/{quote(rental['id'])}")
        pod = next((pod for pod in (await client.get("/pods"))["items"] if pod["id"] == rental["pod_id"]), None)
        words = _words(rental, pod)
        if words != told and not quiet:
            console.print(words, markup=False, soft_wrap=True)
        told = words
        if rental["state"] in OVER or (pod is not None and pod["state"] in ("ready", "busy")):
            return rental
        await asyncio.sleep(LOOK_SECONDS)


def _words(rental: Mapping[str, Any], pod: Mapping[str, Any] | None) -> str:
    if pod is None:
        return f"{rental['state']} {rental['reason']}".strip()
    return " ".join(part for part in (pod["name"], pod["state"], _boot(pod)) if part)


def _pod_row(pod: Mapping[str, Any], rent: float | None) -> Sequence[Any]:
    price = rent if pod["price_per_hour"] is None else pod["price_per_hour"]
    restarts = f"{pod['restarts']} ({pod['restart_reason']})" if pod["restart_reason"] else pod["restarts"]
    return (
        pod["id"], pod["name"], pod["state"], _boot(pod), _price(price), restarts,
        pod["gpu"], ", ".join(pod["labels"]), pod["address"],
    )  # fmt: skip


def _boot(pod: Mapping[str, Any]) -> str:
    """How far a joining pod is: ``models 40 % (sd_xl_base_1.0.safetensors)``."""
    boot = pod.get("boot")
    if not boot or pod["state"] != "joining":
        return ""
    percent = f" {boot['percent']:.0f} %" if boot.get("percent") is not None else ""
    return f"{boot['phase']}{percent}" + (f" ({boot['detail']})" if boot.get("detail") else "")


def _show_rentals(console: Console, items: Sequence[Mapping[str, Any]], title: str = "") -> None:
    columns = ("rental", "state", "gpu", "price/h", "cost", "pod", "at the provider", "why")
    rows = [
        (
            one["id"], one["state"], one["gpu"], _price(one["price_per_hour"]), _dollars(one["cost"]),
            one["pod_id"] or "", one["provider_id"] or "", one["reason"],
        )
        for one in items
    ]  # fmt: skip
    show.table(console, columns, rows, title)


def _price(dollars: float | None) -> str:
    return "" if dollars is None else f"{_dollars(dollars)}/h"


def _dollars(amount: float) -> str:
    return f"${amount:.2f}"


def _print_json(console: Console, value: Mapping[str, Any]) -> int:
    console.print(json.dumps(value, indent=2, ensure_ascii=False), markup=False, soft_wrap=True)
    return 0
