"""The question every request for work asks first: is any pod known at all that may do it some day?"""

from __future__ import annotations

from sqlalchemy import Connection

from controlplane.db import counts
from controlplane.errors import NoPods

RETRY_AFTER_SECONDS = 10


def check_pods(c: Connection, project_id: str) -> None:
    """Raise NoPods where no pod is known at all; one that is merely busy or unsuitable is the scheduler's concern."""
    if not counts.is_any_pod_known(c, project_id):
        raise NoPods(
            "no pod is known here that could do this; start one, for example with `troupe serve --embedded-pod`",
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        )
