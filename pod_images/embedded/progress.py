"""How far each node of the running prompt is, as the cumulative map that `progress_state` shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from comfy_nodes import state

from . import wire
from .prompt_queue import QueuedPrompt
from .sockets import Hub


class InterruptedPromptError(Exception):
    """The running prompt was asked to stop."""


@dataclass
class _NodeProgress:
    value: float
    maximum: float
    state: str


class RunProgress:
    """The progress of one prompt, told to its client as it changes."""

    def __init__(self, item: QueuedPrompt, hub: Hub) -> None:
        self.item = item
        self._hub = hub
        self._nodes: dict[str, _NodeProgress] = {}
        self._current = ""
        state.running(item.prompt_id)

    def start(self, node_id: str) -> None:
        self._current = node_id
        state.at_node(node_id, self.item.prompt[node_id]["class_type"])
        self._nodes[node_id] = _NodeProgress(0.0, 1.0, "running")
        self._tell_state()
        self._hub.note_running(self.item.client_id, node_id)
        self._tell("executing", node=node_id, display_node=node_id)

    def finish(self, node_id: str) -> None:
        """A node that ran ends at its own maximum; one that came from the cache counts 1 of 1."""
        known = self._nodes.setdefault(node_id, _NodeProgress(1, 1, "running"))
        known.value, known.state = known.maximum, "finished"
        self._tell_state()

    def end(self) -> None:
        """The prompt has left the worker."""
        state.running(None)
        self._hub.note_running(None, None)
        self._tell("executing", node=None)

    def executed(self, node_id: str, ui: dict[str, Any] | None) -> None:
        self._tell("executed", node=node_id, display_node=node_id, output=ui)

    def update(self, value: int, total: int, preview: Image.Image | None = None) -> None:
        """Steps of the node that runs now. Raises InterruptedPromptError when the prompt was interrupted."""
        self.check()
        node = self._nodes[self._current]
        node.value, node.maximum = value, total
        state.stepped(value)
        self._tell_state()
        jpeg = wire.jpeg_preview(preview) if preview is not None and self.watched() else None
        with_metadata = self._hub.wants_metadata(self.item.client_id)
        if jpeg is not None and with_metadata:
            frame = wire.preview_frame_with_metadata(jpeg, self.item.prompt_id, self._current)
            self._hub.send_frame(self.item.client_id, frame)
        message = wire.event("progress", value=value, max=total, prompt_id=self.item.prompt_id, node=self._current)
        self._hub.send(self.item.client_id, message)
        if jpeg is not None and not with_metadata:
            self._hub.send_frame(self.item.client_id, wire.preview_frame(jpeg))

    def watched(self) -> bool:
        return self._hub.hears(self.item.client_id)

    def check(self) -> None:
        if self.item.interrupt.is_set():
            raise InterruptedPromptError("interrupted")

    def _tell(self, kind: str, **data: Any) -> None:
        self._hub.send(self.item.client_id, wire.event(kind, **data, prompt_id=self.item.prompt_id))

    def _tell_state(self) -> None:
        if not self.watched():
            return  # the map grows with the graph: not worth building for nobody
        nodes = {
            node_id: {
                "value": node.value,
                "max": node.maximum,
                "state": node.state,
                "node_id": node_id,
                "prompt_id": self.item.prompt_id,
                "display_node_id": node_id,
                "parent_node_id": None,
                "real_node_id": node_id,
            }
            for node_id, node in self._nodes.items()
        }
        message = wire.event("progress_state", prompt_id=self.item.prompt_id, nodes=nodes)
        self._hub.send(self.item.client_id, message)
