"""Pictures given by address: fetched from the public internet only, within bounds, never from our own network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from controlplane.errors import Unprocessable
from controlplane.services.characters import Upload

CHUNK = 1 << 18
AT_ONCE = 4
MAX_REDIRECTS = 3
SECONDS_EACH = 30.0

AddressRule = Callable[[str], bool]


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet: not loopback, private, link-local or reserved."""
    found = ip_address(address.split("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_global and not found.is_multicast


@dataclass
class Fetching:
    """The bounds of one request's pictures: bytes of each, and bytes ``left`` for all of them together.

    ``allowed`` decides on every address that is about to be dialled.
    """

    folder: Path
    max_bytes: int
    left: int
    allowed: AddressRule = is_public


class _Refused(Exception):
    """Why one address was not fetched, in words for the client."""


class _GuardedResolver(AbstractResolver):
    """Resolves a name once and dials exactly what was checked, so a name cannot change between check and use."""

    def __init__(self, allowed: AddressRule) -> None:
        self._allowed = allowed
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if not found or not all(self._allowed(one["host"]) for one in found):
            raise _Refused("its host is not on the public internet")
        return found

    async def close(self) -> None:
        await self._inner.close()


async def fetched(urls: Sequence[str], fetching: Fetching) -> list[Upload]:
    """Fetch every picture into the folder. Raises Unprocessable with a pointer for each that did not come."""
    if not urls:
        return []
    connector = aiohttp.TCPConnector(resolver=_GuardedResolver(fetching.allowed), use_dns_cache=False)
    timeout = aiohttp.ClientTimeout(total=SECONDS_EACH)
    gate = asyncio.Semaphore(AT_ONCE)

    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:

        async def one(number: int, url: str) -> Upload | str:
            async with gate:
                try:
                    return await _fetch(session, url, fetching, fetching.folder / f"fetched-{number:05d}")
                except _Refused as refusal:
                    return str(refusal)
                except TimeoutError:
                    return f"it did not come within {SECONDS_EACH:g} s"
                except (aiohttp.ClientError, OSError, ValueError) as error:
                    return f"it could not be fetched ({type(error).__name__})"

        results = await asyncio.gather(*(one(number, url) for number, url in enumerate(urls)))
    faults = [
        {"pointer": f"/image_urls/{number}", "detail": result}
        for number, result in enumerate(results)
        if isinstance(result, str)
    ]
    if faults:
        raise Unprocessable(f"{len(faults)} of {len(urls)} pictures could not be fetched.", errors=faults)
    return [result for result in results if isinstance(result, Upload)]


async def _fetch(session: aiohttp.ClientSession, address: str, fetching: Fetching, path: Path) -> Upload:
    url = URL(address)
    for _ in range(MAX_REDIRECTS + 1):
        _check(url, fetching.allowed)
        async with session.get(url, allow_redirects=False) as response:
            if response.status in (301, 302, 303, 307, 308) and "Location" in response.headers:
                url = url.join(URL(response.headers["Location"]))
                continue
            if response.status != 200:
                raise _Refused(f"its server answered {response.status}")
            await _save(response, path, fetching)
            name = PurePosixPath(URL(address).path).name or path.name
            return Upload(name, path, response.content_type)
    raise _Refused("it is redirected too often")


def _check(url: URL, allowed: AddressRule) -> None:
    if url.scheme not in ("http", "https") or not url.host or url.user is not None:
        raise _Refused("it is not a plain http(s) address")
    try:
        ip_address(url.host)
    except ValueError:
        return  # a name: the resolver decides
    if not allowed(url.host):
        raise _Refused("its host is not on the public internet")


async def _save(response: aiohttp.ClientResponse, path: Path, fetching: Fetching) -> None:
    size = 0
    with await asyncio.to_thread(path.open, "xb") as sink:
        async for chunk in response.content.iter_chunked(CHUNK):
            size += len(chunk)
            fetching.left -= len(chunk)
            if size > fetching.max_bytes:
                raise _Refused(f"it is larger than {fetching.max_bytes} bytes")
            if fetching.left < 0:
                raise _Refused("all pictures together are larger than what is taken in one request")
            await asyncio.to_thread(sink.write, chunk)
