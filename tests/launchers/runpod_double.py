"""A double of RunPod's management API v2 on loopback, for renting and ending pods without paying for them.

Contract: ``data/runpod_v2_extract.json`` (its source and date stand in it). Every request is checked with it and
refused with 422 as the document says; every answer of the double is checked as well. What either side does wrong is
kept in ``faults``, which a test expects to be empty at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests.launchers import runpod_contract as contract

ACCOUNT_KEY = "rpa_an_account_key"
POLICY = '"minute";q=60;w=60, "hour";q=3000;w=3600, "day";q=50000;w=86400'
TITLES = {400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
          422: "Unprocessable Entity", 429: "Too Many Requests"}  # fmt: skip
NO_CAPACITY = "There are no longer any instances available with the requested specifications."

GPUS: tuple[dict[str, Any], ...] = (
    {"id": "NVIDIA RTX A5000", "name": "RTX A5000", "memory": 24, "price": (0.27, 0.16), "stock": "LOW"},
    {"id": "NVIDIA GeForce RTX 4090", "name": "RTX 4090", "memory": 24, "price": (0.69, 0.34), "stock": "HIGH"},
    {"id": "NVIDIA RTX 4000 Ada Generation", "name": "RTX 4000 Ada", "memory": 20, "price": (0.26, 0.2),
     "stock": "HIGH"},
    {"id": "NVIDIA L40S", "name": "L40S", "memory": 48, "price": (0.86, 0.79), "stock": "MEDIUM"},
    {"id": "NVIDIA A40", "name": "A40", "memory": 48, "price": (0.4, 0.35), "stock": "NONE"},
)  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """One request that goes wrong: what it is answered, and whether the double does what was asked first.

    ``cut`` drops the connection instead of answering; ``slow`` are the seconds before the answer.
    """

    status: int = 500
    detail: str = "something broke upstream"
    headers: Mapping[str, str] = field(default_factory=dict)
    done_first: bool = False
    cut: bool = False
    slow: float = 0.0


@dataclass(frozen=True)
class Call:
    """One request as it came."""

    method: str
    path: str
    body: Any
    at: float


class RunPodDouble:
    """The double's state. ``url`` is what TROUPE_RUNPOD_URL is set to; ``key`` is an account-wide API key."""

    def __init__(self) -> None:
        self.url = ""
        self.key = ACCOUNT_KEY
        self.pods: dict[str, dict[str, Any]] = {}
        self.pod_keys: dict[str, str] = {}
        self.gpus = [dict(gpu) for gpu in GPUS]
        self.without_capacity: set[str] = set()
        self.forbidden: set[str] = set()
        self.calls: list[Call] = []
        self.faults: list[str] = []
        self.remaining = 60
        self.reset_seconds = 0
        self.frozen = False
        self._failures: dict[str, list[Failure]] = {}

    def fail(self, method: str, *failures: Failure) -> None:
        """Let the next requests with this method (``POST``, ``GET``, ``DELETE``) go wrong, one failure each."""
        self._failures.setdefault(method, []).extend(failures)

    def plant(self, name: str, *, age_seconds: float = 3600.0, status: str = "RUNNING", **values: Any) -> str:
        """Put a pod there that nobody asked for; its id."""
        pod = self._new_pod({"name": name, "image": "somebody/else:1", "gpu": {"id": GPUS[0]["id"]}})
        pod.update({"createdAt": _moment(time.time() - age_seconds), **values})
        self.become(pod["id"], status)
        return str(pod["id"])

    def become(self, pod_id: str, status: str) -> None:
        """Move a pod on: PROVISIONING -> STARTING -> RUNNING, or EXITED, ERROR, TERMINATED."""
        pod = self.pods[pod_id]
        running = status == "RUNNING"
        pod["status"] = status
        pod["actions"] = ["stop", "restart", "terminate"] if running else ["start", "terminate"]
        pod["runtime"] = {"uptime": 1, "ports": []} if running else None
        if running and pod["startedAt"] is None:
            pod["startedAt"] = _moment(time.time())
        if status in ("EXITED", "TERMINATED"):
            pod["cost"] = 0.0

    def age(self, pod_id: str, seconds: float) -> None:
        """Let a pod have been created earlier."""
        created = datetime.fromisoformat(self.pods[pod_id]["createdAt"]).timestamp()
        self.pods[pod_id]["createdAt"] = _moment(created - seconds)

    def environment_of(self, pod_id: str) -> dict[str, str]:
        """What a process inside the pod's container finds in its environment, the pod-scoped API key included."""
        own = {"RUNPOD_POD_ID": pod_id, "RUNPOD_API_KEY": self.pod_keys[pod_id]}
        return {**self.pods[pod_id]["env"], **own}

    def names(self) -> list[str]:
        """The names of the pods that are there."""
        return [pod["name"] for pod in self.pods.values() if pod["status"] != "TERMINATED"]

    def count(self, method: str, path: str = "/v2/pods") -> int:
        """How many such requests came, whatever they were answered."""
        return sum(call.method == method and call.path.startswith(path) for call in self.calls)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, checked on its way in and out."""
        body, faults = await self._read(request)
        self.calls.append(Call(request.method, request.path, body, time.monotonic()))
        failure = self._next_failure(request.method)
        if failure is not None and not failure.done_first:
            return await self._fail(request, failure)
        answer = self._answer(request, body, faults)
        if failure is not None:
            return await self._fail(request, failure)
        return answer

    def _next_failure(self, method: str) -> Failure | None:
        waiting = self._failures.get(method)
        return waiting.pop(0) if waiting else None

    async def _fail(self, request: web.Request, failure: Failure) -> web.StreamResponse:
        await asyncio.sleep(failure.slow)
        if failure.cut:
            assert request.transport is not None
            request.transport.abort()
        return self._problem(request, failure.status, failure.detail, failure.headers)

    async def _read(self, request: web.Request) -> tuple[Any, list[str]]:
        raw = await request.read()
        faults = contract.faults_of_query(request.method, request.path, dict(request.query))
        try:
            body = json.loads(raw) if raw else None
        except ValueError as error:
            return None, [*faults, f"$: {error}"]
        faults += contract.faults_of_body(request.method, request.path, body)
        if body is not None and request.content_type != contract.JSON:
            faults.append(f"the body is sent as {request.content_type}")
        return body, faults

    def _answer(self, request: web.Request, body: Any, faults: list[str]) -> web.Response:
        holder = self._holder(request)
        if holder is None:
            return self._problem(request, 401, "missing or unknown bearer token")
        if faults:
            self.faults += [f"request {request.method} {request.path}: {fault}" for fault in faults]
            return self._problem(request, 422, "Request validation failed.", errors=faults)
        if contract.operation_of(request.method, request.path) is None:
            return self._problem(request, 404, "no such address")
        pod_id = request.path.removeprefix("/v2/pods/") if request.path.startswith("/v2/pods/") else None
        if holder != ACCOUNT_KEY and pod_id != self._pod_of_key(holder):
            return self._problem(request, 403, "access denied")
        if request.path == "/v2/catalog/gpus":
            return self._catalog(request)
        if pod_id is not None:
            return self._one_pod(request, pod_id)
        if request.method == "POST":
            return self._create(request, body)
        kept = [pod for pod in self.pods.values() if pod["status"] != "TERMINATED"]
        reply = self._reply(request, 200, {"pods": kept})
        for pod in kept if not self.frozen else ():
            self._move_on(pod)
        return reply

    def _holder(self, request: web.Request) -> str | None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        return key if scheme == "Bearer" and (key == self.key or self._pod_of_key(key)) else None

    def _pod_of_key(self, key: str) -> str | None:
        return next((pod_id for pod_id, known in self.pod_keys.items() if known == key), None)

    def _create(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        gpu = next((one for one in self.gpus if one["id"] == body.get("gpu", {}).get("id")), None)
        if "gpu" in body and "cpu" in body:
            return self._problem(request, 400, "exactly one of gpu or cpu must be set")
        if {"persistent", "network"} <= set(body.get("mounts", {})):
            return self._problem(request, 400, "mounts.persistent and mounts.network are mutually exclusive")
        if gpu is None:
            return self._problem(request, 400, "unknown GPU type")
        if gpu["id"] in self.forbidden:
            return self._problem(request, 403, "your account cannot access the requested pool")
        if gpu["id"] in self.without_capacity or gpu["stock"] == "NONE":
            return self._problem(request, 400, NO_CAPACITY)
        return self._reply(request, 201, self._new_pod(body))

    def _new_pod(self, body: Mapping[str, Any]) -> dict[str, Any]:
        pod_id = secrets.token_hex(7)
        cloud = body.get("cloud", "SECURE")
        gpu = next(one for one in self.gpus if one["id"] == body["gpu"]["id"])
        count = body["gpu"].get("count", 1)
        pod = {
            "id": pod_id,
            "name": body["name"],
            "image": body["image"],
            "args": body.get("args", ""),
            "disk": body.get("disk", 50),
            "ports": body.get("ports", []),
            "env": dict(body.get("env", {})),
            "registry": body.get("registry"),
            "status": "PROVISIONING",
            "actions": ["start", "terminate"],
            "mounts": body.get("mounts", {}),
            "gpu": {"id": gpu["id"], "count": count},
            "cloud": cloud,
            "dataCenterId": None,
            "cudaVersion": None,
            "ssh": {"proxy": None, "direct": None},
            "template": None,
            "cost": gpu["price"][cloud == "COMMUNITY"] * count,
            "locked": False,
            "globalNetworking": {"enabled": False},
            "runtime": None,
            "createdAt": _moment(time.time()),
            "startedAt": None,
        }
        self.pods[pod_id] = pod
        self.pod_keys[pod_id] = f"rpa_of_pod_{secrets.token_hex(8)}"
        return pod

    def _one_pod(self, request: web.Request, pod_id: str) -> web.Response:
        pod = self.pods.get(pod_id)
        if pod is None:
            return self._problem(request, 404, "pod not found")
        if request.method == "DELETE":
            del self.pods[pod_id]
            del self.pod_keys[pod_id]
            return self._reply(request, 204, None)
        reply = self._reply(request, 200, pod)
        if not self.frozen:
            self._move_on(pod)
        return reply

    def _move_on(self, pod: dict[str, Any]) -> None:
        """A pod is one state further each time after it was looked at."""
        following = {"PROVISIONING": "STARTING", "STARTING": "RUNNING"}.get(pod["status"])
        if following:
            pod["dataCenterId"] = pod["dataCenterId"] or "EU-RO-1"
            self.become(pod["id"], following)

    def _catalog(self, request: web.Request) -> web.Response:
        stocked = request.query.get("include") == "AVAILABILITY"
        if stocked != ("product" in request.query):
            return self._problem(request, 400, "product goes with include=AVAILABILITY")
        return self._reply(request, 200, {"gpus": [_gpu(gpu, stocked=stocked) for gpu in self.gpus]})

    def _headers(self) -> dict[str, str]:
        windows = f'"minute";r={self.remaining};t={self.reset_seconds}, "hour";r=2800;t=1812, "day";r=49500;t=45012'
        return {"RateLimit": windows, "RateLimit-Policy": POLICY}

    def _problem(
        self,
        request: web.Request,
        status: int,
        detail: str,
        headers: Mapping[str, str] | None = None,
        errors: list[str] | None = None,
    ) -> web.Response:
        body = {"title": TITLES.get(status, "Error"), "status": status, "detail": detail}
        if errors:
            body["errors"] = errors
        return self._reply(request, status, body, contract.PROBLEM, headers)

    def _reply(
        self,
        request: web.Request,
        status: int,
        body: Any,
        media_type: str = contract.JSON,
        headers: Mapping[str, str] | None = None,
    ) -> web.Response:
        found = contract.faults_of_answer(request.method, request.path, status, media_type, body)
        if contract.operation_of(request.method, request.path) is not None:
            self.faults += [f"answer {status} to {request.method} {request.path}: {fault}" for fault in found]
        data = None if body is None else json.dumps(body).encode()
        kind = {} if body is None else {"Content-Type": media_type}
        return web.Response(status=status, body=data, headers={**self._headers(), **kind, **(headers or {})})


def _gpu(gpu: Mapping[str, Any], *, stocked: bool) -> dict[str, Any]:
    secure, community = gpu["price"]
    told = {
        "id": gpu["id"],
        "name": gpu["name"],
        "pool": None,
        "manufacturer": gpu.get("manufacturer", "NVIDIA"),
        "memory": gpu["memory"],
        "secure": gpu.get("secure", True),
        "community": True,
        "price": {"secure": secure, "community": community},
        "maxCount": {"secure": 8, "community": 2},
    }
    if stocked:
        told["availability"] = gpu["stock"]
        if gpu["stock"] != "NONE":
            centres = gpu.get("centres", ("EU-RO-1", "US-KS-2"))
            told["dataCenters"] = [{"id": one, "name": one, "availability": gpu["stock"]} for one in centres]
    return told


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextlib.asynccontextmanager
async def runpod_double(configure: Callable[[RunPodDouble], None] | None = None) -> AsyncIterator[RunPodDouble]:
    """A double that listens on a free port of loopback while the block runs."""
    double = RunPodDouble()
    if configure is not None:
        configure(double)
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", double.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        double.url = f"http://{host}:{port}/v2"
        yield double
    finally:
        await runner.cleanup()
