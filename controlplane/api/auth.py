"""Who is asking: users (on loopback, without keys for now) and pods (by the key they got when they registered)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address

from aiohttp import web

from controlplane.api.context import services
from controlplane.api.reading import bearer_token
from controlplane.api.stream_tickets import TICKETS
from controlplane.domain.pods import Pod
from controlplane.errors import TroupeError, Unauthorized

DEFAULT_PROJECT = "default"


@dataclass(frozen=True)
class Principal:
    """On whose behalf a request is served."""

    project_id: str


def authenticate(request: web.Request) -> Principal:
    """The user behind a request. There are no user keys yet: whoever reaches the loopback address is the owner."""
    return Principal(DEFAULT_PROJECT)


def authenticate_stream(request: web.Request) -> Principal:
    """The user behind a request for an event stream, who may bring a stream ticket in the address. BadTicket."""
    ticket = request.query.get("ticket")
    if ticket is None:
        return authenticate(request)
    return Principal(request.app[TICKETS].project_of(ticket, request.path.lstrip("/")))


async def authenticate_pod(request: web.Request) -> Pod:
    """The pod whose key the request carries; Unauthorized where there is none."""
    return await services(request).pods.authenticate(pod_key(request))


def pod_key(request: web.Request) -> str:
    """The key that the request carries, for services that look up its pod themselves; Unauthorized where none is."""
    key = bearer_token(request)
    if key is None:
        raise Unauthorized("Send the pod key as a bearer token.", headers={"WWW-Authenticate": "Bearer"})
    return key


class UnsafeHost(TroupeError):
    """The server would listen beyond this machine although it has no user keys."""

    code = "unsafe_host"


def check_host(host: str) -> None:
    """Raise UnsafeHost unless ``host`` is a loopback address or TROUPE_INSECURE=1 is set."""
    if os.environ.get("TROUPE_INSECURE") == "1" or host == "localhost":
        return
    try:
        if ip_address(host).is_loopback:
            return
    except ValueError:
        pass  # a name, which may resolve to anything
    raise UnsafeHost(
        f"TROUPE_HOST is {host!r}, but anybody who reaches this server may use it: there are no user keys yet. "
        "Listen on 127.0.0.1 (put a proxy with authentication in front), or set TROUPE_INSECURE=1 to accept that."
    )
