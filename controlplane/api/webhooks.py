"""Webhooks as their owners see them: make, change, rotate, test, remove, and look at what was delivered."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from controlplane.api.auth import authenticate
from controlplane.api.context import services
from controlplane.api.reading import json_body, query
from controlplane.api.repeating import answered_once, claim_of
from controlplane.api.replies import json_reply, page_reply
from controlplane.api.schemas.webhooks import CreateWebhook, DeliveriesQuery, PatchWebhook
from controlplane.api.views import moment, moment_or_none
from controlplane.domain.webhooks import WAITING, Delivery, Webhook

NOT_KEPT = {"Cache-Control": "no-store"}


async def list_webhooks(request: web.Request) -> web.Response:
    """All webhooks, oldest first."""
    found = await services(request).webhooks.list(authenticate(request).project_id)
    return page_reply([_body(webhook) for webhook in found])


async def create_webhook(request: web.Request) -> web.Response:
    """A new webhook. Its secret is in this answer and in no other one."""
    asked = await json_body(request, CreateWebhook)
    project = authenticate(request).project_id
    webhook = await services(request).webhooks.create(project, asked.url, tuple(asked.types), asked.description)
    return _with_secret(webhook, 201)


async def get_webhook(request: web.Request) -> web.Response:
    """One webhook, without its secret."""
    return json_reply(_body(await services(request).webhooks.get(*_address(request))))


async def patch_webhook(request: web.Request) -> web.Response:
    """Change where a webhook goes, what it is told of, or whether it is told anything."""
    asked = (await json_body(request, PatchWebhook)).model_dump(exclude_none=True)
    if "types" in asked:
        asked["types"] = tuple(asked["types"])
    return json_reply(_body(await services(request).webhooks.change(*_address(request), **asked)))


async def delete_webhook(request: web.Request) -> web.Response:
    """Remove a webhook and what is known of its deliveries."""
    await services(request).webhooks.remove(*_address(request))
    return web.Response(status=204)


async def rotate_webhook(request: web.Request) -> web.Response:
    """A new secret, shown here and in no other answer; for a day the old one signs as well."""
    return _with_secret(await services(request).webhooks.rotate(*_address(request)), 200)


async def test_webhook(request: web.Request) -> web.Response:
    """Send a message of the type `webhook.test`, whatever the webhook listens to."""
    return _delivery_reply(await services(request).webhooks.test(*_address(request)))


async def list_deliveries(request: web.Request) -> web.Response:
    """One page of what a webhook was told, newest first."""
    asked = query(request, DeliveriesQuery)
    page = await services(request).webhooks.deliveries(*_address(request), asked.state, asked.limit, asked.cursor)
    return page_reply([_delivery(delivery) for delivery in page.items], page.next_cursor)


async def get_delivery(request: web.Request) -> web.Response:
    """One message with its body, and what became of it."""
    delivery = await services(request).webhooks.delivery(*_address(request), request.match_info["delivery_id"])
    return json_reply({**_delivery(delivery), "body": delivery.body})


async def redeliver(request: web.Request) -> web.Response:
    """Send a message again under its old id, with all its tries anew."""
    once, delivery_id = claim_of(request), request.match_info["delivery_id"]

    async def work() -> web.Response:
        return _delivery_reply(await services(request).webhooks.redeliver(*_address(request), delivery_id, once))

    return await answered_once(request, once, work)


def _address(request: web.Request) -> tuple[str, str]:
    return authenticate(request).project_id, request.match_info["webhook_id"]


def _with_secret(webhook: Webhook, status: int) -> web.Response:
    link = f"/webhooks/{webhook.id}"
    body = {"webhook": _body(webhook), "secret": webhook.secret, "links": {"self": link}}
    return json_reply(body, status=status, headers={"Location": link, **NOT_KEPT})


def _body(webhook: Webhook) -> dict[str, Any]:
    return {
        "id": webhook.id,
        "url": webhook.url,
        "types": list(webhook.types),
        "description": webhook.description,
        "enabled": webhook.enabled,
        "disabled_reason": webhook.disabled_reason or None,
        "failing_since": moment_or_none(webhook.failing_since),
        "previous_secret_until": moment_or_none(webhook.previous_until),
        "created_at": moment(webhook.created_at),
        "updated_at": moment(webhook.updated_at),
    }


def _delivery_reply(delivery: Delivery) -> web.Response:
    links = {
        "self": f"/webhooks/{delivery.webhook_id}/deliveries/{delivery.id}",
        "webhook": f"/webhooks/{delivery.webhook_id}",
    }
    return json_reply({"delivery": _delivery(delivery), "links": links}, 202, {"Location": links["self"]})


def _delivery(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "webhook_id": delivery.webhook_id,
        "event_id": delivery.event_id,
        "type": delivery.type,
        "state": delivery.state,
        "attempts": [{**attempt, "at": moment(attempt["at"])} for attempt in delivery.attempts],
        "next_at": moment(delivery.next_at) if delivery.state == WAITING else None,
        "body": None,
        "created_at": moment(delivery.created_at),
        "finished_at": moment_or_none(delivery.finished_at),
    }
