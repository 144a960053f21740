"""What webhooks are told: the message of an event in the form of Standard Webhooks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controlplane.domain.events import CHARACTER_CREATED, CHARACTER_FAILED, CHARACTER_READY, JOB_FINAL, Event
from controlplane.errors import NotFound
from controlplane.services.characters import Characters
from controlplane.services.jobs import Jobs, JobView
from controlplane.services.summaries import CharacterSummary

ABOUT_CHARACTERS = frozenset({CHARACTER_CREATED, CHARACTER_READY, CHARACTER_FAILED})


@dataclass(frozen=True)
class Shown:
    """How jobs, characters and what events tell read as JSON: exactly as the REST API shows them."""

    job: Callable[[JobView], Mapping[str, Any]]
    character: Callable[[CharacterSummary], Mapping[str, Any]]
    data: Callable[[Event], Mapping[str, Any]]


class WebhookBodies:
    """Makes messages: ``{"type", "timestamp", "data"}``.

    ``data`` of a job's final event is ``{"job", "links"}`` with the job as ``GET /jobs/{id}`` shows it, of a
    character's event ``{"character", "links"}``; of every other event it is what the event itself tells.
    """

    def __init__(self, jobs: Jobs, characters: Characters, shown: Shown, public_url: str) -> None:
        self._jobs = jobs
        self._characters = characters
        self._shown = shown
        self._public_url = public_url

    async def of(self, event: Event) -> str:
        """The message of an event, as it is sent."""
        return message(event.type, event.created_at, await self._data(event))

    async def _data(self, event: Event) -> Mapping[str, Any]:
        try:
            if event.type in JOB_FINAL and event.job_id is not None:
                view = await self._jobs.get(event.project_id, event.job_id)
                return {"job": self._shown.job(view), "links": self._links(event)}
            if event.type in ABOUT_CHARACTERS and event.character_id is not None:
                summary = await self._characters.get(event.project_id, event.character_id)
                return {"character": self._shown.character(summary), "links": self._links(event)}
        except NotFound:
            pass  # deleted since: what the event itself tells is left
        return {**self._shown.data(event), "links": self._links(event)}

    def _links(self, event: Event) -> dict[str, str]:
        found = {"job": event.job_id and f"/jobs/{event.job_id}"}
        found["character"] = event.character_id and f"/characters/{event.character_id}"
        return {name: f"{self._public_url}{path}" for name, path in found.items() if path}


def message(type: str, moment: float, data: Mapping[str, Any]) -> str:
    """A message in the form of Standard Webhooks; ``moment`` is when it happened, epoch seconds."""
    at = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"type": type, "timestamp": at, "data": data}, ensure_ascii=False, allow_nan=False)
