"""Answering repeated requests: reading the Idempotency-Key, keeping the first answer, sending it again."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from aiohttp import web

from controlplane.api.auth import authenticate
from controlplane.api.context import services
from controlplane.errors import BadRequest
from controlplane.services.idempotency import Answer, AnsweredBefore, Claim, claim

KEY_HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotency-Replayed"
KEPT_HEADERS = ("Location", "Preference-Applied")
MAX_KEY_CHARS = 255
# A structured field's string (RFC 9651, section 3.3.3): printable ASCII in quotes, quote and backslash escaped.
_QUOTED = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')

AtOnce = Callable[[Any], web.Response]


def claim_of(request: web.Request, *payload: Any, at_once: AtOnce | None = None) -> Claim | None:
    """The claim of a request by its Idempotency-Key, None where it has none; BadRequest for a malformed one.

    ``payload`` is everything the request asks for: dataclasses or JSON values. ``at_once`` makes the response of what
    the service made, where that is answered without waiting for anything.
    """
    key = idempotency_key(request)
    if key is None:
        return None
    answer_at_once = None if at_once is None else lambda made: answer_of(at_once(made))
    project_id = authenticate(request).project_id
    return claim(project_id, key, request.path, *payload, method=request.method, at_once=answer_at_once)


async def answered_once(
    request: web.Request,
    once: Claim | None,
    work: Callable[[], Awaitable[web.Response]],
    *,
    look: bool = True,
    kept: Collection[web.Response] = (),
) -> web.Response:
    """Do the work and keep its answer, or send the answer that was kept first.

    ``work`` hands ``once`` to the service, which keeps the key with what it makes; where a request is refused or fails
    before that, no key is kept. ``look`` asks for an earlier answer before ``work`` begins; ``kept`` holds, after it,
    the responses that were kept in the transaction of the work already.
    """
    if once is None:
        return await work()
    repeats = services(request).repeats
    try:
        if look:
            await repeats.look(once)
        response = await work()
    except AnsweredBefore as before:
        return _replayed(before.answer)
    if any(response is one for one in kept):
        return response
    given = answer_of(response)
    first = await repeats.settle(once, given)
    return response if first is given else _replayed(first)


def answer_of(response: web.Response) -> Answer:
    """A JSON response as it is kept."""
    headers = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
    body = response.body if isinstance(response.body, bytes) else b""
    return Answer(response.status, headers, body.decode())


def idempotency_key(request: web.Request) -> str | None:
    """The Idempotency-Key, a structured field's string or bare; BadRequest where it is malformed or over-long."""
    given = request.headers.getall(KEY_HEADER, [])
    if not given:
        return None
    if len(given) > 1:
        raise BadRequest(f"{KEY_HEADER} is given more than once.")
    key = given[0].strip()
    if key.startswith('"'):
        quoted = _QUOTED.fullmatch(key)
        if quoted is None:
            raise BadRequest(f"{KEY_HEADER} begins with a quote, but is no quoted string of printable ASCII.")
        key = re.sub(r"\\(.)", r"\1", quoted.group(1))
    if not (1 <= len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable()):
        raise BadRequest(f"An {KEY_HEADER} has 1 to {MAX_KEY_CHARS} printable ASCII characters.")
    return key


def _replayed(answer: Answer) -> web.Response:
    headers = {**answer.headers, REPLAYED_HEADER: "true"}
    return web.Response(
        body=answer.text.encode(), status=answer.status, content_type="application/json", headers=headers
    )
