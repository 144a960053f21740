"""The one thread that executes prompts: it outlives everything a node can do, and frees memory between prompts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from .executor import Executor
from .progress import RunProgress
from .prompt_queue import PromptQueue, QueuedPrompt
from .sockets import Hub

log = logging.getLogger(__name__)
_POLL_SECONDS = 1.0


class Worker:
    """Takes prompts from the queue until it is stopped.

    Args:
        around: a context that the whole thread works in (torch.inference_mode()).
        free: drops loaded models.
        enter: told which prompt runs (None: none), so that the nodes' host can answer for it.
    """

    def __init__(
        self,
        queue: PromptQueue,
        hub: Hub,
        executor: Executor,
        around: Callable[[], AbstractContextManager[object]],
        free: Callable[[], None],
        enter: Callable[[RunProgress | None], None],
    ) -> None:
        self._queue, self._hub, self._executor = queue, hub, executor
        self._around, self._free, self._enter = around, free, enter
        self._stop = threading.Event()
        self._unload = threading.Event()
        self._forget = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prompt-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end; a running prompt is interrupted."""
        self._stop.set()
        self._queue.interrupt()
        self._queue.close()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def alive(self) -> bool:
        return self._thread.is_alive()

    def request_free(self, unload_models: bool, free_memory: bool) -> None:
        """Handled between prompts, as ComfyUI does; `free_memory` also forgets node results."""
        if unload_models or free_memory:
            self._unload.set()
        if free_memory:
            self._forget.set()

    def _work(self) -> None:
        with self._around():
            while not self._stop.is_set():
                item = self._queue.get(_POLL_SECONDS)
                self._tidy()
                if item is not None:
                    self._run(item)

    def _run(self, item: QueuedPrompt) -> None:
        progress = RunProgress(item, self._hub)
        self._enter(progress)
        try:
            entry = self._executor.execute(progress)
        except BaseException as exc:  # the pod must never sit there with a dead worker: report and go on
            log.exception("prompt %s broke the executor", item.prompt_id)
            status = {"status_str": "error", "completed": False, "messages": [["execution_error", broken(item, exc)]]}
            entry = {"outputs": {}, "status": status, "meta": {}}
        finally:
            self._enter(None)
        self._queue.finish(item, entry)
        progress.end()

    def _tidy(self) -> None:
        if self._unload.is_set():
            self._unload.clear()
            self._free()
        if self._forget.is_set():
            self._forget.clear()
            self._executor.cache.clear()


def broken(item: QueuedPrompt, exc: BaseException) -> dict[str, object]:
    """An execution_error for a failure outside any node."""
    return {
        "prompt_id": item.prompt_id,
        "node_id": "",
        "node_type": "",
        "executed": [],
        "exception_message": f"{exc}\n",
        "exception_type": type(exc).__name__,
        "traceback": [],
        "current_inputs": {},
        "current_outputs": [],
    }
