"""Reading the recorded ComfyUI 0.8.0 transcripts, and reducing events to what both pods must agree on."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("transcripts")
NOISE = ("progress_state", "progress", "binary", "status")


@dataclass(frozen=True)
class Recording:
    lines: list[dict[str, Any]]

    def submissions(self) -> list[dict[str, Any]]:
        """Bodies of POST /prompt, in order."""
        return [copy.deepcopy(line["request"]) for line in self._http("POST", "/prompt")]

    def graph(self, index: int = 0) -> dict[str, Any]:
        graph: dict[str, Any] = self.submissions()[index]["prompt"]
        return graph

    def history_entry(self) -> dict[str, Any]:
        """The history entry that was read last."""
        body = [line for line in self.lines if line["kind"] == "http" and "/history/" in line["path"]][-1]["response"]
        entry: dict[str, Any] = next(iter(body.values()))
        return entry

    def events(self) -> list[dict[str, Any]]:
        """Websocket events from the first submission on."""
        start = self.lines.index(self._http("POST", "/prompt")[0])
        events = []
        for line in self.lines[start:]:
            if line["kind"] == "ws_recv":
                events.append(line["msg"])
            elif line["kind"] == "ws_recv_bin":
                events.append({"type": "binary", "data": {"event": line["event"]}})
        return events

    def _http(self, method: str, path: str) -> list[dict[str, Any]]:
        return [
            line for line in self.lines if line["kind"] == "http" and line["method"] == method and line["path"] == path
        ]


def recording(number: str) -> Recording:
    (path,) = FOLDER.glob(f"{number}_*.jsonl")
    return Recording([json.loads(line) for line in path.read_text().splitlines()])


def recoloured(graph: dict[str, Any]) -> dict[str, Any]:
    """The same graph over another empty picture, so that nothing of it is cached."""
    fresh = copy.deepcopy(graph)
    colour = random.randrange(1 << 24)
    for node in fresh.values():
        if node["class_type"] == "EmptyImage":
            node["inputs"]["color"] = colour
    return fresh


def shape(event: dict[str, Any]) -> tuple[Any, ...]:
    """An event without ids, times and values that differ from run to run."""
    kind, data = event["type"], event["data"]
    if kind == "progress_state":
        nodes = tuple((key, node["state"], node["value"], node["max"]) for key, node in data["nodes"].items())
        return (kind, nodes, tuple(sorted({field for node in data["nodes"].values() for field in node})))
    known = {
        "status": lambda: (data["status"]["exec_info"]["queue_remaining"],),
        "execution_cached": lambda: (tuple(data["nodes"]),),
        "executing": lambda: (data["node"],),
        "executed": lambda: (data["node"], data["display_node"], tuple(sorted(data["output"]))),
        "progress": lambda: (data["value"], data["max"], data["node"]),
        "binary": lambda: (data["event"],),
        "execution_error": lambda: (data["node_id"], data["exception_type"], data["exception_message"]),
        "execution_interrupted": lambda: (data["node_id"], data["node_type"], tuple(sorted(data["executed"]))),
    }
    details = known[kind]() if kind in known else ()
    fields = () if kind in ("status", "binary") else tuple(sorted(data))
    return (kind, *details, fields)


def shapes(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [shape(event) for event in events]


def skeleton(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Shapes without progress and counts: what does not depend on when an interrupt arrives."""
    return [shape(event) for event in events if event["type"] not in NOISE]


def without_tracebacks(value: Any) -> Any:
    """An answer without tracebacks; of `dependent_outputs` only whether there are any.

    ComfyUI judges outputs in the order of a set and lists each bad node under every output judged from then on, so
    its list differs from process to process.
    """
    if isinstance(value, dict):
        return {
            key: bool(part) if key == "dependent_outputs" else without_tracebacks(part)
            for key, part in value.items()
            if key != "traceback"
        }
    if isinstance(value, list):
        return [without_tracebacks(part) for part in value]
    return value
