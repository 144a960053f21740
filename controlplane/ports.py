"""Every port on one screen: what services ask of adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, Protocol

from controlplane.domain.rentals import Offer, PodOrder, PodWish, RentedPod


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...


@dataclass(frozen=True)
class PodAddress:
    """How to reach one pod. ``token`` is sent as a bearer token and never logged."""

    pod_id: str
    url: str
    token: str = field(repr=False)
    kind: str = "comfyui"


@dataclass(frozen=True)
class Work:
    """One attempt: a bound graph for one pod. ``prompt_id`` and ``client_id`` are ours and stored before any call."""

    prompt_id: str
    client_id: str
    pod: PodAddress
    graph: Mapping[str, Any]
    files: tuple[tuple[str, str], ...] = ()
    """Input files to place on the pod first: (name in the graph, blob key)."""
    output_nodes: tuple[str, ...] = ()
    previews: bool = False
    """Whether the pod is asked to send pictures of what it is about."""


@dataclass(frozen=True)
class Update:
    """One thing learned about an attempt.

    ``kind``: ``queued`` | ``running`` (again and again: the sign of life of one that has no progress to tell) |
    ``progress`` (value/total of the whole graph, 0..1 in ``fraction``) | ``preview`` (``picture``: a JPEG or PNG, not
    checked) | ``away`` (for now nothing listens at the
    pod's address) | ``succeeded`` (``outputs`` = ComfyUI's ui dict by node id) | ``failed`` (``error``) |
    ``interrupted`` | ``lost`` (proven absent from queue and history, or the pod is gone; ``error``).
    ``error``: ``{type, message}``, where known ``code``, ``node_id``, ``node_type``, ``log_tail`` (lines, newest last).
    """

    kind: Literal["queued", "running", "progress", "preview", "away", "succeeded", "failed", "interrupted", "lost"]
    fraction: float | None = None
    node: str | None = None
    step: int | None = None
    total_steps: int | None = None
    outputs: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    picture: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class HandedOver:
    """What a pod says of the files that a prompt promised, by reference.

    ``pending`` are on their way, ``failed`` will never come, in words; ``idle_seconds``: how long no file of the pod
    has moved; ``gone``: why nothing of this prompt will come any more, empty where that is not so.
    """

    pending: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)
    stored: frozenset[str] = frozenset()
    idle_seconds: float = 0.0
    gone: str = ""


class Provider(Protocol):
    """Runs bound graphs on one kind of pod. All calls are idempotent by ``prompt_id``."""

    def client_id(self, pod: PodAddress) -> str:
        """Under which client id this process speaks to the pod from now on: it belongs into the attempt. No I/O."""
        ...

    async def start(self, work: Work) -> None:
        """Upload input files and submit. Raises PodRefused (never ran) or PodUnreachable (may have been queued)."""
        ...

    def follow(self, work: Work) -> AsyncIterator[Update]:
        """Yield updates until a final one; may be called anew by another process for the same prompt_id."""
        ...

    async def cancel(self, work: Work) -> bool:
        """Delete it if pending, interrupt it if running; True when it is confirmed to be neither."""
        ...

    async def withdraw(self, work: Work) -> bool:
        """Delete it if pending; True when it is confirmed that it never began, False where it did or may have."""
        ...

    async def forget(self, work: Work) -> None:
        """Have the pod drop its own record soon, after our transaction stored the outcome. Does not wait for it."""
        ...

    async def handed_over(self, work: Work) -> HandedOver | None:
        """What has become of the files that the prompt promised; None where the pod has no word for that.

        Raises PodUnreachable, PodRefused.
        """
        ...

    async def probe(self, pod: PodAddress) -> bool:
        """Whether the pod answers at all."""
        ...

    async def log_tail(self, pod: PodAddress) -> Sequence[str]:
        """What the pod logged last, newest last; nothing where it keeps no log or does not answer."""
        ...


class NodeFactsSource(Protocol):
    """Tells what the node classes of a pod take."""

    async def object_info(self, pod: PodAddress, classes: Sequence[str]) -> Mapping[str, Any]:
        """ComfyUI's ``/object_info`` of these classes, what the pod lacks left out; PodUnreachable if it is silent."""
        ...


@dataclass(frozen=True)
class BlobInfo:
    """What a store knows of one blob."""

    key: str
    bytes: int
    media_type: str
    sha256: str | None = None


class BlobStore(Protocol):
    """Keeps immutable blobs under clean keys."""

    async def put(self, key: str, data: bytes, media_type: str) -> BlobInfo:
        """Store bytes; the same key again with the same bytes is fine."""
        ...

    async def put_file(self, key: str, source: BinaryIO, media_type: str) -> BlobInfo:
        """Store a file object from its current position."""
        ...

    async def get(self, key: str) -> bytes:
        """Read a whole blob; NotFound where there is none."""
        ...

    async def head(self, key: str) -> BlobInfo | None:
        """What is known of a blob, None where there is none."""
        ...

    async def delete(self, key: str) -> bool:
        """Delete for good; False where there was none."""
        ...

    def public_url(self, key: str) -> str:
        """The clean URL of a public blob."""
        ...

    def signed_get_url(self, key: str, seconds: float) -> str:
        """A URL that reads one blob for a while."""
        ...

    def signed_put(self, key: str, media_type: str, size: int, seconds: float) -> tuple[str, dict[str, str]]:
        """A URL and the headers that store one blob of exactly this type and size (bytes) for a while."""
        ...


@dataclass(frozen=True)
class PostAnswer:
    """What somebody answered to a webhook: the status, the first bytes as text, and for how long to leave it alone."""

    status: int
    head: str = ""
    retry_after: float | None = None


class WebhookPost(Protocol):
    """Sends webhooks to addresses that clients chose, and to no other."""

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> PostAnswer:
        """Send one message; never follows a redirect. WebhookUnreachable where there was no answer."""
        ...


class Launcher(Protocol):
    """Rents pods from one provider and ends them.

    Every call may raise LauncherRefused (the provider does not want it), LauncherUnpaid or LauncherUnreachable (it
    may or may not have happened).
    """

    @property
    def provider(self) -> str:
        """The provider's name as it stands in the books and in what its pods register with."""
        ...

    async def offers(self, wish: PodWish) -> Sequence[Offer]:
        """What the provider rents out, best first; what does not fit the wish comes last, with its obstacle."""
        ...

    async def rent(self, order: PodOrder, offers: Sequence[Offer]) -> RentedPod:
        """Create one pod of the first offer that can be had. Its name must be unique: it is how a lost answer is found.

        Should it raise LauncherUnreachable, a pod of this name may exist or come to exist.
        """
        ...

    async def list(self) -> Sequence[RentedPod]:
        """Every pod of the account, ours or not."""
        ...

    async def find(self, provider_id: str) -> RentedPod | None:
        """One pod, None where the provider has none."""
        ...

    async def end(self, provider_id: str) -> bool:
        """Terminate a pod for good; False where there was none."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
