"""The local blob store: files in the clean layout, written atomically, reachable through signed links."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import hmac
import json
import mimetypes
import os
import re
import secrets
import stat
from collections.abc import AsyncIterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import quote, urlencode

from controlplane import failpoints
from controlplane.errors import BadRequest, Conflict, LinkExpired, NotFound
from controlplane.ports import BlobInfo, Clock
from controlplane.storage.facts import Facts

CHUNK = 1 << 20
IN_MEMORY = 1 << 19
"""Up to here (bytes) a blob is taken in whole and stored by one thread in one go."""
ABANDONED_SECONDS = 24 * 3600.0
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._\-]{0,199}")
_INCOMING = ".incoming"
_PUBLIC_FOLDER = re.compile(r"\d{4}-\d{2}-\d{2}")
"""Results lie in folders by day. Whatever lies elsewhere, reference pictures and weights, takes a signed link."""


class Digest(Protocol):
    """What a sum over bytes is fed with."""

    def update(self, data: bytes, /) -> None:
        """Take in some more."""
        ...


class LocalStore:
    """Blobs under ``root``; beside them, in hidden folders, what is still arriving, and what is known of each.

    A blob appears under its key at once, complete and on disk, or not at all.
    """

    def __init__(self, root: Path, files_url: str, signing_key: str, clock: Clock) -> None:
        """``files_url`` is the base of every link, without a trailing slash."""
        self.root = root.resolve()
        self._files_url = files_url
        self._signing_key = signing_key.encode()
        self._clock = clock
        (self.root / _INCOMING).mkdir(parents=True, exist_ok=True)
        self._facts = Facts(self.root)

    def path(self, key: str) -> Path:
        """Where the blob of ``key`` lies; BadRequest where the key is not a clean one."""
        return self.root.joinpath(*checked_key(key))

    def is_private(self, key: str) -> bool:
        """Whether reading ``key`` takes a signed link."""
        parts = checked_key(key)
        return len(parts) < 4 or not _PUBLIC_FOLDER.fullmatch(parts[2])

    async def put(self, key: str, data: bytes, media_type: str) -> BlobInfo:
        """Store bytes; Conflict where the key already holds other bytes."""
        return await asyncio.to_thread(self._store, key, BytesIO(data), media_type)

    async def put_file(self, key: str, source: BinaryIO, media_type: str) -> BlobInfo:
        """Store a file object from its current position; Conflict where the key already holds other bytes."""
        return await asyncio.to_thread(self._store, key, source, media_type)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], media_type: str, size: int) -> BlobInfo:
        """Store what ``chunks`` yields; BadRequest unless it is exactly ``size`` bytes."""
        if size <= IN_MEMORY:
            data = b"".join([chunk async for chunk in _exactly(size, chunks)])
            return await asyncio.to_thread(self._store, key, BytesIO(data), media_type)
        incoming = self._incoming_path()
        digest = hashlib.sha256()
        try:
            with await asyncio.to_thread(incoming.open, "xb") as sink:
                async for chunk in _exactly(size, chunks):
                    await asyncio.to_thread(_take, chunk, digest, sink)
                info = BlobInfo(key, size, media_type, digest.hexdigest())
                return await asyncio.to_thread(self._place, key, incoming, sink, info)
        finally:
            incoming.unlink(missing_ok=True)

    async def get(self, key: str) -> bytes:
        """Read a whole blob; NotFound where there is none."""
        try:
            return await asyncio.to_thread(self.path(key).read_bytes)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NotFound(f"There is no file {key!r}.") from None

    async def head(self, key: str) -> BlobInfo | None:
        """What is known of a blob, None where there is none."""
        return await asyncio.to_thread(self._describe, key)

    async def delete(self, key: str) -> bool:
        """Delete for good; False where there was none."""
        return await asyncio.to_thread(self._remove, key)

    def public_url(self, key: str) -> str:
        """The clean URL of a public blob."""
        checked_key(key)
        return f"{self._files_url}/{quote(key)}"

    def signed_get_url(self, key: str, seconds: float) -> str:
        """A URL that reads one blob for a while."""
        expires = int(self._clock.now() + seconds)
        query = {"exp": str(expires), "sig": self._sign("GET", key, expires, "", 0)}
        return f"{self.public_url(key)}?{urlencode(query)}"

    def signed_put(self, key: str, media_type: str, size: int, seconds: float) -> tuple[str, dict[str, str]]:
        """A URL and the headers that store one blob of exactly this type and size (bytes) for a while."""
        expires = int(self._clock.now() + seconds)
        signature = self._sign("PUT", key, expires, media_type, size)
        query = {"exp": str(expires), "ct": media_type, "len": str(size), "sig": signature}
        return f"{self.public_url(key)}?{urlencode(query)}", {"Content-Type": media_type}

    def check_get(self, key: str, query: Mapping[str, str]) -> None:
        """LinkExpired unless ``key`` may be read with this query string."""
        if "sig" in query:
            self._check("GET", key, query, "", 0)
        elif self.is_private(key):
            raise LinkExpired("This file is read through a signed link; ask the API for one.")

    def check_put(self, key: str, query: Mapping[str, str]) -> tuple[str, int]:
        """The media type and size (bytes) that this link may store; LinkExpired where it may not."""
        media_type = query.get("ct", "")
        size = _whole_number(query.get("len"))
        self._check("PUT", key, query, media_type, size)
        return media_type, size

    def clear_incoming(self) -> None:
        """Drop what uploads of an earlier, killed process left behind; what is younger than a day may be alive."""
        oldest = self._clock.now() - ABANDONED_SECONDS
        for leftover in (self.root / _INCOMING).iterdir():
            if leftover.stat().st_mtime < oldest:
                leftover.unlink(missing_ok=True)

    def _incoming_path(self) -> Path:
        return self.root / _INCOMING / secrets.token_hex(12)

    def _check(self, method: str, key: str, query: Mapping[str, str], media_type: str, size: int) -> None:
        expires = _whole_number(query.get("exp"))
        wanted = self._sign(method, key, expires, media_type, size)
        if not hmac.compare_digest(wanted.encode(), query.get("sig", "").encode()):
            raise LinkExpired("The signature of this link does not fit it.")
        if expires < self._clock.now():
            raise LinkExpired("This link has expired; ask the API for a new one.")

    def _sign(self, method: str, key: str, expires: int, media_type: str, size: int) -> str:
        message = json.dumps([method, key, expires, media_type, size])
        return hmac.new(self._signing_key, message.encode(), hashlib.sha256).hexdigest()

    def _store(self, key: str, source: BinaryIO, media_type: str) -> BlobInfo:
        self.path(key)  # a key that is not clean is refused before anything is written
        incoming = self._incoming_path()
        digest, size = hashlib.sha256(), 0
        try:
            with incoming.open("xb") as sink:
                while chunk := source.read(CHUNK):
                    size += len(chunk)
                    _take(chunk, digest, sink)
                return self._place(key, incoming, sink, BlobInfo(key, size, media_type, digest.hexdigest()))
        finally:
            incoming.unlink(missing_ok=True)

    def _place(self, key: str, incoming: Path, sink: BinaryIO, info: BlobInfo) -> BlobInfo:
        """Bring what arrived to the disk and under its key."""
        failpoints.reach("put before")
        target = self.path(key)
        self._facts.note(key, sink.fileno(), info)
        sink.flush()
        os.fsync(sink.fileno())
        try:
            _link(incoming, target)
        except FileExistsError:
            present = _digest(target) if target.is_file() else ""
            if present != info.sha256:
                raise Conflict(f"The file {key!r} already holds other bytes; keys are immutable.") from None
        _sync_folder(target.parent)
        failpoints.reach("put after")
        return info

    def _describe(self, key: str) -> BlobInfo | None:
        failpoints.reach("head")
        path = self.path(key)
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._check_present()
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        known = self._facts.read(key, path, found.st_size)
        if known is not None:
            return known
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        info = BlobInfo(key, found.st_size, media_type, _digest(path))
        self._facts.note(key, path, info)
        return info

    def _check_present(self) -> None:
        """FileNotFoundError where the whole store is away, as a volume that is not mounted: no blob is gone by that."""
        if not (self.root / _INCOMING).is_dir():
            raise FileNotFoundError(errno.ENOENT, "the blob store's folder is away", str(self.root))

    def _remove(self, key: str) -> bool:
        path = self.path(key)
        self._facts.forget(key)
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            self._check_present()
            return False
        for folder in path.parents:
            if folder == self.root:
                break
            with contextlib.suppress(OSError):  # not empty: somebody else's files
                folder.rmdir()
        return True


def checked_key(key: str) -> tuple[str, ...]:
    """The parts of a clean key; BadRequest for anything that could leave the store or hide in it."""
    parts = tuple(key.split("/"))
    if len(key) > 900 or not all(_SEGMENT.fullmatch(part) for part in parts):
        raise BadRequest("A file key is made of plain names (letters, digits, '_', '-', '.') joined by '/'.")
    return parts


def _whole_number(text: str | None) -> int:
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 18:
        raise LinkExpired("This link is not complete.")
    return int(text)


async def _exactly(size: int, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks; BadRequest where they are not ``size`` bytes together."""
    arrived = 0
    async for chunk in chunks:
        arrived += len(chunk)
        if arrived > size:
            break
        yield chunk
    if arrived != size:
        raise BadRequest(f"The link is for {size} bytes; {'more' if arrived > size else arrived} came.")


def _take(chunk: bytes, digest: Digest, sink: BinaryIO) -> None:
    digest.update(chunk)
    sink.write(chunk)


def _link(source: Path, target: Path) -> None:
    """Give ``source`` a second name. Unlike a rename this never replaces: two writers of one key cannot both win."""
    for attempt in range(4):
        try:
            return os.link(source, target)
        except FileNotFoundError:
            # The first file of its folder; or a deletion beside us has just removed the folder that it found empty.
            if attempt == 3:
                raise
        except NotADirectoryError:
            raise FileExistsError(target) from None
        _make_folder(target.parent)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, in a way that survives a crash of the machine."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
