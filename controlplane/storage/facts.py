"""Facts: what the local store knows of a blob beside its bytes, kept on the file itself; only ever a cache of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path

from controlplane.ports import BlobInfo

ATTRIBUTE = "user.troupe.facts"
HIDDEN = ".facts"
"""The folder for file systems without extended attributes."""
HAS_ATTRIBUTES = hasattr(os, "setxattr")


class Facts:
    """Size, media type and sha256 by key: an extended attribute of the blob, else a small file beside the store."""

    def __init__(self, root: Path) -> None:
        self._folder = root / HIDDEN
        self._folder.mkdir(parents=True, exist_ok=True)

    def note(self, key: str, file: int | Path, info: BlobInfo) -> None:
        """Keep what is known; ``file`` is the blob's path, or its descriptor while it still arrives."""
        told = json.dumps({"bytes": info.bytes, "media_type": info.media_type, "sha256": info.sha256})
        if HAS_ATTRIBUTES:
            with contextlib.suppress(OSError):  # not every file system has attributes
                return os.setxattr(file, ATTRIBUTE, told.encode())
        scratch = self._folder / secrets.token_hex(12)
        scratch.write_text(told)
        scratch.replace(self._path(key))

    def read(self, key: str, path: Path, size: int) -> BlobInfo | None:
        """What was kept of a blob that now has ``size`` bytes; None where nothing was, or of another file."""
        try:
            facts = json.loads(self._attribute(path) or self._path(key).read_bytes())
            if facts["bytes"] == size:
                return BlobInfo(key, size, facts["media_type"], facts["sha256"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # the blob itself says it all, only slower
        return None

    def forget(self, key: str) -> None:
        """Drop what goes not with the blob itself."""
        self._path(key).unlink(missing_ok=True)

    def _attribute(self, path: Path) -> bytes:
        if HAS_ATTRIBUTES:
            with contextlib.suppress(OSError):
                return os.getxattr(path, ATTRIBUTE)
        return b""

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
