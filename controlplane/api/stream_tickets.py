"""Stream tickets: what a browser's EventSource, which can send no header, puts into the address of a stream."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass

from aiohttp import web

from controlplane.errors import BadTicket
from controlplane.ports import Clock

TICKET_SECONDS = 60.0
EVERYTHING = "events"


@dataclass(frozen=True)
class StreamTickets:
    """Makes and checks tickets. Every replica that has the same signing key honours them."""

    signing_key: str
    clock: Clock

    def issue(self, project_id: str, scope: str) -> tuple[str, float]:
        """A ticket for one project's streams, and when it stops opening any (epoch seconds).

        ``scope`` is the path of the one stream that it opens, or EVERYTHING for all of the project's.
        """
        until = self.clock.now() + TICKET_SECONDS
        told = _packed(json.dumps([project_id, scope, until]).encode())
        return f"{told}.{self._signature(told)}", until

    def project_of(self, ticket: str, scope: str) -> str:
        """Whose stream the ticket opens. BadTicket where it is forged, has expired, or is for another stream."""
        told, _, signature = ticket.partition(".")
        if not ticket.isascii() or not hmac.compare_digest(signature, self._signature(told)):
            raise BadTicket("This is no ticket of this server.")
        project_id, opened, until = json.loads(_unpacked(told))
        if self.clock.now() > until:
            raise BadTicket("The ticket has expired; POST /events/ticket gives a new one.")
        if opened not in (scope, EVERYTHING):
            raise BadTicket(f"The ticket is for /{opened}, not for this stream.")
        return str(project_id)

    def _signature(self, told: str) -> str:
        # The same key signs links to files: the words keep one from being taken for the other.
        return _packed(hmac.digest(self.signing_key.encode(), f"stream ticket\n{told}".encode(), hashlib.sha256))


TICKETS = web.AppKey("tickets", StreamTickets)


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unpacked(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
