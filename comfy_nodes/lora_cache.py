"""The pod's LoRA files: content-addressed on disk under a size limit, and the last few parsed in memory."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .lora_file import Header, LoraFileError, read_header
from .transport import Stream, TransportError, interruptible, retrying

if TYPE_CHECKING:
    from torch import Tensor

# Opens the file's body at an offset.
Source = Callable[[int], AbstractContextManager[Stream]]
# Waits some seconds (0: only looks) and raises when the prompt is interrupted.
Pause = Callable[[float], None]

DEFAULT_LIMIT_BYTES = 10 << 30
RESIDENT_FILES = 4
# What a download leaves free on the disk for everything else.
DISK_MARGIN_BYTES = 64 << 20
_NAME = re.compile(r"([0-9a-f]{64})\.safetensors")


class LoraCacheError(RuntimeError):
    """A LoRA cannot be kept on this pod: too large, no space, or not the bytes that were promised."""


@dataclass(frozen=True)
class Lora:
    """A LoRA in memory: its header and its tensors by kohya key."""

    sha256: str
    header: Header
    state_dict: Mapping[str, Tensor]


class LoraCache:
    """Content-addressed LoRA files in one folder that belongs to one process. Safe to use from many threads."""

    def __init__(self, folder: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES, resident: int = RESIDENT_FILES) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._resident_files = resident
        self._resident: OrderedDict[str, Lora] = OrderedDict()
        self._lock = threading.Lock()
        self._turns: dict[str, _Turn] = {}
        self._reserved: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, sha256: str, size: int, source: Source, pause: Pause = time.sleep) -> Lora:
        """The LoRA with this digest, from memory, else from disk, else downloaded once for all who wait.

        Raises LoraCacheError, LoraFileError (no whole safetensors file) or TransportError.
        """
        with self._turn(sha256):
            lora = self._from_memory(sha256) or self._from_disk(sha256)
            if lora is None:
                self._download(sha256, size, source, pause)
                lora = self._from_disk(sha256)
            if lora is None:
                raise LoraCacheError("the LoRA was deleted while it was being loaded")
            with suppress(FileNotFoundError):
                os.utime(self._path(sha256))
            return lora

    def discard(self, sha256: str) -> None:
        """Forget a LoRA, in memory and on disk."""
        with self._turn(sha256), self._lock:
            self._resident.pop(sha256, None)
            self._path(sha256).unlink(missing_ok=True)

    def digests(self) -> list[str]:
        """The digests of all files on disk, as a heartbeat tells them."""
        return digests_in(self._folder)

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.safetensors"

    @contextmanager
    def _turn(self, sha256: str) -> Iterator[None]:
        """One thread at a time per digest; the digest is not evicted meanwhile."""
        with self._lock:
            turn = self._turns.setdefault(sha256, _Turn())
            turn.users += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._lock:
                turn.users -= 1
                if not turn.users:
                    del self._turns[sha256]

    def _from_memory(self, sha256: str) -> Lora | None:
        with self._lock:
            lora = self._resident.get(sha256)
            if lora is not None:
                self._resident.move_to_end(sha256)
        # Whoever deleted the file (an operator, a revoked version) meant the LoRA, not the copy of it in memory.
        return lora if lora is not None and self._path(sha256).exists() else None

    def _from_disk(self, sha256: str) -> Lora | None:
        """The whole file, once: a mapped one would be read again and again, and end the process if it shrank."""
        from safetensors.torch import load

        path = self._path(sha256)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(content).hexdigest() != sha256:
            # A power cut or a failing disk: what its name promises is somewhere else still.
            path.unlink(missing_ok=True)
            return None
        lora = Lora(sha256, read_header(path), load(content))
        with self._lock:
            self._resident[sha256] = lora
            self._resident.move_to_end(sha256)
            while len(self._resident) > self._resident_files:
                self._resident.popitem(last=False)
        return lora

    def _download(self, sha256: str, size: int, source: Source, pause: Pause) -> None:
        part = self._folder / f"{sha256}.part"
        self._reserve(sha256, size)
        try:
            resumed = part.exists()
            retrying(lambda: _continue_download(part, size, source, pause), pause)
            if resumed and _sha256_of(part) != sha256:
                # What an earlier run left behind was bad: once more, from the start.
                part.unlink()
                retrying(lambda: _continue_download(part, size, source, pause), pause)
            self._keep(part, sha256)
        finally:
            with self._lock:
                self._reserved.pop(sha256, None)

    def _keep(self, part: Path, sha256: str) -> None:
        """Check the bytes and give them their name; what fails a check is deleted."""
        try:
            found = _sha256_of(part)
            if found != sha256:
                raise LoraCacheError(f"the downloaded LoRA is not what was promised: sha256 {found}, wanted {sha256}")
            read_header(part)
        except (LoraCacheError, LoraFileError):
            part.unlink(missing_ok=True)
            raise
        part.replace(self._path(sha256))

    def _reserve(self, sha256: str, size: int) -> None:
        """Set space aside before the first byte; the files used longest ago make room."""
        if size > self._limit:
            raise LoraCacheError(f"the LoRA has {size} bytes, the cache of this pod holds {self._limit}")
        with self._lock:
            others = sum(self._reserved.values())
            victims = self._oldest_first(keep=set(self._turns) | {sha256})
            while self._used(besides=sha256) + others + size > self._limit or self._disk_free() < size:
                if not victims:
                    raise LoraCacheError(f"no space for a LoRA of {size} bytes: the rest of the cache is in use")
                victim = victims.pop(0)
                self._resident.pop(victim.stem, None)
                victim.unlink(missing_ok=True)
            self._reserved[sha256] = size

    def _oldest_first(self, keep: set[str]) -> list[Path]:
        files = [(path, status) for path, status in self._files() if path.stem not in keep]
        files.sort(key=lambda file: (file[0].suffix != ".part", file[1].st_mtime, file[0].name))
        return [path for path, _status in files]

    def _used(self, besides: str) -> int:
        """Bytes on disk but for downloads, whose whole size is reserved."""
        reserved = {besides, *self._reserved}
        return sum(status.st_size for path, status in self._files() if path.stem not in reserved)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # an operator may tidy up at any time
                yield path, path.stat()

    def _disk_free(self) -> int:
        return shutil.disk_usage(self._folder).free - DISK_MARGIN_BYTES - sum(self._reserved.values())


class _Turn:
    """The lock of one digest and how many threads hold or await it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0


_caches: dict[Path, LoraCache] = {}
_caches_lock = threading.Lock()


def cache_in(folder: Path) -> LoraCache:
    """The one cache of a folder in this process; its limit comes from TROUPE_LORA_CACHE_BYTES at first use."""
    with _caches_lock:
        key = folder.resolve()
        if key not in _caches:
            _caches[key] = LoraCache(key, int(os.environ.get("TROUPE_LORA_CACHE_BYTES") or DEFAULT_LIMIT_BYTES))
        return _caches[key]


def digests_in(folder: Path) -> list[str]:
    """The digests of the LoRA files in a cache's folder."""
    return sorted(found[1] for path in folder.iterdir() if (found := _NAME.fullmatch(path.name)))


def _continue_download(part: Path, size: int, source: Source, pause: Pause) -> None:
    """Fetch what is missing of `part`; a body that ends early is a transient error, so that it is resumed."""
    have = part.stat().st_size if part.exists() else 0
    if have > size:
        part.unlink()
        have = 0
    if have == size and part.exists():
        return
    with interruptible(lambda: source(have), pause) as stream:
        if stream.start not in (0, have):
            raise TransportError(502, "bad_range", f"asked for byte {have}, was sent byte {stream.start}")
        with part.open("r+b" if part.exists() else "wb") as file:
            file.truncate(stream.start)
            file.seek(stream.start)
            for chunk in stream.chunks:
                if file.tell() + len(chunk) > size:
                    raise LoraCacheError(f"the server sends more than the {size} bytes it promised")
                file.write(chunk)
            have = file.tell()
    if have < size:
        raise TransportError(None, "cut_off", f"the download ended after {have} of {size} bytes")


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
