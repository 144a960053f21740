"""A whole control plane's worth of services on a real SQLite file and a real store, and pictures to feed them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from controlplane.db import attempts as attempt_rows
from controlplane.db import jobs as job_rows
from controlplane.db import pods as pod_rows
from controlplane.db.database import Database
from controlplane.db.migrate import migrate
from controlplane.domain.ids import new_id, new_prompt_id
from controlplane.domain.jobs import Attempt, Job
from controlplane.domain.pods import READY, Pod
from controlplane.services import generation, training
from controlplane.services.assets import Assets
from controlplane.services.characters import Characters, Created, NewCharacter, Upload
from controlplane.services.events import Hints
from controlplane.services.generation import Generation
from controlplane.services.jobs import Jobs
from controlplane.services.training import Training
from controlplane.settings import Settings
from controlplane.storage.local import LocalStore
from controlplane.workflows.catalog import Catalog

PROJECT = "default"
COMPLETIONS = {"train": training.complete, "image": generation.complete, "video": generation.complete}


class Clock:
    """Real time."""

    def now(self) -> float:
        return time.time()


@dataclass
class Studio:
    """The services of one test, and shortcuts through a job's life without a pod."""

    folder: Path
    settings: Settings
    db: Database
    store: LocalStore
    catalog: Catalog
    jobs: Jobs
    training: Training
    assets: Assets
    characters: Characters
    generation: Generation
    pod: Pod

    def upload(self, name: str, data: bytes) -> Upload:
        path = self.folder / f"upload-{random.getrandbits(64):x}"
        path.write_bytes(data)
        return Upload(name, path)

    def pictures(self, count: int = 6, seed: int = 0) -> list[Upload]:
        return [self.upload(f"{n}.png", png(drawing(seed * 1000 + n))) for n in range(count)]

    async def create(self, name: str = "Mira", **fields: Any) -> Created:
        return await self.characters.create(PROJECT, NewCharacter(name=name, **fields), self.pictures())

    async def attempt(self, job: Job, number: int = 1) -> Attempt:
        # A place of its own on the pod for each: nothing here waits for another to end.
        attempt = Attempt(
            new_prompt_id(), PROJECT, job.id, number, self.pod.id, "client", "running", time.time(),
            slot=random.getrandbits(30),
        )  # fmt: skip
        return await self.db.write(attempt_rows.add, PROJECT, attempt)

    async def hand_over(
        self, attempt: Attempt, data: bytes, kind: str, media_type: str, index: int = 0, **told: Any
    ) -> str:
        """Ask for a ticket and store the bytes, as a node does; the asset's id."""
        body = {**upload_body(attempt.id, data, kind, media_type, index), **told}
        ticket = await self.assets.ticket(self.pod, body)
        key = ticket["upload"]["url"].split("/files/", 1)[1].split("?")[0]
        await self.store.put(key, data, media_type)
        return str(ticket["asset_id"])

    async def finish(self, job: Job, attempt: Attempt, outputs: Mapping[str, Any]) -> Any:
        """Verify and complete a job as the scheduler does."""
        assert await self.assets.verify(job, outputs) == []

        def write(c: Any) -> Any:
            result = COMPLETIONS[job.kind](c, job, attempt, outputs, time.time())
            job_rows.change(c, job, status="succeeded", result=dict(result.result), finished_at=time.time())
            return result

        return await self.db.write(write)

    async def trained(self, name: str = "Mira", **fields: Any) -> Created:
        """A character whose first training is over; the LoRA's bytes are its job's id."""
        created = await self.create(name, **fields)
        await self.train(created.job)
        return created

    async def train(self, job: Job) -> None:
        attempt = await self.attempt(job)
        asset_id = await self.hand_over(attempt, job.id.encode(), "lora", "application/octet-stream")
        await self.finish(job, attempt, {"1": {"lora": [{"asset_id": asset_id, "matched": 4, "total": 4}]}})

    async def painted(self, job: Job, node: str = "8", count: int = 1) -> list[str]:
        """Finish an image job with pictures; their asset ids."""
        attempt = await self.attempt(job)
        ids = [await self.hand_over(attempt, png(drawing(n + 77)), "output", "image/png", n) for n in range(count)]
        await self.finish(job, attempt, {node: {"assets": [{"id": one} for one in ids]}})
        return ids

    async def files(self) -> list[str]:
        """Every blob in the store, by key."""
        root = self.store.root
        paths = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
        return sorted(str(path) for path in paths if not path.parts[0].startswith("."))

    async def rows(self, table: str) -> int:
        def count(c: Any) -> int:
            return int(c.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar())

        return await self.db.read(count)


MEMORY = Path("/dev/shm")


@asynccontextmanager
async def studio(folder: Path, *, with_pod: bool = True, **settings: Any) -> AsyncIterator[Studio]:
    """Open a studio in ``folder``, or in memory where there is a file system for that: its files are synced often."""
    if not MEMORY.is_dir():
        async with _studio(folder, with_pod, settings) as opened:
            yield opened
        return
    with tempfile.TemporaryDirectory(prefix="troupe-test-", dir=MEMORY) as quick:
        async with _studio(Path(quick), with_pod, settings) as opened:
            yield opened


@asynccontextmanager
async def _studio(folder: Path, with_pod: bool, settings: Mapping[str, Any]) -> AsyncIterator[Studio]:
    clock, hints = Clock(), Hints()
    configured = Settings(data=folder / "data", **settings)
    (folder / "data").mkdir()
    (folder / "data" / "troupe.sqlite3").write_bytes(migrated())
    db = Database(configured.effective_database_url)
    store = LocalStore(folder / "data" / "files", "http://127.0.0.1/files", "secret", clock)
    catalog = Catalog.load(configured.templates)
    jobs = Jobs(db, clock, hints, on_cancelled={"train": training.on_cancelled})
    trainings = Training(db, store, catalog, configured)
    pod = some_pod()
    if with_pod:
        await db.write(pod_rows.add, PROJECT, pod)
    try:
        yield Studio(
            folder=folder,
            settings=configured,
            db=db,
            store=store,
            catalog=catalog,
            jobs=jobs,
            training=trainings,
            assets=Assets(db, store, clock, configured),
            characters=Characters(db, store, clock, configured, catalog, jobs, trainings, hints),
            generation=Generation(db, clock, configured, catalog, jobs, hints),
            pod=pod,
        )
    finally:
        await db.close()


@functools.cache
def migrated() -> bytes:
    """A freshly migrated SQLite file; migrating anew for every test would cost more than the tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.sqlite3"
        migrate(f"sqlite:///{path}")
        # Opening it once more folds the write-ahead log back into the file.
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
        return path.read_bytes()


def some_pod() -> Pod:
    now = time.time()
    return Pod(
        id=new_id("pod"),
        project_id=PROJECT,
        instance_id=new_prompt_id(),
        name="here",
        kind="embedded",
        address="http://127.0.0.1:1",
        token="token",
        key_hash="0" * 64,
        state=READY,
        protocol=1,
        node_classes=(),
        models={},
        trainers=(),
        labels=(),
        loras=(),
        created_at=now,
        last_heartbeat_at=now,
    )


def upload_body(prompt_id: str, data: bytes, kind: str, media_type: str, index: int = 0) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "name": f"{kind}-{index}",
        "media_type": media_type,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "kind": kind,
        "index": index,
        "width": None,
        "height": None,
        "duration": None,
        "fps": None,
        "frames": None,
    }


def drawing(seed: int, size: tuple[int, int] = (160, 160)) -> Image.Image:
    """A picture like no other: coloured shapes with sharp edges."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        w, h = rng.randrange(10, 80), rng.randrange(10, 80)
        pen.ellipse((x - w // 2, y - h // 2, x + w, y + h), fill=tuple(rng.randrange(256) for _ in range(3)))
    return image


def png(image: Image.Image, **options: Any) -> bytes:
    return encoded(image, "PNG", **options)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def reasons(errors: Sequence[Mapping[str, str]]) -> str:
    return " | ".join(f"{error['pointer']}: {error['detail']}" for error in errors)
