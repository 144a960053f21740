"""Pictures given by address: fetched from the public internet only, within bounds, never from our own network."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import aiohttp
from yarl import URL

from controlplane.domain.addresses import AddressRule, is_public
from controlplane.errors import Unprocessable
from controlplane.internet import AddressRefused, check_url, guarded_connector
from controlplane.services.characters import Upload

CHUNK = 1 << 18
AT_ONCE = 4
MAX_REDIRECTS = 3
SECONDS_EACH = 30.0


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


async def fetched(urls: Sequence[str], fetching: Fetching) -> list[Upload]:
    """Fetch every picture into the folder. Raises Unprocessable with a pointer for each that did not come."""
    if not urls:
        return []
    connector = guarded_connector(fetching.allowed)
    timeout = aiohttp.ClientTimeout(total=SECONDS_EACH)
    gate = asyncio.Semaphore(AT_ONCE)

    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:

        async def one(number: int, url: str) -> Upload | str:
            async with gate:
                try:
                    return await _fetch(session, url, fetching, fetching.folder / f"fetched-{number:05d}")
                except (_Refused, AddressRefused) as refusal:
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
        check_url(url, fetching.allowed)
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
