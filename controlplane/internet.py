"""Calls to addresses that clients name: only what a rule allows is dialled, and exactly what was checked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from controlplane.domain.addresses import AddressRule, is_disguised
from controlplane.errors import WebhookUnreachable
from controlplane.ports import PostAnswer

POST_SECONDS = 15.0
HEAD_BYTES = 500
"""How much of an answer is read."""
CONNECTIONS_EACH = 16
NOT_PUBLIC = "its host is not on the public internet"


class AddressRefused(Exception):
    """Why an address is not dialled, in words for the client."""


class GuardedResolver(AbstractResolver):
    """Resolves a name once and dials exactly what was checked, so a name cannot change between check and use."""

    def __init__(self, allowed: AddressRule) -> None:
        self._allowed = allowed
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        """Every address of a name. AddressRefused where one of them is not allowed."""
        found = await self._inner.resolve(host, port, family)
        if not found or not all(self._allowed(one["host"]) for one in found):
            raise AddressRefused(NOT_PUBLIC)
        return found

    async def close(self) -> None:
        """Let go of the resolver."""
        await self._inner.close()


def guarded_connector(allowed: AddressRule) -> aiohttp.TCPConnector:
    """Connections to what ``allowed`` lets pass; check addresses without a name with ``check_url``."""
    return aiohttp.TCPConnector(resolver=GuardedResolver(allowed), use_dns_cache=False, limit_per_host=CONNECTIONS_EACH)


def check_url(url: URL, allowed: AddressRule) -> None:
    """AddressRefused for what is no plain web address; a name is left to the resolver."""
    if url.scheme not in ("http", "https") or not url.host or url.user is not None or is_disguised(url.host):
        raise AddressRefused("it is not a plain http(s) address")
    try:
        ip_address(url.host)
    except ValueError:
        return
    if not allowed(url.host):
        raise AddressRefused(NOT_PUBLIC)


@dataclass
class WebhookPoster:
    """Sends webhooks. ``allowed`` decides on every address that is about to be dialled."""

    allowed: AddressRule
    seconds: float = POST_SECONDS
    _session: aiohttp.ClientSession | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> PostAnswer:
        """Send one message and read the beginning of the answer; redirects are answers. WebhookUnreachable."""
        target = URL(url)
        try:
            check_url(target, self.allowed)
            async with self._open().post(target, data=body, headers=headers, allow_redirects=False) as response:
                head = await _head_of(response)
                return PostAnswer(response.status, head, _asked_pause(response.headers.get("Retry-After", "")))
        except AddressRefused as refusal:
            raise WebhookUnreachable(str(refusal)) from None
        except TimeoutError:
            raise WebhookUnreachable(f"there was no answer within {self.seconds:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WebhookUnreachable(_words(error)) from None

    async def close(self) -> None:
        """Let go of connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=guarded_connector(self.allowed),
                timeout=aiohttp.ClientTimeout(total=self.seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session


async def _head_of(response: aiohttp.ClientResponse) -> str:
    """The beginning of an answer's text; one that breaks off there has answered all the same."""
    head = b""
    try:
        while len(head) < HEAD_BYTES and (chunk := await response.content.read(HEAD_BYTES - len(head))):
            head += chunk
    except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError):
        pass
    if not response.content.at_eof():
        response.close()  # whatever else it says, however slowly: the connection is not worth keeping
    return head.decode("utf-8", "replace").replace("\x00", "")


def _asked_pause(retry_after: str) -> float | None:
    """Seconds of Retry-After where it is a number."""
    return float(retry_after) if re.fullmatch(r"\d{1,9}", retry_after) else None


def _words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not valid"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection: {error.os_error.strerror or type(error.os_error).__name__}"
    return f"the connection broke ({type(error).__name__})"
