"""Rented pods as operators see them: rent, list, end, reconcile."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from controlplane.api.auth import authenticate
from controlplane.api.context import services
from controlplane.api.reading import optional_json_body, query
from controlplane.api.repeating import answered_once, claim_of
from controlplane.api.replies import json_reply, page_reply
from controlplane.api.schemas.rentals import RentalsQuery, RentPod
from controlplane.api.views import moment, moment_or_none
from controlplane.domain.rentals import Rental, Step
from controlplane.services.rental_books import RentRequest


async def rent_pod(request: web.Request) -> web.Response:
    """Rent a pod. It costs money from now on, until it is ended."""
    body = await optional_json_body(request, RentPod)
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in body.model_dump().items()
    }
    wanted = RentRequest(**values)
    once = claim_of(request, wanted)

    async def work() -> web.Response:
        return _reply(request, await services(request).rentals.rent(authenticate(request).project_id, wanted, once))

    return await answered_once(request, once, work)


async def list_rentals(request: web.Request) -> web.Response:
    """One page of rentals, newest first, with what each has cost so far."""
    wanted = query(request, RentalsQuery)
    rentals = services(request).rentals
    page = await rentals.list(authenticate(request).project_id, wanted.limit, wanted.cursor)
    return page_reply([_body(rental, rentals.cost(rental)) for rental in page.items], page.next_cursor)


async def get_rental(request: web.Request) -> web.Response:
    """One rental."""
    rentals = services(request).rentals
    rental = await rentals.get(authenticate(request).project_id, request.match_info["rental_id"])
    return json_reply(_body(rental, rentals.cost(rental)))


async def end_rental(request: web.Request) -> web.Response:
    """End a rented pod for good, whatever it does; its jobs are tried again elsewhere. Drain it first to be gentle."""
    project, rental_id = authenticate(request).project_id, request.match_info["rental_id"]
    return _reply(request, await services(request).rentals.end(project, rental_id))


async def reconcile_rentals(request: web.Request) -> web.Response:
    """End every pod at the provider that carries this installation's tag but is in nobody's books."""
    report = await services(request).reconciler.reconcile()
    kinds = {"ended": "end", "adopted": "adopt", "gone": "gone", "given_up": "give_up"}
    done = {name: [_step(step) for step in report.of(kind)] for name, kind in kinds.items()}
    return json_reply({**done, "problems": list(report.problems)})


def _reply(request: web.Request, rental: Rental) -> web.Response:
    link = f"/rentals/{rental.id}"
    body = {"rental": _body(rental, services(request).rentals.cost(rental)), "links": {"self": link}}
    return json_reply(body, status=202, headers={"Location": link})


def _body(rental: Rental, cost: float) -> dict[str, Any]:
    return {
        "id": rental.id,
        "provider": rental.provider,
        "provider_id": rental.provider_id,
        "name": rental.name,
        "gpu": rental.gpu,
        "state": rental.state,
        "reason": rental.reason,
        "price_per_hour": rental.price_per_hour,
        "cost": round(cost, 4),
        "max_hours": rental.max_hours,
        "pod_id": rental.pod_id,
        "created_at": moment(rental.created_at),
        "updated_at": moment(rental.updated_at),
        "ended_at": moment_or_none(rental.ended_at),
    }


def _step(step: Step) -> dict[str, Any]:
    return {"provider_id": step.pod, "name": step.name, "rental_id": step.rental, "reason": step.reason}
