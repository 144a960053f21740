"""What a pod says of the files that a prompt promised, with what its agent knows where it cannot say."""

from __future__ import annotations

from controlplane.comfy.client import ComfyClient
from controlplane.errors import PodRefused, PodUnreachable
from controlplane.ports import HandedOver


async def handed_over(client: ComfyClient, prompt_id: str) -> HandedOver | None:
    """What has become of them; None where the pod has no word for that. Raises PodUnreachable, PodRefused."""
    try:
        told = await client.uploads(prompt_id)
    except PodUnreachable as error:
        gone = await _incident(client, prompt_id) if error.extra.get("restarting") else ""
        if not gone:
            raise
        return HandedOver(gone=gone)
    if told is None:
        return None
    knows = told.pending or told.failed or told.stored
    gone = "" if knows else await _incident(client, prompt_id)
    return HandedOver(frozenset(told.pending), told.failed, frozenset(told.stored), told.idle_seconds, gone)


async def _incident(client: ComfyClient, prompt_id: str) -> str:
    """What befell ComfyUI since, where an agent knows of it; its files went down with it."""
    try:
        incident = await client.incident(prompt_id)
    except (PodUnreachable, PodRefused):
        return ""
    return f"{incident.code}: {incident.detail}" if incident is not None else ""
