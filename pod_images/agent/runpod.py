"""A pod that is rented from RunPod: its public address, and how it ends itself so that it bills no more."""

from __future__ import annotations

import asyncio
import logging
import random
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

log = logging.getLogger(__name__)

API = "https://api.runpod.io/v2"
REQUEST_SECONDS = 30
TRIES = 12
FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 60.0
GONE = (204, 404)
HOPELESS = (400, 401, 403, 422)
"""Answers that the same request gets again for ever."""


@dataclass(frozen=True)
class Place:
    """Which pod this is there, and where RunPod's API answers."""

    pod_id: str
    api: str = API

    def address(self, port: int) -> str:
        """The public address of one of its exposed HTTP ports."""
        return f"https://{self.pod_id}-{port}.proxy.runpod.net"


def place_in(environment: Mapping[str, str]) -> Place | None:
    """Where this pod is, None where it is not RunPod's."""
    pod_id = environment.get("RUNPOD_POD_ID", "").strip()
    api = environment.get("TROUPE_RUNPOD_URL", "").strip() or API
    return Place(pod_id, api.rstrip("/")) if pod_id else None


async def terminate(place: Place, key: str, first_backoff: float = FIRST_BACKOFF_SECONDS) -> bool:
    """Ask RunPod to end this very pod (DELETE /pods/{id}: a stopped one would bill on); True when it is gone.

    Tried again while trying can help: the network, the rate limit and the provider's own errors pass.
    """
    if not key:
        log.error("this pod has no RUNPOD_API_KEY, so it cannot end itself")
        return False
    url = f"{place.api}/pods/{urllib.parse.quote(place.pod_id, safe='')}"
    backoff = first_backoff
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS)) as session:
        for attempt in range(1, TRIES + 1):
            status, wait = await _delete(session, url, key)
            if status in GONE:
                log.warning("RunPod ended this pod (%s)", status)
                return True
            log.error("RunPod did not end this pod: %s (try %d of %d)", status or "no answer", attempt, TRIES)
            if status in HOPELESS:
                return False
            await asyncio.sleep(max(wait, backoff * random.uniform(0.5, 1)))
            backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)
    return False


async def _delete(session: aiohttp.ClientSession, url: str, key: str) -> tuple[int | None, float]:
    """(status or None, seconds the answer asks to wait)."""
    try:
        headers = {"Authorization": f"Bearer {key}"}
        async with session.delete(url, headers=headers, allow_redirects=False) as response:
            told = response.headers.get("Retry-After", "")
            return response.status, min(float(told), 300.0) if told.isdigit() else 0.0
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        log.warning("RunPod's API did not answer: %s", error or type(error).__name__)
        return None, 0.0
