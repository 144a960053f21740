"""Multipart forms: streamed to disk part by part, within bounds, never held in memory."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from aiohttp import BodyPartReader, MultipartReader, web

from controlplane.api.archives import bare_name, unpacked
from controlplane.api.reading import check_text, parse_json
from controlplane.errors import BadRequest, PayloadTooLarge, Unprocessable, UnsupportedMediaType
from controlplane.services.characters import Upload
from controlplane.settings import Settings

CHUNK = 1 << 18
MAX_FIELD_BYTES = 1 << 20
MAX_PARTS = 2000
JSON_FIELDS = frozenset({"metadata", "captions", "consent", "image_urls"})
LIST_FIELDS = frozenset({"image_urls"})
FILE_FIELD = "images"


@dataclass
class Form:
    """What a form held: its fields as JSON values by name, and its files on disk, in ``folder``."""

    folder: Path
    fields: dict[str, Any] = field(default_factory=dict)
    files: list[Upload] = field(default_factory=list)


@asynccontextmanager
async def read_form(request: web.Request, settings: Settings, file_field: str = FILE_FIELD) -> AsyncIterator[Form]:
    """Read a multipart form; its files are deleted when the block ends. A zip of images counts as its images.

    Raises UnsupportedMediaType, BadRequest (broken framing), PayloadTooLarge or Unprocessable.
    """
    if request.content_type != "multipart/form-data":
        raise UnsupportedMediaType(f"Send multipart/form-data; this is {request.content_type}.")
    if (request.content_length or 0) > settings.max_upload_bytes:
        raise PayloadTooLarge(f"At most {settings.max_upload_bytes} bytes are taken in one request.")
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="troupe-upload-"))
    try:
        form = await _Reading(folder, settings.max_upload_bytes, file_field).form(request)
        if file_field == FILE_FIELD:
            form.files = await asyncio.to_thread(unpacked, form.files, folder, settings.max_upload_bytes)
        yield form
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@dataclass
class _Reading:
    """One form being read; ``left`` is how many bytes may still come."""

    folder: Path
    left: int
    file_field: str
    parts: int = 0

    async def form(self, request: web.Request) -> Form:
        form = Form(self.folder)
        try:
            reader = await request.multipart()
            while (part := await reader.next()) is not None:
                await self._take(form, part)
        except (ValueError, AssertionError, EOFError) as error:
            raise BadRequest(f"The form is not complete or not framed as its header says: {error}") from None
        return form

    async def _take(self, form: Form, part: MultipartReader | BodyPartReader) -> None:
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise PayloadTooLarge(f"A form has at most {MAX_PARTS} parts.")
        if isinstance(part, MultipartReader) or not part.name:
            raise BadRequest("Every part of the form needs a name, and none may be a form itself.")
        check_text("/", part.name)
        if part.name == self.file_field:
            form.files.append(await self._file(part, len(form.files)))
        elif part.filename is not None:
            detail = f"files belong into '{self.file_field}'"
            raise Unprocessable(detail, errors=[{"pointer": f"/{part.name}", "detail": detail}])
        else:
            _add_field(form.fields, part.name, await self._text(part))

    async def _file(self, part: BodyPartReader, number: int) -> Upload:
        name = part.filename or f"image-{number + 1}"
        check_text(f"/{self.file_field}/{number}", name)
        path = self.folder / f"part-{number:05d}"
        sink: BinaryIO = await asyncio.to_thread(path.open, "xb")
        with sink:
            while chunk := await part.read_chunk(CHUNK):
                self._spend(len(chunk))
                await asyncio.to_thread(sink.write, chunk)
        return Upload(bare_name(name), path, part.headers.get("Content-Type", ""))

    async def _text(self, part: BodyPartReader) -> str:
        data = bytearray()
        while chunk := await part.read_chunk(CHUNK):
            self._spend(len(chunk))
            data += chunk
            if len(data) > MAX_FIELD_BYTES:
                raise PayloadTooLarge(f"The field {part.name!r} is larger than {MAX_FIELD_BYTES} bytes.")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise BadRequest(f"The field {part.name!r} is not UTF-8.") from None
        check_text(f"/{part.name}", text)
        return text

    def _spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise PayloadTooLarge("The request is larger than what is taken in one request.")


def _add_field(fields: dict[str, Any], name: str, text: str) -> None:
    if name in LIST_FIELDS and not text.lstrip().startswith("["):
        fields.setdefault(name, []).append(text.strip())
        return
    if name in fields:
        raise Unprocessable(f"{name!r} is given twice.", errors=[{"pointer": f"/{name}", "detail": "given twice"}])
    if not text.strip() and name != "name":
        return  # an empty input of a web form means: not given
    if name not in JSON_FIELDS:
        fields[name] = text
        return
    try:
        fields[name] = parse_json(text)
    except BadRequest as error:
        at = [{"pointer": f"/{name}", "detail": "is not JSON"}]
        raise BadRequest(f"The field {name!r}: {error.detail}", errors=at) from None
