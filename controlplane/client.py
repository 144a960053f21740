"""A small HTTP client of our own REST API: what the command line, the demo and the bench talk to the server with."""

from __future__ import annotations

import asyncio
import json
import mimetypes
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from controlplane.errors import TroupeError

Json = dict[str, Any]
FINAL = ("succeeded", "failed", "cancelled")
UNREACHABLE_AFTER_SECONDS = 30.0
RECONNECT_SECONDS = 0.5
SILENCE_SECONDS = 90.0
CONNECT_SECONDS = 10.0


class RequestFailed(TroupeError):
    """The server refused the request."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        """Keep the problem document; ``status`` is HTTP's."""
        super().__init__(str(problem.get("detail") or problem.get("title") or f"The server answered {status}."))
        self.http_status = status
        self.problem_code = str(problem.get("code") or "")
        self.errors = [dict(error) for error in problem.get("errors") or []]
        self.problem = dict(problem)


class Unreachable(TroupeError):
    """The server did not answer."""


class Client:
    """One server. Use it as ``async with Client(url) as client``; raises RequestFailed and Unreachable."""

    def __init__(self, url: str) -> None:
        """``url`` is the server's address, such as ``http://127.0.0.1:8700``."""
        self.url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        self._session = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, **query: Any) -> Json:
        """Read a thing or a list; query values of None are left out."""
        return await self._json("GET", path, params={k: str(v) for k, v in query.items() if v is not None})

    async def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Json:
        """Send a JSON body; values of None are left out."""
        told = {key: value for key, value in body.items() if value is not None}
        return await self._json("POST", path, json=told, headers=headers)

    async def patch(self, path: str, body: Mapping[str, Any]) -> Json:
        """Change a thing; values of None are left out."""
        return await self._json("PATCH", path, json={key: value for key, value in body.items() if value is not None})

    async def delete(self, path: str) -> Json:
        """Delete, cancel or drain."""
        return await self._json("DELETE", path)

    async def create_character(self, name: str, images: Sequence[Path], fields: Mapping[str, Any]) -> Json:
        """Send a name and image files; answers ``{"character", "job", "dataset", "links"}``.

        ``fields`` are the other form fields; ``captions``, ``metadata`` and ``consent`` may be given as objects.
        """
        with ExitStack() as files:
            form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
            form.add_field("name", name)
            for key, value in fields.items():
                if value is not None:
                    form.add_field(key, value if isinstance(value, str) else json.dumps(value))
            for path in images:
                kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
                form.add_field("images", files.enter_context(path.open("rb")), filename=path.name, content_type=kind)
            return await self._json("POST", "/characters", data=form)

    async def import_workflow(self, path: Path, fields: Mapping[str, Any]) -> Json:
        """Send an export of ComfyUI, or a picture that carries one; fields of None are left out."""
        form = aiohttp.FormData(quote_fields=False, default_to_multipart=True)
        for key, value in fields.items():
            if value is not None:
                form.add_field(key, value if isinstance(value, str) else json.dumps(value))
        with path.open("rb") as file:
            form.add_field("file", file, filename=path.name, content_type="application/octet-stream")
            return await self._json("POST", "/workflows", data=form)

    async def job(self, job_id: str) -> Json:
        """One job as it is now."""
        return await self.get(f"/jobs/{quote(job_id)}")

    async def follow(self, job_id: str, told: Callable[[Json], None] | None = None) -> Json:
        """Wait until a job is final and answer it; ``told`` gets the data of every event of its live stream.

        A broken stream is taken up again where it broke; Unreachable after half a minute without the server.
        """
        last_id: str | None = None
        last_seen = time.monotonic()
        while True:
            try:
                async for event_id, event in self._events(job_id, last_id):
                    last_id, last_seen = event_id, time.monotonic()
                    if told is not None:
                        told(event.get("data") or {})
                job = await self.job(job_id)
                last_seen = time.monotonic()
                if job["status"] in FINAL:
                    return job
            except Unreachable:
                if time.monotonic() - last_seen > UNREACHABLE_AFTER_SECONDS:
                    raise
            await asyncio.sleep(RECONNECT_SECONDS)

    async def download(self, url: str) -> bytes:
        """The bytes behind an absolute URL or a path of this server."""
        try:
            async with self._open().get(url if "://" in url else self.url + url) as response:
                await _refuse(response)
                return await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{url}: {error}") from None

    async def _events(self, job_id: str, after: str | None) -> AsyncIterator[tuple[str | None, Json]]:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        event_id, data = after, ""
        try:
            async with self._open().get(f"{self.url}/jobs/{quote(job_id)}/events", headers=headers) as response:
                await _refuse(response)
                async for raw in response.content:
                    field, _, value = raw.decode("utf-8").rstrip("\r\n").partition(":")
                    if field == "id":
                        event_id = value.strip()
                    elif field == "data":
                        data += value.strip()
                    elif not field and not value and data:
                        yield event_id, json.loads(data)
                        data = ""
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(self._words(error)) from None

    async def _json(self, method: str, path: str, **options: Any) -> Json:
        try:
            async with self._open().request(method, self.url + path, **options) as response:
                await _refuse(response)
                return {} if response.status == 204 else await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(self._words(error)) from None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use the client as an async context manager")
        return self._session

    def _words(self, error: Exception) -> str:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return f"No answer from {self.url} ({reason or type(error).__name__})."


async def _refuse(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    try:
        problem = json.loads(await response.text())
    except ValueError:
        problem = {}
    raise RequestFailed(response.status, problem if isinstance(problem, dict) else {})
