"""Running one validated graph: order, cache, events, node errors; whatever a node does, this returns an entry."""

from __future__ import annotations

import math
import traceback
from typing import Any

from comfy_nodes import state

from . import wire
from .cache import CachedNode, NodeCache
from .calling import call_over_lists, merge_returns
from .graph import HiddenValues, NodeInputs, execution_order, gather_inputs
from .progress import InterruptedPromptError, RunProgress
from .registry import NodeRegistry
from .sockets import Hub

MAX_SHOWN_CHARACTERS = 2000


class _NodeStoppedError(Exception):
    """A node ended the prompt; carries the event that says how."""

    def __init__(self, message: wire.Event) -> None:
        super().__init__(message["type"])
        self.message = message


class Executor:
    """Executes prompts one after another; only the worker thread may call it."""

    def __init__(self, registry: NodeRegistry, hub: Hub) -> None:
        self._registry = registry
        self._hub = hub
        self.cache = NodeCache()

    def execute(self, progress: RunProgress) -> dict[str, Any]:
        """Runs a prompt and returns its history entry without `prompt`. Never raises for what a node does."""
        run = _Run(progress, self._registry, self._hub, self.cache)
        return run.entry()


class _Run:
    """One execution of one prompt."""

    def __init__(self, progress: RunProgress, registry: NodeRegistry, hub: Hub, cache: NodeCache) -> None:
        self._progress = progress
        self._item = progress.item
        self._registry = registry
        self._hub = hub
        self._cache = cache
        self._hidden = HiddenValues(self._item.prompt, self._item.extra_data)
        self._messages: list[list[Any]] = []
        self._outputs: dict[str, dict[str, list[Any]]] = {}
        self._executed: list[str] = []

    def entry(self) -> dict[str, Any]:
        self._say(wire.stamped("execution_start", prompt_id=self._item.prompt_id))
        try:
            self._run_nodes()
        except _NodeStoppedError as stopped:
            self._say(stopped.message)
            return self._entry("error")
        self._say(wire.stamped("execution_success", prompt_id=self._item.prompt_id))
        return self._entry("success")

    def _run_nodes(self) -> None:
        prompt = self._item.prompt
        self._cache.begin(prompt, self._registry, self._hidden)
        cached = [node_id for node_id in prompt if self._cache.get(node_id) is not None]
        self._say(wire.stamped("execution_cached", nodes=cached, prompt_id=self._item.prompt_id))
        for node_id in execution_order(prompt, self._item.outputs, set(cached).__contains__, self._is_output):
            known = self._cache.get(node_id)
            if known is None:
                known = self._run_node(node_id)
            elif known.ui:
                self._progress.executed(node_id, known.ui)
            if known.ui:
                self._outputs[node_id] = known.ui
            self._progress.finish(node_id)

    def _is_output(self, node_id: str) -> bool:
        return bool(getattr(self._registry.classes[self._item.prompt[node_id]["class_type"]], "OUTPUT_NODE", False))

    def _run_node(self, node_id: str) -> CachedNode:
        self._progress.start(node_id)
        inputs: NodeInputs = {}
        try:
            inputs = self._inputs(node_id)
            result = self._call(node_id, inputs)
        except InterruptedPromptError:
            raise _NodeStoppedError(self._interrupted(node_id)) from None
        # BaseException: a node that raises SystemExit must not end the worker thread
        except BaseException as exc:
            raise _NodeStoppedError(self._failed(node_id, exc, inputs)) from exc
        self._cache.put(node_id, result)
        self._executed.append(node_id)
        if result.ui:
            self._progress.executed(node_id, result.ui)
        return result

    def _call(self, node_id: str, inputs: NodeInputs) -> CachedNode:
        class_type = self._item.prompt[node_id]["class_type"]
        node_class = self._registry.classes[class_type]
        node = self._cache.node_object(node_id, class_type, node_class)
        function = getattr(node, node_class.FUNCTION)
        takes_lists = bool(getattr(node_class, "INPUT_IS_LIST", False))
        returns = call_over_lists(function, inputs, takes_lists, before=self._progress.check)
        return CachedNode(*merge_returns(returns, node_class))

    def _inputs(self, node_id: str) -> NodeInputs:
        node = self._item.prompt[node_id]
        node_class = self._registry.classes[node["class_type"]]
        return gather_inputs(node_id, node, node_class, self._upstream, self._hidden)

    def _upstream(self, node_id: str, slot: int) -> list[Any]:
        result = self._cache.get(node_id)
        if result is None:
            raise RuntimeError(f"node {node_id} has not run")
        return result.outputs[slot]

    def _say(self, message: wire.Event) -> None:
        """Tells the client and keeps the message for the history entry."""
        self._messages.append([message["type"], message["data"]])
        self._hub.send(self._item.client_id, message)

    def _interrupted(self, node_id: str) -> wire.Event:
        return wire.stamped("execution_interrupted", **self._where(node_id))

    def _failed(self, node_id: str, exc: BaseException, inputs: NodeInputs) -> wire.Event:
        state.note_error(f"{_type_name(exc)}: {exc}")
        return wire.stamped(
            "execution_error",
            **self._where(node_id),
            exception_message=f"{exc}\n",
            exception_type=_type_name(exc),
            traceback=traceback.format_tb(exc.__traceback__),
            current_inputs={name: [shown(value) for value in values] for name, values in inputs.items()},
            current_outputs=self._cache.known_ids(),
        )

    def _where(self, node_id: str) -> dict[str, Any]:
        return {
            "prompt_id": self._item.prompt_id,
            "node_id": node_id,
            "node_type": self._item.prompt[node_id]["class_type"],
            "executed": list(self._executed),
        }

    def _entry(self, status: str) -> dict[str, Any]:
        meta = {
            node_id: {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
            for node_id in self._outputs
        }
        return {
            "outputs": self._outputs,
            "status": {"status_str": status, "completed": status == "success", "messages": self._messages},
            "meta": meta,
        }


def _type_name(exc: BaseException) -> str:
    kind = type(exc)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def shown(value: Any) -> Any:
    """A node input as /history may show it: plain values as they are, the rest as short text."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "..."
