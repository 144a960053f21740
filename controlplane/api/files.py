"""The local store over HTTP: clean public links, signed private ones, ranges, and signed uploads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from aiohttp import web

from controlplane.api.context import services
from controlplane.api.replies import json_reply
from controlplane.errors import BadRequest, NotFound, RangeNotSatisfiable
from controlplane.ports import BlobInfo

CHUNK = 1 << 18
SHOWN_INLINE = frozenset({"image/png", "image/webp", "image/jpeg", "image/gif", "video/mp4", "video/webm"})
"""Everything else is offered for saving, so that a stored page can never run in this origin."""


class SignedFiles(Protocol):
    """What this room asks of a store that it serves itself."""

    def path(self, key: str) -> Path:
        """Where the blob lies; BadRequest for a key that is not clean."""
        ...

    def is_private(self, key: str) -> bool:
        """Whether reading takes a signed link."""
        ...

    def check_get(self, key: str, query: Mapping[str, str]) -> None:
        """LinkExpired where this link may not read."""
        ...

    def check_put(self, key: str, query: Mapping[str, str]) -> tuple[str, int]:
        """Media type and size (bytes) that this link may store; LinkExpired where it may not."""
        ...

    async def head(self, key: str) -> BlobInfo | None:
        """What is known of a blob."""
        ...

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], media_type: str, size: int) -> BlobInfo:
        """Store exactly ``size`` bytes."""
        ...


FILES: web.AppKey[SignedFiles] = web.AppKey("files")
"""Absent where another store serves its own links."""


async def get_file(request: web.Request) -> web.StreamResponse:
    """Read a stored file, whole or one range of it."""
    files, key = _files(request), request.match_info["key"]
    files.check_get(key, request.query)
    info = await files.head(key)
    if info is None:
        raise NotFound(f"There is no file {key!r}.")
    headers = _headers(info, private=files.is_private(key))
    if _matches(request.headers.get("If-None-Match"), info):
        return web.Response(status=304, headers=headers)
    span = _range(request, info)
    response = web.StreamResponse(status=200 if span is None else 206, headers=headers)
    start, stop = span or (0, info.bytes)
    if span is not None:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{info.bytes}"
    response.content_type = info.media_type
    response.content_length = stop - start
    await response.prepare(request)
    if request.method != "HEAD":
        await _send(response, files.path(key), start, stop)
    await response.write_eof()
    return response


async def put_file(request: web.Request) -> web.Response:
    """Store a file through a signed link, exactly of the signed type and size."""
    files, key = _files(request), request.match_info["key"]
    media_type, size = files.check_put(key, request.query)
    if request.content_type != media_type:
        raise BadRequest(f"The link is for {media_type}; this is {request.content_type}.")
    if request.content_length not in (None, size):
        raise BadRequest(f"The link is for {size} bytes; this is {request.content_length}.")
    info = await files.put_stream(key, request.content.iter_chunked(CHUNK), media_type, size)
    services(request).assets.stored(info)
    body = {"key": key, "bytes": info.bytes, "sha256": info.sha256}
    return json_reply(body, status=201, headers={"ETag": f'"{info.sha256}"'})


def _files(request: web.Request) -> SignedFiles:
    files = request.app.get(FILES)
    if files is None:
        raise NotFound("This server does not serve files itself.")
    return files


def _headers(info: BlobInfo, *, private: bool) -> dict[str, str]:
    inline = info.media_type in SHOWN_INLINE
    return {
        "ETag": f'"{info.sha256}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'{"inline" if inline else "attachment"}; filename="{info.key.rsplit("/", 1)[-1]}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, no-store" if private else "public, max-age=3600, immutable",
    }


def _matches(header: str | None, info: BlobInfo) -> bool:
    if header is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return "*" in tags or f'"{info.sha256}"' in tags


def _range(request: web.Request, info: BlobInfo) -> tuple[int, int] | None:
    """The wanted bytes as (start, stop); None where the whole file is wanted or the range cannot be read."""
    if "Range" not in request.headers or not _matches(request.headers.get("If-Range", "*"), info):
        return None
    try:
        wanted = request.http_range
    except ValueError:  # several ranges, another unit or nonsense: the whole file is a correct answer
        return None
    start, stop, _ = slice(wanted.start, wanted.stop).indices(info.bytes)
    if start >= stop:
        raise RangeNotSatisfiable(headers={"Content-Range": f"bytes */{info.bytes}"})
    return start, stop


async def _send(response: web.StreamResponse, path: Path, start: int, stop: int) -> None:
    file: BinaryIO = await asyncio.to_thread(path.open, "rb")
    with file:
        file.seek(start)
        while start < stop:
            chunk = await asyncio.to_thread(file.read, min(CHUNK, stop - start))
            if not chunk:
                break
            start += len(chunk)
            await response.write(chunk)
