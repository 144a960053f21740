"""A zip in the place of pictures: opened within the same bounds, its members as if sent one by one."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path, PurePosixPath

from controlplane.errors import PayloadTooLarge, Unprocessable
from controlplane.services.characters import Upload

CHUNK = 1 << 18
MAX_MEMBERS = 2000


def bare_name(name: str) -> str:
    """The last part of a file name, whichever way its folders are written."""
    return PurePosixPath(name.replace("\\", "/")).name or "image"


def unpacked(files: list[Upload], folder: Path, max_bytes: int) -> list[Upload]:
    """The files; one single zip is replaced by what is in it. Raises Unprocessable or PayloadTooLarge."""
    if not any(_is_zip(file.path) for file in files):
        return files
    if len(files) > 1:
        raise _refusal("Send either pictures or one zip.")
    try:
        with zipfile.ZipFile(files[0].path) as archive:
            return _members(archive, folder, max_bytes)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        # What zipfile raises for damaged, encrypted and exotically packed archives.
        raise _refusal(f"The zip cannot be read: {error}") from None


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _members(archive: zipfile.ZipFile, folder: Path, max_bytes: int) -> list[Upload]:
    wanted = [entry for entry in archive.infolist() if not entry.is_dir() and not _is_junk(entry.filename)]
    if len(wanted) > MAX_MEMBERS:
        raise _refusal(f"The zip holds {len(wanted)} files.")
    left = max_bytes
    uploads = []
    for number, entry in enumerate(wanted):
        path = folder / f"member-{number:05d}"
        # The size that the archive declares proves nothing: count what really comes out.
        with archive.open(entry) as source, path.open("xb") as sink:
            while chunk := source.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise PayloadTooLarge("The zip unpacks to more than what is taken in one request.")
                sink.write(chunk)
        uploads.append(Upload(bare_name(entry.filename), path))
    return uploads


def _is_junk(name: str) -> bool:
    return name.startswith("__MACOSX/") or bare_name(name).startswith(".")


def _refusal(detail: str) -> Unprocessable:
    return Unprocessable(detail, errors=[{"pointer": "/images", "detail": detail}])
