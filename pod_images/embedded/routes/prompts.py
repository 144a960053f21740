"""Handlers of the queue: /prompt, /queue, /interrupt, /history, /free, with ComfyUI's bodies."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from aiohttp import web

from ...bearer import problem
from ..graph import Prompt
from ..keys import POD
from ..prompt_queue import QueuedPrompt
from ..validation import validate_prompt

NO_PROMPT = {
    "error": {
        "type": "no_prompt",
        "message": "No prompt provided",
        "details": "No prompt provided",
        "extra_info": {},
    },
    "node_errors": {},
}


async def post_prompt(request: web.Request) -> web.Response:
    pod = request.app[POD]
    if pod.draining.is_set():
        return problem(503, "draining", "this pod is draining and takes no more prompts")
    body = await request.json()
    if "prompt" not in body:
        return web.json_response(NO_PROMPT, status=400)
    prompt = _graph(body["prompt"])
    number = _number(body, pod.queue.next_number())
    verdict = validate_prompt(prompt, pod.registry, body.get("partial_execution_targets"))
    if verdict.error is not None:
        return web.json_response({"error": verdict.error, "node_errors": verdict.node_errors}, status=400)
    prompt_id = str(body.get("prompt_id", uuid.uuid4()))
    item = QueuedPrompt(number, prompt_id, prompt, _extra_data(body), verdict.outputs, arrival=time.monotonic_ns())
    pod.queue.put(item)
    return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors})


def _graph(prompt: Any) -> Prompt:
    """A graph is a dict; anything else ends as ComfyUI's plain 500. Its nodes are judged by validation."""
    if not isinstance(prompt, dict):
        raise TypeError("a prompt is a dict of nodes")
    return prompt


def _number(body: dict[str, Any], counter: int) -> float:
    if "number" in body:
        return float(body["number"])
    return -counter if body.get("front") else counter


def _extra_data(body: dict[str, Any]) -> dict[str, Any]:
    extra = dict(body.get("extra_data") or {})
    if "client_id" in body:
        extra["client_id"] = body["client_id"]
    extra["create_time"] = int(time.time() * 1000)
    return extra


async def get_prompt(request: web.Request) -> web.Response:
    return web.json_response({"exec_info": {"queue_remaining": request.app[POD].queue.remaining()}})


async def get_queue(request: web.Request) -> web.Response:
    running, pending = request.app[POD].queue.snapshot()
    body = {
        "queue_running": [item.as_list() for item in running],
        "queue_pending": [item.as_list() for item in pending],
    }
    return web.json_response(body)


async def post_queue(request: web.Request) -> web.Response:
    queue = request.app[POD].queue
    body = await request.json()
    if body.get("clear"):
        queue.clear()
    for prompt_id in body.get("delete", []):
        queue.delete(prompt_id)
    return web.Response()


async def post_interrupt(request: web.Request) -> web.Response:
    text = await request.text()
    try:
        body = json.loads(text) if text else {}
    except ValueError:
        body = {}
    request.app[POD].queue.interrupt(body.get("prompt_id") or None)
    return web.Response()


async def get_history(request: web.Request) -> web.Response:
    max_items = request.query.get("max_items")
    offset = int(request.query.get("offset", -1))
    limit = None if max_items is None else int(max_items)
    return web.json_response(request.app[POD].queue.history(max_items=limit, offset=offset))


async def get_history_entry(request: web.Request) -> web.Response:
    return web.json_response(request.app[POD].queue.history(request.match_info["prompt_id"]))


async def post_history(request: web.Request) -> web.Response:
    queue = request.app[POD].queue
    body = await request.json()
    if body.get("clear"):
        queue.forget_all()
    for prompt_id in body.get("delete", []):
        queue.forget(prompt_id)
    return web.Response()


async def post_free(request: web.Request) -> web.Response:
    body = await request.json()
    worker = request.app[POD].worker
    worker.request_free(bool(body.get("unload_models")), bool(body.get("free_memory")))
    return web.Response()
