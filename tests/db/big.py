"""A database as large as one likes, written in a few statements: finished jobs with their attempts and pictures."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from sqlalchemy import Connection, insert

from controlplane.db import tables
from controlplane.db.database import Database

AT_ONCE = 5_000
PROJECT = "default"
STATUSES = ("succeeded",) * 96 + ("failed", "failed", "failed", "cancelled")
KINDS = ("image",) * 97 + ("video", "video", "train")
BEGAN = 1_700_000_000.0
ZIPF = 0.6
"""How much more some characters have than others: 0 all the same."""


def fill(db: Database, jobs: int, characters: int, seed: int = 1) -> None:
    """Write so many finished jobs, an attempt and a picture for each, and so many characters with a version each."""
    chance = random.Random(seed)
    for rows in _batches(_characters(characters)):
        db.write_sync(_insert, tables.characters, rows)
        db.write_sync(_insert, tables.versions, [_version(one) for one in rows])
    for rows in _batches(_jobs(jobs, characters, chance)):
        db.write_sync(_insert, tables.jobs, rows)
        db.write_sync(_insert, tables.attempts, [_attempt(one) for one in rows])
        db.write_sync(_insert, tables.assets, [_asset(one, chance) for one in rows if one["status"] == "succeeded"])


def _insert(c: Connection, table: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        c.execute(insert(table), rows)


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, AT_ONCE)):
        yield batch


def _characters(number: int) -> Iterator[dict[str, Any]]:
    for n in range(number):
        yield {
            "project_id": PROJECT,
            "id": f"character-{n:06d}",
            "name": f"Character {n}",
            "class_word": "man",
            "trigger_word": f"w{n:06d}",
            "description": "",
            "subject": "fictional",
            "consent": None,
            "base_model": "sketch",
            "metadata": {},
            "active_version": 1,
            "cover_asset_id": None,
            "created_at": BEGAN + n,
            "updated_at": BEGAN + n,
        }


def _version(character: dict[str, Any]) -> dict[str, Any]:
    return {
        "project_id": PROJECT,
        "character_id": character["id"],
        "number": 1,
        "status": "ready",
        "base_model": "sketch",
        "recipe": "fast",
        "recipe_digest": "0" * 64,
        "dataset_id": f"dataset_{character['id'][10:]}",
        "job_id": f"train_{character['id'][10:]}",
        "lora_sha256": f"{int(character['id'][10:]):064x}",
        "created_at": character["created_at"],
        "finished_at": character["created_at"] + 600.0,
    }


def _jobs(number: int, characters: int, chance: random.Random) -> Iterator[dict[str, Any]]:
    for n in range(number):
        # A few characters have very many, most have a handful.
        who = int(characters * chance.random() ** (1 / (1 - ZIPF))) if characters else 0
        made = BEGAN + n * 0.5
        yield {
            "id": f"job_{n:026d}",
            "project_id": PROJECT,
            "kind": chance.choice(KINDS),
            "status": chance.choice(STATUSES),
            "character_id": f"character-{who:06d}" if characters else None,
            "version": 1,
            "base_model": "sketch",
            "template": "noop",
            "template_digest": "0" * 64,
            "seed": n,
            "request": {"prompt": "on a horse at the sea", "values": {"width": 64, "height": 64}},
            "graph": {"1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64}}},
            "files": [],
            "needs": {"nodes": ["EmptyImage"], "models": {}, "labels": [], "trainer": None, "lora_sha256": None},
            "outputs": [{"node": "1", "kind": "image"}],
            "estimate_seconds": 1.0,
            "metadata": {},
            "progress": {"phase": "done", "percent": 100.0},
            "warnings": [],
            "claim_no": 1,
            "claimed_by": "somebody",
            "deadline_at": made + 900.0,
            "created_at": made,
            "started_at": made + 1.0,
            "finished_at": made + 2.0,
        }


def _attempt(job: dict[str, Any]) -> dict[str, Any]:
    status = {"succeeded": "succeeded", "failed": "failed"}.get(job["status"], "cancelled")
    return {
        "id": f"prompt-{job['id'][4:]}",
        "project_id": PROJECT,
        "job_id": job["id"],
        "number": 1,
        "pod_id": f"pod_{job['seed'] % 100}",
        "client_id": "client",
        "status": status,
        "created_at": job["created_at"],
        "finished_at": job["finished_at"],
    }


def _asset(job: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    kind = job["kind"] if job["kind"] != "train" else "lora"
    return {
        "id": f"asset_{job['id'][4:]}",
        "project_id": PROJECT,
        "character_id": job["character_id"],
        "version": 1,
        "job_id": job["id"],
        "attempt_id": f"prompt-{job['id'][4:]}",
        "kind": kind,
        "status": "stored",
        "key": f"{PROJECT}/{job['character_id'] or '_'}/2026-11-20/{job['id']}-1.png",
        "media_type": "image/png",
        "bytes": 1000,
        "sha256": f"{job['seed']:064x}",
        "favourite": chance.random() < 0.01,
        "metadata": {},
        "created_at": job["finished_at"],
    }


def main() -> None:
    """``python -m tests.db.big <url> <jobs> <characters>``: fill a new database."""
    import sys

    from controlplane.db.migrate import migrate

    url, jobs, characters = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    migrate(url)
    began = time.perf_counter()
    fill(Database(url), jobs, characters)
    sys.stdout.write(f"{jobs:,} jobs and {characters:,} characters in {time.perf_counter() - began:.0f} s\n")


if __name__ == "__main__":
    main()
