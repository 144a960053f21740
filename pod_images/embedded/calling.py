"""Calling a node's function over lists of inputs, and merging what the calls return."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any

from .graph import NodeInputs, Outputs
from .registry import NodeClass


def call_over_lists(
    function: Callable[..., Any], inputs: NodeInputs, takes_lists: bool, before: Callable[[], None] | None = None
) -> list[Any]:
    """Calls `function` once per list item (shorter lists repeat their last item), or once with whole lists.

    Args:
        before: run before each call; raises to stop (interrupts).
    """
    rounds: list[dict[str, Any]]
    if takes_lists:
        rounds = [dict(inputs)]
    else:
        length = max((len(values) for values in inputs.values()), default=1)
        rounds = [
            {name: values[min(index, len(values) - 1)] for name, values in inputs.items()} for index in range(length)
        ]
    results = []
    for arguments in rounds:
        if before is not None:
            before()
        results.append(_finish(function(**arguments)))
    return results


def _finish(result: Any) -> Any:
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result


def merge_returns(returns: list[Any], node_class: NodeClass) -> tuple[Outputs, dict[str, list[Any]]]:
    """Splits node returns into output lists and one `ui` dict; a `ui` that is not JSON raises TypeError here, in
    the node's own try, so that it can neither kill the socket nor poison /history.
    """
    results, panels = [], []
    for returned in returns:
        if isinstance(returned, dict):
            if "ui" in returned:
                panels.append(returned["ui"])
            if "result" in returned:
                results.append(returned["result"])
        elif returned is not None:
            results.append(returned)
    return _merge_results(results, node_class), _merge_panels(panels)


def _merge_results(results: list[Any], node_class: NodeClass) -> Outputs:
    if not results:
        return []
    count = len(node_class.RETURN_TYPES)
    flags = getattr(node_class, "OUTPUT_IS_LIST", [False] * count)
    merged: Outputs = []
    for slot in range(min(count, len(results[0]))):
        if flags[slot]:
            merged.append([value for result in results for value in result[slot]])
        else:
            merged.append([result[slot] for result in results])
    return merged


def _merge_panels(panels: list[dict[str, Any]]) -> dict[str, list[Any]]:
    if not panels:
        return {}
    merged = {key: [item for panel in panels for item in panel[key]] for key in panels[0]}
    # A round trip, not only a check: later code must see what a client will read.
    decoded: dict[str, list[Any]] = json.loads(json.dumps(merged, allow_nan=False))
    return decoded
