"""RunPod's management API v2 on the wire: keys, problem documents, rate limits, and what may be asked again."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from controlplane.errors import LauncherRefused, LauncherUnreachable

log = logging.getLogger("troupe.launchers.runpod")

_WINDOW = re.compile(r'"(?P<name>[^"]*)"(?P<parameters>(?:\s*;\s*\w+=\d+)*)')
_PARAMETER = re.compile(r"(\w+)=(\d+)")
MAX_DETAIL = 500


@dataclass(frozen=True)
class Timing:
    """How long to wait, seconds: for an answer, for a pod to be created, before the next try (doubled each time).

    ``patience`` is for everything that one call of ours does at the provider, waits included; ``renting`` the same
    for one that creates a pod.
    """

    answer: float = 30.0
    creation: float = 90.0
    pause: float = 1.0
    patience: float = 60.0
    renting: float = 240.0


@dataclass(frozen=True)
class Answer:
    """What RunPod answered. ``body`` is its JSON, an empty object where there is none."""

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """A problem document in one line: detail and errors."""
        told = str(self.body.get("detail") or self.body.get("title") or f"HTTP {self.status}")
        errors = [str(error) for error in self.body.get("errors") or ()]
        return "; ".join((told.rstrip("."), *errors))[:MAX_DETAIL]


class Uncertain(Exception):
    """No answer came, or one that does not say whether what was asked was done; the text says which."""


class Patience:
    """How much longer one call of ours may take."""

    def __init__(self, seconds: float) -> None:
        self._end = asyncio.get_running_loop().time() + seconds

    @property
    def left(self) -> float:
        """Seconds until it ends."""
        return self._end - asyncio.get_running_loop().time()

    async def wait(self, seconds: float, why: str) -> None:
        """Sleep; LauncherUnreachable at once where that would be too long."""
        if seconds > self.left:
            wait = str(max(round(seconds), 1))
            raise LauncherUnreachable(f"RunPod: {why}; try again in {wait} s.", headers={"Retry-After": wait})
        await asyncio.sleep(seconds)


class Pace:
    """When the next request may be sent, by the RateLimit headers of the answers so far."""

    def __init__(self) -> None:
        self._free_at = 0.0

    def note(self, headers: Mapping[str, str], now: float) -> None:
        """Read ``"minute";r=0;t=12, "hour";r=2800;t=1812``: a window with nothing left is waited for."""
        for window in _WINDOW.finditer(headers.get("RateLimit", "")):
            values = {name: int(value) for name, value in _PARAMETER.findall(window["parameters"])}
            if values.get("r", 1) <= 0:
                self._free_at = max(self._free_at, now + values.get("t", 0))

    def wait(self, now: float) -> float:
        """Seconds until the next request."""
        return max(self._free_at - now, 0.0)


class RunPodWire:
    """One account at one address. The session is opened by the first call."""

    def __init__(self, url: str, key: str, timing: Timing) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self.timing = timing
        self._pace = Pace()
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Let go of connections."""
        if self._session is not None:
            await self._session.close()

    async def ask(self, method: str, path: str, patience: Patience, params: Mapping[str, str] | None = None) -> Answer:
        """A request that may be sent again and again: rate limits and failures upstream are waited out.

        Raises LauncherUnreachable when patience ends.
        """
        pause = self.timing.pause
        while True:
            try:
                return await self.once(method, path, patience, params=params)
            except Uncertain as error:
                await patience.wait(pause, str(error))
                pause *= 2

    async def once(
        self,
        method: str,
        path: str,
        patience: Patience,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Answer:
        """A request that is done at most once. A rate limit says that it was not done: that is waited out.

        Raises Uncertain for 5xx, a lost connection or none at all, LauncherRefused for a key that is not known,
        LauncherUnreachable when patience ends.
        """
        pause = self.timing.pause
        while True:
            await patience.wait(self._pace.wait(self._now()), "its rate limit is used up")
            answer = await self._send(method, path, patience, params, body)
            if answer.status == 429:
                await patience.wait(self._wait_of(answer, pause), answer.words)
                pause *= 2
            elif answer.status >= 500:
                raise Uncertain(f"it answers {answer.status} ({answer.words})")
            elif answer.status == 401:
                raise LauncherRefused(f"RunPod: {answer.words} (401); see TROUPE_RUNPOD_API_KEY.")
            else:
                return answer

    def _wait_of(self, answer: Answer, otherwise: float) -> float:
        given = answer.headers.get("Retry-After", "")
        return max(float(given) if given.isdigit() else otherwise, self._pace.wait(self._now()))

    async def _send(
        self,
        method: str,
        path: str,
        patience: Patience,
        params: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
    ) -> Answer:
        longest = self.timing.answer if body is None else self.timing.creation
        timeout = aiohttp.ClientTimeout(total=max(min(longest, patience.left), 0.05))
        headers = {"Authorization": f"Bearer {self._key}", "Accept": "application/json, application/problem+json"}
        try:
            async with self._open().request(
                method, self._url + path, params=params, json=body, headers=headers, timeout=timeout,
                allow_redirects=False,
            ) as response:  # fmt: skip
                self._pace.note(response.headers, self._now())
                return self._read(response.status, await response.read(), response.headers, body)
        except TimeoutError:
            raise Uncertain(f"no answer within {timeout.total:.0f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Uncertain(f"no connection ({error or type(error).__name__})") from None

    def _read(self, status: int, data: bytes, headers: Mapping[str, str], sent: Mapping[str, Any] | None) -> Answer:
        try:
            body = json.loads(data) if data else {}
        except ValueError:
            body = None
        if not isinstance(body, dict):
            if status < 400:
                raise Uncertain(f"it answers {status} without a JSON object")
            body = {"detail": f"HTTP {status}"}
        if status >= 400:
            body = _without(body, sent)
            log.info("RunPod answers %s: %s", status, body.get("detail"))
        return Answer(status, body, headers)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _without(problem: Mapping[str, Any], sent: Mapping[str, Any] | None) -> dict[str, Any]:
    """A problem document in which no value of the environment that we sent is repeated."""
    text = json.dumps(problem)
    for value in dict((sent or {}).get("env") or {}).values():
        if len(value) >= 8:
            text = text.replace(json.dumps(value)[1:-1], "…")
    return dict(json.loads(text))
