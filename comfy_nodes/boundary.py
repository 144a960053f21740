"""What may leave a node: ordinary exceptions, plain JSON, and for IS_CHANGED a value that is never the same."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def contained(node: Callable[P, R]) -> Callable[P, R]:
    """Turn SystemExit, KeyboardInterrupt and their kin into RuntimeError.

    ComfyUI's worker thread ends for ever on a BaseException. The host's interrupt is an Exception and passes through.
    """

    @functools.wraps(node)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return node(*args, **kwargs)
        except Exception:
            raise
        except BaseException as exit_request:  # the whole point of this function
            raise RuntimeError(f"a library tried to end the process: {exit_request!r}") from exit_request

    return run


def never_the_same() -> float:
    """What IS_CHANGED answers for a node that must always run: a NaN of its own.

    ComfyUI compares by identity before it compares by value, so `math.nan`, being one object, equals itself there.
    """
    return float("nan")


def ui(**lists: list[Any]) -> dict[str, list[Any]]:
    """A node's `ui` value: every member a list of JSON values without NaN; members that are None are left out.

    Raises RuntimeError for anything that JSON cannot hold: a tensor in `ui` would end ComfyUI's process.
    """
    try:
        plain = json.loads(json.dumps(lists, allow_nan=False))
    except (TypeError, ValueError) as reason:
        raise RuntimeError(f"a node tried to return something that is not JSON: {reason}") from reason
    return {name: [_without_nulls(item) for item in items] for name, items in plain.items()}


def _without_nulls(item: Any) -> Any:
    if isinstance(item, dict):
        return {key: value for key, value in item.items() if value is not None}
    return item
