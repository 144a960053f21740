"""The clients of a chaos run: they ask with a key until they are answered, repeat, cancel, and read event streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.chaos.shape import Wish
from tests.short_recipes import REPOSITORY

PORTRAITS = sorted((REPOSITORY / "examples" / "characters" / "captain-nell").glob("*.png"))[:6]
FINAL_EVENTS = {"job.succeeded": "succeeded", "job.failed": "failed", "job.cancelled": "cancelled"}
PATIENCE_SECONDS = 90.0
"""How long a client goes on asking; longer than anything here is away."""
REQUEST_SECONDS = 12.0
SILENCE_SECONDS = 8.0
PAUSES = (0.05, 0.4)
BROKEN = (aiohttp.ClientError, TimeoutError, ConnectionError)


@dataclass(frozen=True)
class Answer:
    """A 2xx to a request with a key."""

    status: int
    job_id: str
    body: bytes
    replayed: bool


@dataclass
class Ledger:
    """What the clients were promised and told; the audit holds the servers to it."""

    answers: dict[str, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    """By Idempotency-Key."""
    wishes: dict[str, Wish] = field(default_factory=dict)
    tries: int = 0
    refused: list[str] = field(default_factory=list)
    """4xx that no client of ours has earned."""
    unanswered: list[str] = field(default_factory=list)
    streams: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """(id, type) of the events that a reader of one job's stream was given, to its end."""
    cancelled: set[str] = field(default_factory=set)
    """Jobs whose cancellation was accepted."""
    heard: list[tuple[int, str, str]] = field(default_factory=list)
    """(id, type, job) of the project's events, as one reader got them over all breaks."""
    begun: set[str] = field(default_factory=set)
    final: dict[str, str] = field(default_factory=dict)
    """Job -> status, as that reader heard it."""

    def job_of(self, key: str) -> str | None:
        answers = self.answers.get(key)
        return answers[0].job_id if answers else None


class Clients:
    """All clients of one run. ``doors`` are the addresses of the control planes."""

    def __init__(self, doors: list[str], seed: int) -> None:
        self.ledger = Ledger()
        self._doors = doors
        self._random = random.Random(f"clients {seed}")
        self._changed = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Clients]:
        """Sessions, and the reader of the project's events."""
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as self._session:
            reading = asyncio.create_task(self._read_project())
            try:
                yield self
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    def outstanding(self) -> int:
        """How many accepted jobs have not been heard to end."""
        return sum(self.ledger.job_of(key) not in self.ledger.final for key in self.ledger.wishes)

    def training(self) -> int:
        """How many of them are trainings; there is one trainer."""
        wishes = self.ledger.wishes.values()
        return sum(wish.training and self.ledger.job_of(wish.key) not in self.ledger.final for wish in wishes)

    async def room(self, most: int) -> None:
        """Wait until fewer than so many jobs are outstanding."""
        while self.outstanding() >= most:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._changed.wait()

    async def _until(self, job_id: str, told: Collection[str], seconds: float) -> bool:
        """Wait until the project's events told something of a job, or its end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while job_id not in told and job_id not in self.ledger.final:
                    self._changed.clear()
                    await self._changed.wait()
        return job_id in told

    async def want(self, wish: Wish) -> None:
        """Do everything that one wish asks for, to its end."""
        self.ledger.wishes[wish.key] = wish
        await asyncio.gather(*(self._submit(wish) for _ in range(2 if wish.twin else 1)))
        job_id = self.ledger.job_of(wish.key)
        if job_id is None:
            return
        if wish.cancelled_at_work:
            await self._until(job_id, self.ledger.begun, PATIENCE_SECONDS)
        if wish.cancel_after is not None:
            await asyncio.sleep(wish.cancel_after)
            await self._cancel(job_id)
        if wish.streamed:
            self.ledger.streams[job_id] = [one[:2] async for one in self._stream(f"/jobs/{job_id}/events", True)]
        if wish.again and await self._until(job_id, self.ledger.final, PATIENCE_SECONDS):
            await self._submit(wish)

    async def _submit(self, wish: Wish) -> None:
        headers = {"Idempotency-Key": wish.key, **({"Prefer": "wait=3"} if wish.waits else {})}

        async def ask(door: str) -> bool:
            async with self._http.post(door + wish.path, headers=headers, **_payload(wish)) as response:
                body = await response.read()
            if response.status in (200, 202):
                job_id = str(json.loads(body)["job"]["id"])
                replayed = response.headers.get("Idempotency-Replayed") == "true"
                self.ledger.answers[wish.key].append(Answer(response.status, job_id, body, replayed))
                return True
            return self._is_refused(f"POST {wish.path} {wish.key}", response.status, body)

        await self._until_answered(f"POST {wish.path} {wish.key}", ask)

    async def _cancel(self, job_id: str) -> None:
        async def ask(door: str) -> bool:
            async with self._http.delete(f"{door}/jobs/{job_id}") as response:
                body = await response.read()
            if response.status in (200, 202):
                self.ledger.cancelled.add(job_id)
                return True
            if response.status == 409 and json.loads(body)["code"] == "conflict":
                return True  # it had ended before
            return self._is_refused(f"DELETE /jobs/{job_id}", response.status, body)

        await self._until_answered(f"DELETE /jobs/{job_id}", ask)

    async def _until_answered(self, what: str, ask: Callable[[str], Awaitable[bool]]) -> None:
        """Ask one door after the other until ``ask`` is satisfied; a broken connection is no answer."""
        end = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        turn = self._random.randrange(len(self._doors))
        while asyncio.get_running_loop().time() < end:
            self.ledger.tries += 1
            turn += 1
            with contextlib.suppress(*BROKEN):
                if await ask(self._doors[turn % len(self._doors)]):
                    return
            await asyncio.sleep(self._random.uniform(*PAUSES))
        self.ledger.unanswered.append(what)

    def _is_refused(self, what: str, status: int, body: bytes) -> bool:
        """Note a refusal that none of our clients has earned; False where it may be asked again."""
        if status >= 500 or status == 429 or (status == 409 and b"in_progress" in body):
            return False
        self.ledger.refused.append(f"{what}: {status} {body[:300]!r}")
        return True

    async def _read_project(self) -> None:
        async for number, kind, job_id in self._stream("/events", False):
            self.ledger.heard.append((number, kind, job_id))
            if kind == "job.started":
                self.ledger.begun.add(job_id)
                self._changed.set()
            if kind in FINAL_EVENTS:
                self.ledger.final.setdefault(job_id, FINAL_EVENTS[kind])
                self._changed.set()

    async def _stream(self, path: str, ends: bool) -> AsyncIterator[tuple[int, str, str]]:
        """(id, type, job) of events over all breaks, each resumed behind the last one at another door."""
        last, turn = 0, self._random.randrange(len(self._doors))
        while True:
            turn += 1
            url = self._doors[turn % len(self._doors)] + path
            with contextlib.suppress(*BROKEN):
                timeout = aiohttp.ClientTimeout(total=None, sock_connect=3.0, sock_read=SILENCE_SECONDS)
                async with self._http.get(url, headers={"Last-Event-ID": str(last)}, timeout=timeout) as response:
                    response.raise_for_status()
                    async for event in _events(response):
                        last = int(event["id"])
                        data = json.loads(event["data"])
                        yield last, event["event"], str(data.get("job_id") or "")
                        if ends and event["event"] in FINAL_EVENTS:
                            return
            await asyncio.sleep(self._random.uniform(*PAUSES))

    @property
    def _http(self) -> aiohttp.ClientSession:
        assert self._session is not None
        return self._session


def _payload(wish: Wish) -> dict[str, Any]:
    if not wish.training:
        return {"json": wish.body}
    form = aiohttp.FormData()
    for name, value in wish.body.items():
        form.add_field(name, str(value))
    for path in PORTRAITS:
        form.add_field("images", path.read_bytes(), filename=path.name, content_type="image/png")
    return {"data": form, "timeout": aiohttp.ClientTimeout(total=3 * REQUEST_SECONDS)}


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[Mapping[str, str]]:
    """The events of a stream as their fields; what is not whole when it breaks is dropped."""
    fields: dict[str, str] = {}
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if not line:
            if "id" in fields:
                yield fields
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            fields[name] = fields.get(name, "") + value.strip()
