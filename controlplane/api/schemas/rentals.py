"""Rentals: what is asked for, how they are shown, and what a reconciliation did."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from controlplane.api.schemas.base import Links, Reply, Request, Timestamp

Name = Annotated[str, Field(min_length=1, max_length=100)]
# What goes into the pod's environment as a list with commas.
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9:._-]{0,39}$")]


class RentPod(Request):
    """What kind of pod to rent; whatever is not given is the server's setting."""

    gpus: list[Name] = Field(
        default_factory=list, max_length=30, description="The provider's ids of GPU types, best first; none: any."
    )
    min_memory_gb: int | None = Field(None, ge=1, le=2000, description="The least memory of one GPU.")
    gpu_count: int = Field(1, ge=1, le=16)
    max_price_per_hour: float | None = Field(
        None, gt=0, le=10**4, allow_inf_nan=False, description="US dollars, for the whole pod."
    )
    max_hours: float | None = Field(
        None, gt=0, le=10**4, allow_inf_nan=False, description="The pod is ended after this time."
    )
    cloud: Literal["SECURE", "COMMUNITY"] | None = None
    data_centres: list[Name] | None = Field(None, max_length=50)
    labels: list[Label] = Field(
        default_factory=list, max_length=20, description="Labels the pod registers with: `image`, `video`, `train`."
    )


class RentalsQuery(Request):
    """One page of rentals."""

    limit: int = Field(20, ge=1, le=100, description="At most this many items.")
    cursor: str | None = Field(None, max_length=400, description="`next_cursor` of the page before.")


class Rental(Reply):
    """One pod that was asked for, as the books have it."""

    id: str
    provider: str
    provider_id: str | None = None
    name: str = Field(description="The pod's name at the provider; it carries the installation's tag.")
    gpu: str
    state: Literal["requested", "booting", "joined", "ending", "ended", "failed"]
    reason: str = Field(description="Why it ended or failed.")
    price_per_hour: float | None = Field(
        None, description="US dollars; the most it may become while the provider has not answered."
    )
    cost: float = Field(description="US dollars so far, by this server's clock; the provider's bill is what counts.")
    max_hours: float | None = None
    pod_id: str | None = Field(None, description="The pod that registered from it.")
    created_at: Timestamp
    updated_at: Timestamp
    ended_at: Timestamp | None = None


class RentalPage(Reply):
    """Rentals, newest first."""

    items: list[Rental]
    next_cursor: str | None = None


class RentalReply(Reply):
    """A rental, and where to follow it."""

    rental: Rental
    links: Links


class ReconciledPod(Reply):
    """One thing that a reconciliation did."""

    provider_id: str | None = None
    name: str
    rental_id: str | None = None
    reason: str


class Reconciled(Reply):
    """What a reconciliation did."""

    ended: list[ReconciledPod] = Field(description="Pods that were terminated.")
    adopted: list[ReconciledPod] = Field(description="Pods that were found for a request without an answer.")
    gone: list[ReconciledPod] = Field(description="Rentals whose pod the provider no longer has.")
    given_up: list[ReconciledPod] = Field(description="Requests that never got a pod.")
    problems: list[str] = Field(description="What could not be done; it is tried again.")
