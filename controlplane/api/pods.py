"""Pods as operators and their agents see them: list, register, heartbeat, drain."""

from __future__ import annotations

from aiohttp import web

from controlplane.api.auth import authenticate
from controlplane.api.context import services
from controlplane.api.reading import bearer_token, json_body
from controlplane.api.replies import json_reply, page_reply
from controlplane.api.schemas.pods import Heartbeat, RegisterPod
from controlplane.api.views import pod_body
from controlplane.errors import BadJoinToken, Unauthorized


async def list_pods(request: web.Request) -> web.Response:
    """All pods that are known."""
    pods = await services(request).pods.list(authenticate(request).project_id)
    return page_reply([pod_body(pod) for pod in pods])


async def register_pod(request: web.Request) -> web.Response:
    """Register a pod, or the same one again after a restart."""
    token = bearer_token(request)
    if token is None:
        raise BadJoinToken("Send the join token as a bearer token.", headers={"WWW-Authenticate": "Bearer"})
    services(request).pods.check_join_token(token)
    body = await json_body(request, RegisterPod)
    pod, key = await services(request).pods.register(body.model_dump(), token)
    reply = {
        "pod": pod_body(pod),
        "pod_key": key,
        "heartbeat_seconds": services(request).settings.heartbeat_seconds,
        "protocol": pod.protocol,
    }
    return json_reply(reply, status=201, headers={"Location": f"/pods/{pod.id}"})


async def heartbeat(request: web.Request) -> web.Response:
    """Note that a pod lives and what it reports; answer what is wanted of it."""
    key = bearer_token(request)
    if key is None:
        raise Unauthorized("Send the pod key as a bearer token.", headers={"WWW-Authenticate": "Bearer"})
    body = await json_body(request, Heartbeat)
    answer = await services(request).pods.heartbeat(request.match_info["pod_id"], key, body.model_dump())
    return json_reply(answer)


async def drain_pod(request: web.Request) -> web.Response:
    """Give the pod no further work."""
    pod = await services(request).pods.drain(request.match_info["pod_id"])
    return json_reply({"pod": pod_body(pod)}, status=202)
