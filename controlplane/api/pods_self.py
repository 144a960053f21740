"""What nodes ask while they work: a LoRA, a dataset, an upload ticket, and where to report progress."""

from __future__ import annotations

from aiohttp import web

from controlplane.api.auth import authenticate_pod, pod_key
from controlplane.api.context import services
from controlplane.api.reading import json_body, query
from controlplane.api.replies import json_reply
from controlplane.api.schemas.pods import AttemptProgress, LoraQuery, UploadRequest
from controlplane.errors import NotFound, TroupeError


async def get_lora(request: web.Request) -> web.Response:
    """A version's LoRA; version 0 is the active one."""
    pod = await authenticate_pod(request)
    version = query(request, LoraQuery).version
    return json_reply(await services(request).training.lora_for_pod(pod, request.match_info["character_id"], version))


async def get_dataset(request: web.Request) -> web.Response:
    """Everything that training a version needs."""
    pod = await authenticate_pod(request)
    number = request.match_info["number"]
    if not number.isdigit() or len(number) > 9:
        raise NotFound(f"There is no version {number!r}.")
    found = await services(request).training.dataset_for_pod(pod, request.match_info["character_id"], int(number))
    return json_reply(found)


async def create_upload(request: web.Request) -> web.Response:
    """A ticket to store one file of the job's current attempt."""
    key = pod_key(request)
    try:
        body = await json_body(request, UploadRequest)
    except TroupeError:
        await authenticate_pod(request)  # who may not ask is not told what is wrong with the question
        raise
    return json_reply(await services(request).assets.ticket_for_key(key, body.model_dump()), status=201)


async def report_progress(request: web.Request) -> web.Response:
    """Note a training's progress; answers whether to stop."""
    pod = await authenticate_pod(request)
    body = await json_body(request, AttemptProgress)
    prompt_id = request.match_info["prompt_id"]
    return json_reply(await services(request).pods.attempt_progress(pod, prompt_id, body.model_dump()))
