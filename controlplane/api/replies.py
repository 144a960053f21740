"""Writing responses: JSON, problem documents and pages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from controlplane.errors import TroupeError


def json_reply(body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer; a number that is not finite would be a defect of ours and raises."""
    return web.Response(body=_encoded(body), status=status, content_type="application/json", headers=headers)


def page_reply(items: Sequence[Mapping[str, Any]], next_cursor: str | None = None) -> web.Response:
    """One page of a list."""
    return json_reply({"items": list(items), "next_cursor": next_cursor})


def problem_reply(error: TroupeError, request: web.Request, request_id: str) -> web.Response:
    """The RFC 9457 document of an error."""
    body = {**error.as_problem(), "instance": request.path, "request_id": request_id}
    return web.Response(
        body=_encoded(body), status=error.status, content_type="application/problem+json", headers=error.headers
    )


def _plain(value: Any) -> Any:
    """What the encoder does not know: frozen mappings and sequences of ours."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)


def _encoded(body: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(body).encode()
