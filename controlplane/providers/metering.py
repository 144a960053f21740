"""Metering: how hints about single nodes become one number for the whole graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.comfy.messages import Cached, Executing, Message, NodeState, Progress, ProgressState
from controlplane.ports import Update


@dataclass
class Meter:
    """How far one graph is: nodes with steps or frames weigh as much as those. It never goes back."""

    graph: Mapping[str, Any]
    cached: set[str] = field(default_factory=set)
    states: Mapping[str, NodeState] = field(default_factory=dict)
    node: str | None = None
    step: int | None = None
    total_steps: int | None = None
    best: float = 0.0

    def read(self, message: Message) -> bool:
        """Take a hint about this graph; whether it tells of progress."""
        match message:
            case ProgressState(nodes=states):
                self.states = states
            case Progress(node=node, value=value, maximum=maximum):
                if node is not None:
                    self.states = {**self.states, node: NodeState(value, maximum, False)}
                self.node, self.step, self.total_steps = node, int(value), int(maximum)
            case Executing(node=str(node)):
                self.node, self.step, self.total_steps = node, None, None
            case Cached(nodes=nodes):
                self.cached.update(nodes)
                return False
            case _:
                return False
        return True

    def update(self) -> Update:
        """What the hints so far come to."""
        return Update("progress", self._fraction(), self.node, self.step, self.total_steps)

    def _fraction(self) -> float:
        weights = {node_id: _weight(node) for node_id, node in self.graph.items() if node_id not in self.cached}
        total = sum(weights.values())
        done = sum(weights[node_id] * _share(state) for node_id, state in self.states.items() if node_id in weights)
        self.best = max(self.best, min(done / total, 1.0) if total else 0.0)
        return self.best


def _share(state: NodeState) -> float:
    return 1.0 if state.finished else min(state.value / state.maximum, 1.0) if state.maximum > 0 else 0.0


def _weight(node: Mapping[str, Any]) -> float:
    inputs = node.get("inputs", {})
    steps, frames = inputs.get("steps"), inputs.get("frames")
    weight = float(steps) if isinstance(steps, (int, float)) else 1.0
    return max(1.0, weight * (float(frames) if isinstance(frames, (int, float)) else 1.0))
