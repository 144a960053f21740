"""Handlers of files: /view and /upload/image, kept inside the pod's three folders."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from aiohttp import web
from PIL import Image

from ..folders import Folders, PathEscapeError
from ..keys import POD

CHANNELS = ("rgb", "a")


async def view(request: web.Request) -> web.StreamResponse:
    """A file of output, temp or input; 400 for `..`, 403 for a subfolder that leaves, 404 when absent."""
    query = request.query
    filename = query.get("filename", "")
    if not filename:
        return web.Response(status=404)
    if filename.startswith("/") or ".." in filename:
        return web.Response(status=400)
    try:
        path = request.app[POD].folders.inside(query.get("type", "output"), query.get("subfolder", ""), filename)
    except KeyError:
        return web.Response(status=400)
    except PathEscapeError:
        return web.Response(status=403)
    if not path.is_file():
        return web.Response(status=404)
    headers = {"Content-Disposition": f'filename="{path.name}"'}
    if "preview" in query:
        return _preview(path, query["preview"], headers)
    if query.get("channel") in CHANNELS:
        return _channel(path, query["channel"], headers)
    return web.FileResponse(path, headers=headers)


def _preview(path: Path, wish: str, headers: dict[str, str]) -> web.Response:
    kind, _, quality = wish.partition(";")
    kind = kind if kind in ("webp", "jpeg") else "webp"
    with Image.open(path) as picture:
        buffer = io.BytesIO()
        flat = picture.convert("RGB") if kind == "jpeg" else picture
        flat.save(buffer, format=kind, quality=int(quality) if quality.isdigit() else 90)
    return web.Response(body=buffer.getvalue(), content_type=f"image/{kind}", headers=headers)


def _channel(path: Path, channel: str, headers: dict[str, str]) -> web.Response:
    with Image.open(path) as picture:
        rgba = picture.convert("RGBA")
    part = rgba.convert("RGB")
    if channel == "a":
        part = Image.new("RGBA", rgba.size)
        part.putalpha(rgba.getchannel("A"))
    buffer = io.BytesIO()
    part.save(buffer, format="PNG")
    return web.Response(body=buffer.getvalue(), content_type="image/png", headers=headers)


async def upload_image(request: web.Request) -> web.Response:
    """Stores the multipart field `image`; the same name with other bytes becomes `name (1).ext`."""
    form = await request.post()
    image = form.get("image")
    if not isinstance(image, web.FileField) or not image.filename:
        return web.Response(status=400)
    file_type, subfolder = str(form.get("type", "input")), str(form.get("subfolder", ""))
    overwrite = form.get("overwrite") in ("true", "1")
    try:
        name = _store(request.app[POD].folders, file_type, subfolder, image.filename, image.file.read(), overwrite)
    except PathEscapeError:
        return web.Response(status=400)
    return web.json_response({"name": name, "subfolder": subfolder, "type": file_type})


def _store(folders: Folders, file_type: str, subfolder: str, filename: str, content: bytes, overwrite: bool) -> str:
    """Writes an upload and returns its name. Raises PathEscapeError, KeyError for an unknown type."""
    path = folders.inside(file_type, subfolder, filename)
    if path == folders.inside(file_type, subfolder, ""):
        raise PathEscapeError(filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    original = path
    while path.exists() and not overwrite:
        if hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(content).digest():
            return path.name
        path = original.with_name(f"{original.stem} ({number}){original.suffix}")
        number += 1
    path.write_bytes(content)
    return path.name
