"""One file of the Hugging Face hub: what the hub says of it, and its bytes, resumed where a connection broke."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils.tqdm import disable_progress_bars

from .model_manifest import ModelFile, ModelFilesError
from .shared_lock import Patience

# Seconds between tries that brought no new byte; after the last of them a file is given up.
PAUSE_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def free_bytes(folder: Path) -> int:
    """What the disk says is free; a volume's quota may be smaller and is then met while writing."""
    return shutil.disk_usage(folder).free


@dataclass(frozen=True)
class Surroundings:
    """What a fetch takes from its machine; tests and small disks replace parts of it."""

    endpoint: str = field(default_factory=lambda: os.environ.get("HF_ENDPOINT", "").rstrip("/"))
    token: str = field(default_factory=lambda: os.environ.get("HF_TOKEN", ""), repr=False)
    free_bytes: Callable[[Path], int] = free_bytes
    patience: Patience = field(default_factory=Patience)
    pauses: tuple[float, ...] = PAUSE_SECONDS


@dataclass(frozen=True)
class Source:
    """A file as the hub describes it; `digest` is a sha256 or, for small files kept in git, its blob's sha1."""

    file: ModelFile
    url: str
    commit: str
    size: int
    digest: str

    def part(self, path: Path) -> Path:
        # The digest is in the name: only bytes of one and the same content are ever continued.
        return path.with_name(f".{path.name}.{self.digest[:16]}.part")

    def verify(self, path: Path, told: Callable[[int], None]) -> str:
        """The file's sha256 where its content is the described one, else an empty string."""
        git = hashlib.sha1(b"blob %d\0" % path.stat().st_size)  # git's name for a blob, not a protection
        sha256 = hashlib.sha256()
        done = 0
        with path.open("rb") as content:
            while chunk := content.read(1 << 20):
                sha256.update(chunk)
                git.update(chunk)
                done += len(chunk)
                told(done)
        found = sha256.hexdigest()
        return found if self.digest in (found, git.hexdigest()) else ""


def describe(file: ModelFile, around: Surroundings, ask: bool = True) -> Source:
    """Ask the hub for size and digest, and hold them against what the manifest pins.

    With `ask` false a file that is pinned in full is described by its pins alone.
    """
    url = hf_hub_url(file.repo, file.file, revision=file.revision, endpoint=around.endpoint or None)
    if not ask and file.sha256 and file.bytes:
        return Source(file, url, file.revision, file.bytes, file.sha256)
    said = _retrying(lambda: get_hf_file_metadata(url, token=around.token or False), file, around)
    digest = (said.etag or "").lower()
    if file.sha256 and _SHA256.fullmatch(digest) and digest != file.sha256:
        raise ModelFilesError(
            "wrong_digest",
            f"{file.title}: {file.repo} now serves sha256 {digest} as {file.file}, the manifest wants {file.sha256}",
        )
    size = said.size or file.bytes
    if file.bytes and size != file.bytes:
        raise ModelFilesError(
            "wrong_digest", f"{file.title}: {file.repo} now serves {size} bytes, the manifest wants {file.bytes}"
        )
    known = _SHA256.fullmatch(digest) or _GIT_SHA1.fullmatch(digest)
    if not size or not (file.sha256 or known):
        raise ModelFilesError("no_digest", f"{file.title}: neither manifest nor hub names its digest and size")
    return Source(file, url, said.commit_hash or file.revision, size, file.sha256 or digest)


def _retrying(call: Callable[[], Any], file: ModelFile, around: Surroundings) -> Any:
    """Call the hub until it answers; a refusal is final and becomes a sentence, a fault is tried again."""
    pauses = list(around.pauses)
    while True:
        try:
            return call()
        except (httpx2.TransportError, HfHubHTTPError) as error:
            final = _sentence(error, file, around)
            if final.code != "unreachable" or not pauses:
                raise final from error
        except OfflineModeIsEnabled as error:
            raise ModelFilesError(
                "unreachable", f"{file.title} is not here and HF_HUB_OFFLINE forbids fetching it"
            ) from error
        time.sleep(pauses.pop(0))


def _sentence(error: Exception, file: ModelFile, around: Surroundings) -> ModelFilesError:
    """What an error of the hub means to the operator. Never holds the token."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    where = f"{file.repo} at {file.revision}"
    if isinstance(error, GatedRepoError) or status == 403:
        token = "the account of HF_TOKEN" if around.token else "an account and set HF_TOKEN to a token of it"
        return ModelFilesError(
            "forbidden",
            f"{file.title}: {file.repo} is gated: accept its licence at https://huggingface.co/{file.repo}"
            f" with {token}",
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return ModelFilesError("not_found", f"{file.title}: {where} has no file {file.file}")
    if isinstance(error, RevisionNotFoundError):
        return ModelFilesError("not_found", f"{file.title}: {file.repo} has no revision {file.revision}")
    if status == 401:
        # The hub answers so for a repository that does not exist, too: it does not tell strangers.
        hint = "HF_TOKEN is not accepted" if around.token else "set HF_TOKEN if it is private or gated"
        return ModelFilesError("unauthorised", f"{file.title}: the hub does not show {file.repo}: {hint}")
    if status == 404:
        return ModelFilesError("not_found", f"{file.title}: the hub has no {where}")
    if status and status not in (408, 416, 429) and status < 500:
        return ModelFilesError("refused", f"{file.title}: the hub answered HTTP {status}")
    detail = f"HTTP {status}" if status else type(error).__name__
    return ModelFilesError("unreachable", f"{file.title}: the hub cannot be reached ({detail})")


class _Part(io.FileIO):
    """The file being downloaded; tells of every write before it happens, so that the telling may stop it."""

    def __init__(self, path: Path, told: Callable[[], None]) -> None:
        super().__init__(path, "r+" if path.exists() else "w+")
        self.seek(0, io.SEEK_END)
        self._told = told

    def write(self, data: Any, /) -> int:
        self._told()
        rest = memoryview(data)
        while rest:
            rest = rest[super().write(rest) :]
        return len(data)


def download(source: Source, part: Path, around: Surroundings, told: Callable[[int], None]) -> None:
    """Bring `part` to its full size; a connection that breaks is taken up again where it broke.

    `told` hears the bytes that lie there before more are written; what it raises ends the download.
    """
    disable_progress_bars("huggingface_hub.http_get")
    headers = {"Accept-Encoding": "identity"}
    if around.token:
        headers["Authorization"] = f"Bearer {around.token}"
    pauses = list(around.pauses)
    while (have := size_of(part)) != source.size:
        if have > source.size:
            part.unlink()
            continue
        try:
            with _Part(part, lambda: told(size_of(part))) as file:
                # The resolve URL, not what it redirects to: a signed URL runs out, and the client itself keeps the
                # token from other hosts.
                http_get(source.url, file, resume_size=have, headers=headers, expected_size=source.size)
            return
        except (httpx2.TransportError, OSError) as error:
            problem = _download_problem(error, source, part, around)
        if size_of(part) > have:
            pauses = list(around.pauses)
        if problem.code != "unreachable" or not pauses:
            raise problem
        time.sleep(pauses.pop(0))


def _download_problem(error: Exception, source: Source, part: Path, around: Surroundings) -> ModelFilesError:
    """What ended a download; a part that can never be finished is removed."""
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        got = size_of(part)
        part.unlink(missing_ok=True)
        return ModelFilesError(
            "no_space",
            f"{source.file.title}: the disk (or its quota) was full after {in_gb(got)} of {in_gb(source.size)}",
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 416:
        part.unlink(missing_ok=True)
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, HfHubHTTPError):
        return ModelFilesError("disk", f"{source.file.title}: {part.parent} cannot be written: {error.strerror}")
    return _sentence(error, source.file, around)


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def in_gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10_000_000 else f"{count / 1e6:.2f} MB"
