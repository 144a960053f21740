"""S3Save's part of a simulated pod: a small real PNG of its own for every output, its ticket, its PUT."""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from bench.http_wire import Caller

SIDE = 64
ATTEMPTS = 12
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.4, 8.0
HandOver = Literal["inline", "background"]


class Refused(RuntimeError):
    """The control plane does not take this file, and asking again would not help."""


@dataclass(frozen=True)
class Picture:
    """A PNG and its sha256."""

    name: str
    content: bytes
    sha256: str

    def measures(self) -> dict[str, Any]:
        """What a node knows of its file before it is encoded."""
        return {
            "name": self.name, "media_type": "image/png", "width": SIDE, "height": SIDE, "duration": None, "fps": None,
            "frames": None,
        }  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """All that is known of the file."""
        return {**self.measures(), "bytes": len(self.content), "sha256": self.sha256}


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _head() -> bytes:
    rows = (b"\0" + bytes((32, 64, 128)) * SIDE) * SIDE
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows))


HEAD, END = _head(), _chunk(b"IEND", b"")


def picture(name: str, text: str) -> Picture:
    """A picture that no other prompt has: ``text`` is in it, as S3Save embeds the graph."""
    content = HEAD + _chunk(b"tEXt", b"prompt\0" + text.encode("latin-1", "replace")) + END
    return Picture(name, content, hashlib.sha256(content).hexdigest())


class Saver:
    """Hands pictures of one pod over to the control plane; needs the pod key that registration gave."""

    def __init__(self, caller: Caller, hand_over: HandOver) -> None:
        self._caller = caller
        self._hand_over = hand_over
        self._prompts: dict[str, dict[str, Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.pod_key = ""
        self.failed = 0

    async def save(self, prompt_id: str, index: int, name: str) -> dict[str, Any]:
        """What S3Save puts into its ``ui`` for one picture. Refused where the control plane wants none of it."""
        file = picture(f"{name}-{index + 1}.png", prompt_id)
        if self._hand_over == "inline":
            stored = await self._upload(prompt_id, index, file, None)
            return {"id": stored["asset_id"], "url": stored["url"], **file.facts()}
        reference = secrets.token_hex(16)
        self._told(prompt_id)["pending"].append(reference)
        task = asyncio.create_task(self._later(prompt_id, index, file, reference))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return {"upload": reference, **file.measures()}

    def uploads(self, prompt_id: str) -> dict[str, Any]:
        """The answer of GET /troupe/uploads/{prompt_id}."""
        nothing = {"prompt_id": prompt_id, "pending": [], "failed": [], "stored": []}
        return {**self._prompts.get(prompt_id, nothing), "idle_seconds": 0.0}

    def forget(self, prompt_id: str) -> None:
        self._prompts.pop(prompt_id, None)

    def _told(self, prompt_id: str) -> dict[str, Any]:
        nothing: dict[str, Any] = {"prompt_id": prompt_id, "pending": [], "failed": [], "stored": []}
        return self._prompts.setdefault(prompt_id, nothing)

    async def _later(self, prompt_id: str, index: int, file: Picture, reference: str) -> None:
        told = self._told(prompt_id)
        try:
            await self._upload(prompt_id, index, file, reference)
        except (Refused, OSError) as error:
            self.failed += 1
            told["failed"].append({"upload": reference, "reason": str(error)})
        else:
            told["stored"].append(reference)
        finally:
            told["pending"].remove(reference)

    async def _upload(self, prompt_id: str, index: int, file: Picture, reference: str | None) -> dict[str, Any]:
        wanted = {**file.facts(), "prompt_id": prompt_id, "kind": "output", "index": index}
        if reference is not None:
            wanted["upload"] = reference
        body = orjson.dumps(wanted)
        pause = FIRST_PAUSE_SECONDS
        for _ in range(ATTEMPTS):
            try:
                return await self._try(body, file.content)
            except OSError:
                await asyncio.sleep(random.uniform(pause / 4, pause))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        raise OSError("the control plane did not take the file")

    async def _try(self, body: bytes, content: bytes) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.pod_key}", "Content-Type": "application/json"}
        answered = await self._caller.call("POST", "/pods/self/uploads", headers, body)
        ticket: dict[str, Any] = orjson.loads(_taken(*answered))
        target = ticket["upload"]
        _taken(*await self._caller.call(target["method"], target["url"], target["headers"], content))
        return ticket


def _taken(status: int, body: bytes) -> bytes:
    if status >= 500 or status == 429:
        raise ConnectionError(f"{status}: {body[:200]!r}")
    if status >= 300:
        raise Refused(f"{status}: {body[:300]!r}")
    return body
