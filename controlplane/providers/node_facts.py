"""Asking pods what their node classes take, for the import of workflows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from controlplane.comfy.client import ComfyClient
from controlplane.errors import PodRefused, PodUnreachable
from controlplane.ports import PodAddress

AT_ONCE = 4
CALL_SECONDS = 20.0
ALL_SECONDS = 60.0


class ComfyNodeFacts:
    """``/object_info`` of ComfyUI pods, the embedded one included, class by class: the whole of it is megabytes."""

    async def object_info(self, pod: PodAddress, classes: Sequence[str]) -> Mapping[str, Any]:
        """What the pod says of these classes; what it lacks is left out. PodUnreachable where it does not answer."""
        limit = asyncio.Semaphore(AT_ONCE)
        async with aiohttp.ClientSession() as session:
            client = ComfyClient(session, pod.url, pod.token, CALL_SECONDS)

            async def one(name: str) -> Mapping[str, Any]:
                async with limit:
                    return await client.object_info(name)

            try:
                async with asyncio.timeout(ALL_SECONDS):
                    answers = await asyncio.gather(*(one(name) for name in dict.fromkeys(classes)))
            except TimeoutError:
                raise PodUnreachable(f"{pod.url} took too long to describe its nodes.") from None
            except PodRefused as error:
                raise PodUnreachable(error.detail) from None
        return {name: facts for answer in answers for name, facts in answer.items()}
