"""Reading requests: strict JSON, queries and headers, with every fault named by its place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from controlplane.domain.texts import is_storable
from controlplane.errors import BadRequest, Unprocessable, UnsupportedMediaType

M = TypeVar("M", bound=BaseModel)

MAX_JSON_BYTES = 1 << 20
_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})\"?(?:$|[,;\s])", re.IGNORECASE)


async def json_body(request: web.Request, model: type[M]) -> M:
    """The JSON body as ``model``; BadRequest, UnsupportedMediaType or Unprocessable where it is not."""
    if request.content_type != "application/json" and not request.content_type.endswith("+json"):
        raise UnsupportedMediaType(f"Send application/json; this is {request.content_type}.")
    return validated(model, parse_json(await request.read()))


async def optional_json_body(request: web.Request, model: type[M]) -> M:
    """The same, where no body at all means every default."""
    return await json_body(request, model) if request.body_exists else validated(model, {})


def query(request: web.Request, model: type[M]) -> M:
    """The query string as ``model``; Unprocessable where it does not fit, repeated names included."""
    repeated = {name for name in request.query if len(request.query.getall(name)) > 1}
    if repeated:
        raise Unprocessable(
            "A query parameter is given more than once.",
            errors=[{"pointer": f"?{name}", "detail": "given more than once"} for name in sorted(repeated)],
        )
    for name, value in request.query.items():
        check_text(f"?{name}", value)
    try:
        return model.model_validate(dict(request.query))
    except ValidationError as error:
        raise _unprocessable(error.errors(), prefix="?", what="query") from None


def validated(model: type[M], raw: Any) -> M:
    """``raw`` as ``model``; Unprocessable with a pointer for every fault."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise _unprocessable(error.errors(), prefix="/", what="body") from None


def parse_json(data: bytes | str) -> Any:
    """Strict JSON: UTF-8, finite numbers, no member twice, no text that cannot be stored. BadRequest otherwise."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_object_without_repeats
        )
        if "\\u" in text or not is_storable(text):  # else no text of it can be one that is not
            _check_texts("", value)
    except UnicodeDecodeError:
        raise BadRequest("The body is not UTF-8.") from None
    except RecursionError:
        raise BadRequest("The JSON is nested too deeply.") from None
    except ValueError as error:
        raise BadRequest(f"The body is not JSON: {error}") from None
    return value


def check_text(pointer: str, text: str) -> None:
    """BadRequest where ``text`` holds NUL or half a surrogate pair, which no database or file name can keep."""
    if not is_storable(text):
        detail = "holds a character that cannot be stored (NUL or half a surrogate pair)"
        raise BadRequest(f"A text {detail}.", errors=[{"pointer": pointer or "/", "detail": detail}])


def wait_seconds(request: web.Request, most: float) -> float | None:
    """N of ``Prefer: wait=N``, at most ``most`` seconds; None where it was not asked for."""
    found = _PREFER_WAIT.search(", ".join(request.headers.getall("Prefer", [])))
    return min(float(found.group(1)), most) if found else None


def bearer_token(request: web.Request) -> str | None:
    """The token of ``Authorization: Bearer``, None where there is none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _check_texts(pointer: str, value: Any) -> None:
    if isinstance(value, str):
        check_text(pointer, value)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_texts(f"{pointer}/{index}", item)
    elif isinstance(value, dict):
        for name, item in value.items():
            check_text(pointer, name)
            _check_texts(f"{pointer}/{_escaped(name)}", item)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the member {repeated[:80]!r} is there twice")
    return found


def _unprocessable(faults: Iterable[ErrorDetails], *, prefix: str, what: str) -> Unprocessable:
    errors = [
        {"pointer": prefix + "/".join(_escaped(str(part)) for part in fault["loc"]), "detail": _words(fault)}
        for fault in faults
    ]
    names = ", ".join(sorted({error["pointer"] for error in errors})[:8])
    return Unprocessable(f"The {what} is not acceptable at {names}.", errors=errors[:50])


def _words(fault: ErrorDetails) -> str:
    if fault["type"] == "extra_forbidden":
        return "this field is not known here"
    if fault["type"] == "missing":
        return "this field is needed"
    return fault["msg"]


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")
