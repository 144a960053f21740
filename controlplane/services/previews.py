"""Previews: what a picture or a video looks like while it is made, kept in the blob store until its attempt ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

from controlplane.domain.assets import preview_keys
from controlplane.domain.jobs import Job
from controlplane.ports import BlobStore
from controlplane.services.pictures import UnreadablePicture, open_upright, shrunk

log = logging.getLogger(__name__)

EXPECTED_SECONDS = 2.0
"""Whoever makes a picture in less gains nothing by a preview."""
PAUSE_SECONDS = 2.0
"""Of one job at most one preview in so long."""
MOST_BYTES = 4 * 2**20
MOST_PIXELS = 4_000_000
SIDE = 512
QUALITY = 80


@dataclass
class _Shown:
    number: int = 0
    at: float = float("-inf")
    storing: asyncio.Task[None] | None = None
    closed: bool = False


class Previews:
    """The previews of the jobs that one process carries; call it from the event loop.

    A job's previews take turns under two keys that its id tells: whoever ends the job, in whatever process, can drop
    them, and the one shown last stays readable while the next one is written.
    """

    def __init__(self, store: BlobStore | None) -> None:
        """Without a store there are no previews."""
        self._store = store
        self._shown: dict[str, _Shown] = {}

    def wanted(self, job: Job) -> bool:
        """Whether a pod is to send previews of a job."""
        return self._store is not None and job.kind != "train" and job.estimate_seconds >= EXPECTED_SECONDS

    def take(self, job: Job, picture: bytes, stored: Callable[[str], None]) -> None:
        """Store a preview beside everything else, unless one is too fresh; ``stored`` is then called with its key."""
        if self._store is None:
            return
        shown, now = self._shown.setdefault(job.id, _Shown()), time.monotonic()
        if shown.storing is not None or now - shown.at < PAUSE_SECONDS or len(picture) > MOST_BYTES:
            return
        shown.at, shown.number = now, shown.number + 1
        key = keys_of(job)[shown.number % 2]
        shown.storing = asyncio.create_task(self._keep(self._store, shown, key, picture, stored))

    async def drop(self, job: Job) -> None:
        """Have no preview of a job any more; to be called before the outcome of its attempt is stored."""
        if self._store is None or not self.wanted(job):
            return
        shown = self._shown.pop(job.id, None)
        if shown is not None:
            shown.closed = True
            if shown.storing is not None:
                await asyncio.wait([shown.storing])
        for key in keys_of(job):
            try:
                await self._store.delete(key)
            except Exception:  # a store that is away must not keep a job from its end
                log.exception("preview %s was not deleted", key)

    async def _keep(
        self, store: BlobStore, shown: _Shown, key: str, picture: bytes, stored: Callable[[str], None]
    ) -> None:
        try:
            jpeg = await asyncio.to_thread(as_jpeg, picture)
            await store.delete(key)
            await store.put(key, jpeg, "image/jpeg")
        except UnreadablePicture as error:
            log.info("a preview is left out: %s", error)
        except Exception:  # a job goes on without its preview
            log.exception("a preview was not stored")
        else:
            if not shown.closed:
                stored(key)
        finally:
            shown.storing = None


def keys_of(job: Job) -> tuple[str, str]:
    """Where a job's previews take turns."""
    return preview_keys(job.project_id, job.character_id, job.id)


def as_jpeg(picture: bytes) -> bytes:
    """A small JPEG of what a pod sent, which is decoded for that. Raises UnreadablePicture."""
    buffer = BytesIO()
    shrunk(open_upright(picture, MOST_BYTES, MOST_PIXELS), SIDE).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
