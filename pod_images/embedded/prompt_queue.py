"""The queue of prompts, the one that runs, and the history of those that ended; process memory only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .graph import Prompt

MAX_HISTORY = 10_000


@dataclass(frozen=True)
class QueuedPrompt:
    """One accepted prompt. `interrupt` is its own flag, so an interrupt can never hit the prompt after it."""

    number: float
    prompt_id: str
    prompt: Prompt
    extra_data: dict[str, Any]
    outputs: list[str]
    arrival: int = 0
    interrupt: threading.Event = field(default_factory=threading.Event, compare=False)

    @property
    def client_id(self) -> str | None:
        client_id = self.extra_data.get("client_id")
        return None if client_id is None else str(client_id)

    def as_list(self) -> list[Any]:
        """The five items ComfyUI shows in /queue and /history."""
        return [self.number, self.prompt_id, self.prompt, self.extra_data, self.outputs]

    def rank(self) -> tuple[float, str, int]:
        return (self.number, self.prompt_id, self.arrival)


class PromptQueue:
    """Thread-safe: HTTP handlers put and read, one worker gets and finishes.

    Args:
        changed: called after every change, with the lock held (so that readers hear of changes in their order); it
            may call back into this queue from the same thread but must not block.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self._condition = threading.Condition()
        self._pending: list[QueuedPrompt] = []
        self._running: QueuedPrompt | None = None
        self._history: dict[str, dict[str, Any]] = {}
        self._arrivals = 0
        self._open = True

    def put(self, item: QueuedPrompt) -> None:
        with self._condition:
            self._pending.append(item)
            self._pending.sort(key=QueuedPrompt.rank)
            self._condition.notify()
            self._changed()

    def next_number(self) -> int:
        """A number that grows with every accepted prompt."""
        with self._condition:
            number, self._arrivals = self._arrivals, self._arrivals + 1
            return number

    def get(self, timeout: float | None = None) -> QueuedPrompt | None:
        """Waits for the next prompt and makes it the running one; None on timeout or when closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._pending or not self._open, timeout)
            if not self._pending or not self._open:
                return None
            self._running = self._pending.pop(0)
            self._changed()
            return self._running

    def finish(self, item: QueuedPrompt, entry: dict[str, Any]) -> None:
        """Writes the history entry and frees the worker, in one step for readers."""
        with self._condition:
            self._running = None
            self._history.pop(item.prompt_id, None)
            self._history[item.prompt_id] = {"prompt": item.as_list(), **entry}
            while len(self._history) > MAX_HISTORY:
                del self._history[next(iter(self._history))]
            self._changed()

    def close(self) -> None:
        with self._condition:
            self._open = False
            self._condition.notify_all()

    def snapshot(self) -> tuple[list[QueuedPrompt], list[QueuedPrompt]]:
        """(running, pending), each in order."""
        with self._condition:
            return ([self._running] if self._running else [], list(self._pending))

    def remaining(self) -> int:
        with self._condition:
            return len(self._pending) + (self._running is not None)

    def delete(self, prompt_id: str) -> bool:
        """Takes one pending prompt out; it leaves no trace. False when none is pending under that id."""
        with self._condition:
            found = next((item for item in self._pending if item.prompt_id == prompt_id), None)
            if found is not None:
                self._pending.remove(found)
                self._changed()
            return found is not None

    def clear(self) -> None:
        with self._condition:
            self._pending.clear()
            self._changed()

    def interrupt(self, prompt_id: str | None = None) -> bool:
        """Asks the running prompt to stop, only if it is `prompt_id` where one is given."""
        with self._condition:
            running = self._running
            if running is None or prompt_id not in (None, running.prompt_id):
                return False
            running.interrupt.set()
            return True

    def history(
        self, prompt_id: str | None = None, max_items: int | None = None, offset: int = -1
    ) -> dict[str, dict[str, Any]]:
        """History entries, oldest first; `max_items` alone means the newest ones."""
        with self._condition:
            if prompt_id is not None:
                return {prompt_id: self._history[prompt_id]} if prompt_id in self._history else {}
            entries = list(self._history.items())
        if offset < 0 and max_items is not None:
            offset = len(entries) - max_items
        start = max(offset, 0)
        return dict(entries[start : None if max_items is None else start + max_items])

    def forget(self, prompt_id: str) -> None:
        with self._condition:
            self._history.pop(prompt_id, None)

    def forget_all(self) -> None:
        with self._condition:
            self._history.clear()
