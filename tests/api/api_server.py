"""A real server on loopback with a real database, and a client that checks answers against the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from jsonschema import Draft202012Validator

from controlplane.api.openapi import document
from controlplane.api.routes import ROUTES
from controlplane.app import running
from controlplane.settings import Settings
from controlplane.storage.secrets import load_secrets

DOCUMENT = document(ROUTES, "test")


@dataclass(frozen=True)
class Server:
    """A server that runs in a thread of its own."""

    url: str
    settings: Settings

    @property
    def join_token(self) -> str:
        return load_secrets(self.settings).join_token


@dataclass(frozen=True)
class Answer:
    """One checked answer."""

    status: int
    headers: Any
    data: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.data)


@contextmanager
def serving(settings: Settings) -> Iterator[Server]:
    """Run the real server, background work included, until the block ends."""
    loop = asyncio.new_event_loop()
    ready: asyncio.Future[str] = loop.create_future()
    stop = asyncio.Event()

    async def serve() -> None:
        try:
            async with running(settings) as url:
                ready.set_result(url)
                await stop.wait()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            raise

    finished = loop.create_task(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        url = asyncio.run_coroutine_threadsafe(_value_of(ready), loop).result(30)
        yield Server(url, settings)
    finally:
        loop.call_soon_threadsafe(stop.set)
        asyncio.run_coroutine_threadsafe(_value_of(finished), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _value_of(future: asyncio.Future[Any]) -> Any:
    return await future


class Api:
    """An HTTP client for one server. Every JSON answer must be what the OpenAPI document promises."""

    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        url = path if path.startswith("http") else f"{self.server.url}{path}"
        async with self.session.request(method, url, allow_redirects=False, **options) as response:
            answer = Answer(response.status, response.headers, await response.read())
        check_answer(method, url.removeprefix(self.server.url), answer)
        return answer

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.call("GET", path, **options)

    async def post(self, path: str, **options: Any) -> Answer:
        return await self.call("POST", path, **options)

    async def create(self, fields: dict[str, str], images: dict[str, bytes]) -> Answer:
        return await self.post("/characters", data=form_of(fields, images))


def form_of(fields: dict[str, str], images: dict[str, bytes]) -> aiohttp.FormData:
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        form.add_field(name, value)
    for name, data in images.items():
        form.add_field("images", data, filename=name, content_type="application/octet-stream")
    return form


def check_answer(method: str, target: str, answer: Answer) -> None:
    """Fail unless the document promises this status and this body for this address."""
    media_type = answer.headers.get("Content-Type", "").split(";")[0]
    promised = _promised(method, target.split("?")[0], answer.status)
    if media_type == "application/problem+json":
        schema = {"$ref": "#/components/schemas/Problem"}
        assert json.loads(answer.data)["status"] == answer.status
    elif media_type == "application/json":
        assert promised is not None, f"{method} {target} is not in the document"
        schema = promised["content"]["application/json"]["schema"]
    else:
        return
    if promised is not None:
        assert media_type in promised.get("content", {}), f"{method} {target} {answer.status}: {media_type}"
    validator = Draft202012Validator(
        {**schema, "components": DOCUMENT["components"]}, format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    validator.validate(json.loads(answer.data))


def _promised(method: str, path: str, status: int) -> dict[str, Any] | None:
    """What the document says of this status; None where it does not know the address or method at all."""
    for template, operations in DOCUMENT["paths"].items():
        pattern = re.sub(r"\\\{key\\\}", ".+", re.escape(template))
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", pattern)
        if re.fullmatch(pattern, path) and method.lower() in operations:
            responses = operations[method.lower()]["responses"]
            assert str(status) in responses, f"{method} {template} does not promise {status}"
            return dict(responses[str(status)])
    return None


def pod_body(**changes: Any) -> dict[str, Any]:
    """A registration of a pod that nothing stands behind; no job fits its labels."""
    body = {
        "protocol": 1,
        "instance_id": "00000000-0000-4000-8000-000000000001",
        "address": "http://127.0.0.1:9",
        "token": "a pod token",
        "kind": "embedded",
        "labels": ["nothing"],
        "node_classes": ["KSampler"],
        "models": {"checkpoints": ["sketch_base.safetensors"]},
    }
    return {**body, **changes}
