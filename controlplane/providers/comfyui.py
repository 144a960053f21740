"""The provider for pods that speak ComfyUI's protocol, the embedded one included: one attempt is one prompt."""

from __future__ import annotations

import asyncio
import logging
import mimetypes
from collections.abc import AsyncIterator

import aiohttp

from controlplane.comfy.client import ComfyClient
from controlplane.errors import NotFound, PodRefused, PodUnreachable
from controlplane.ports import BlobStore, HandedOver, PodAddress, Update, Work
from controlplane.providers.following import Pace, is_incident, log_tail
from controlplane.providers.handing_over import handed_over
from controlplane.providers.pod_link import PodLink

__all__ = ["ComfyUIProvider", "Pace"]

log = logging.getLogger(__name__)

PROBE_SECONDS = 10.0


class ComfyUIProvider:
    """Submits, follows, cancels and forgets prompts. All calls are idempotent by prompt_id.

    ``/history`` and ``/queue`` are the truth, the websocket only makes it arrive sooner: a socket that is gone or deaf
    costs the progress in between and nothing else, since then the node pack tells whether its worker is at work.
    ``session`` must not have a total timeout of its own, nor a limit of connections below two for each pod.
    """

    def __init__(self, session: aiohttp.ClientSession, blobs: BlobStore, pace: Pace | None = None) -> None:
        self._session = session
        self._blobs = blobs
        self._pace = pace or Pace()
        self._links: dict[str, PodLink] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def client_id(self, pod: PodAddress) -> str:
        """Under which client id this process speaks to the pod from now on: it belongs into the attempt. No I/O."""
        return self._link(pod).client_id

    async def start(self, work: Work) -> None:
        """Upload input files and submit. Raises PodRefused (never ran) or PodUnreachable (may have been queued)."""
        link = self._link(work.pod)
        await self._upload(link.client, work)
        await link.listening(work.client_id)
        # From here on, as hints may come in before the answer to the prompt.
        follower = link.join(work, on_pod=False)
        try:
            async with link.turn:
                await self._submit(link.client, work)
            follower.on_pod = True
        except BaseException:
            link.leave(work.prompt_id)
            raise

    async def follow(self, work: Work) -> AsyncIterator[Update]:
        """Yield updates until a final one; may be called anew by another process for the same prompt_id."""
        link = self._link(work.pod)
        try:
            async for update in link.join(work, on_pod=True).updates():
                yield update
        finally:
            link.leave(work.prompt_id)

    async def cancel(self, work: Work) -> bool:
        """Delete it if pending, interrupt it if running; True when it is confirmed to be neither."""
        client = self._client(work.pod)
        try:
            return await client.take_back(work.prompt_id)
        except (PodUnreachable, PodRefused) as error:
            if error.extra.get("restarting") and await is_incident(client, work.prompt_id):
                return True
            log.info("cancel of %s is not confirmed: %s", work.prompt_id, error)
            return False

    async def withdraw(self, work: Work) -> bool:
        """Delete it if pending; True when it is confirmed that it never began, False where it did or may have."""
        try:
            return await self._client(work.pod).withdraw(work.prompt_id)
        except (PodUnreachable, PodRefused) as error:
            log.info("whether %s has begun is not known: %s", work.prompt_id, error)
            return False

    async def forget(self, work: Work) -> None:
        """Drop the pod's own record within a second or so; one that stays does no harm."""
        link = self._links.get(work.pod.pod_id)
        if link is not None:
            link.leave(work.prompt_id)
            link.forget(work.prompt_id)

    async def handed_over(self, work: Work) -> HandedOver | None:
        """What has become of the files that the prompt promised; None where the pod has no word for that."""
        return await handed_over(self._client(work.pod), work.prompt_id)

    async def probe(self, pod: PodAddress) -> bool:
        """Whether the pod answers and takes our token."""
        try:
            await ComfyClient(self._session, pod.url, pod.token, PROBE_SECONDS).system_stats()
        except (PodUnreachable, PodRefused):
            return False
        return True

    async def log_tail(self, pod: PodAddress) -> tuple[str, ...]:
        """What ComfyUI logged last, newest last; nothing where no agent keeps it or the pod does not answer."""
        return await log_tail(self._client(pod))

    async def close(self) -> None:
        """Send what was gathered and hang up everywhere."""
        links, self._links = list(self._links.values()), {}
        await asyncio.gather(*(link.close() for link in links), *self._closing, return_exceptions=True)

    async def _upload(self, client: ComfyClient, work: Work) -> None:
        for name, key in work.files:
            media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
            try:
                await client.upload(name, await self._blobs.get(key), media_type)
            except NotFound as error:
                raise PodRefused(f"An input file is not in the store any more: {error.detail}") from error
            except PodUnreachable as error:
                detail = f"An input file did not get to the pod: {error.detail}"
                raise PodRefused(detail, pod_specific=True, unreachable=True) from error

    async def _submit(self, client: ComfyClient, work: Work) -> None:
        try:
            await client.submit(work.graph, work.prompt_id, work.client_id, work.previews)
        except PodUnreachable as error:
            if error.extra.get("never_sent"):
                raise PodRefused(error.detail, pod_specific=True, unreachable=True) from error
            if not await self._is_there(client, work.prompt_id):
                raise

    async def _is_there(self, client: ComfyClient, prompt_id: str) -> bool:
        try:
            return await client.history(prompt_id) is not None or (await client.queue()).holds(prompt_id)
        except (PodUnreachable, PodRefused):
            return False

    def _client(self, pod: PodAddress) -> ComfyClient:
        """For a call by the way, which leaves the links as they are, whatever address it was given."""
        link = self._links.get(pod.pod_id)
        if link is not None and link.leads_to(pod):
            return link.client
        return ComfyClient(self._session, pod.url, pod.token, self._pace.submit_seconds)

    def _link(self, pod: PodAddress) -> PodLink:
        link = self._links.get(pod.pod_id)
        if link is not None and link.leads_to(pod):
            return link
        # The new one may have to listen under a client id of the old one, and two at once would deafen it.
        after = None if link is None else self._close(link)
        self._links[pod.pod_id] = link = PodLink(self._session, pod, self._pace, self._drop, after)
        return link

    def _drop(self, link: PodLink) -> None:
        """Close a link that nobody has used for a while."""
        if self._links.get(link.pod.pod_id) is link:
            del self._links[link.pod.pod_id]
        self._close(link)

    def _close(self, link: PodLink) -> asyncio.Task[None]:
        task = asyncio.create_task(link.close(replaced=True))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task
