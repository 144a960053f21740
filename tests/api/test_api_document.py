"""The OpenAPI document is valid, complete, and is what the server serves."""

from __future__ import annotations

import re
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from controlplane.api.routes import ROUTES

from .api_server import DOCUMENT, Api

DESIGNED = {
    ("GET", "/characters"), ("POST", "/characters"), ("GET", "/characters/{}"), ("PATCH", "/characters/{}"),
    ("DELETE", "/characters/{}"), ("POST", "/characters/{}/versions"), ("POST", "/characters/{}/versions/{}/activate"),
    ("POST", "/generate-image"), ("POST", "/generate-video"), ("GET", "/jobs"), ("GET", "/jobs/{}"),
    ("DELETE", "/jobs/{}"), ("GET", "/jobs/{}/events"), ("GET", "/events"), ("GET", "/assets"), ("GET", "/assets/{}"),
    ("GET", "/characters/{}/events"), ("POST", "/events/ticket"), ("GET", "/webhooks"), ("POST", "/webhooks"),
    ("GET", "/webhooks/{}"), ("PATCH", "/webhooks/{}"), ("DELETE", "/webhooks/{}"), ("POST", "/webhooks/{}/rotate"),
    ("POST", "/webhooks/{}/test"), ("GET", "/webhooks/{}/deliveries"), ("GET", "/webhooks/{}/deliveries/{}"),
    ("POST", "/webhooks/{}/deliveries/{}/redeliver"),
    ("PATCH", "/assets/{}"), ("DELETE", "/assets/{}"), ("GET", "/files/{}"), ("PUT", "/files/{}"),
    ("GET", "/workflows"), ("POST", "/workflows"), ("GET", "/workflows/{}"), ("DELETE", "/workflows/{}"),
    ("GET", "/models"), ("GET", "/pods"), ("POST", "/pods"),
    ("POST", "/pods/{}/heartbeat"), ("DELETE", "/pods/{}"), ("GET", "/healthz"), ("GET", "/readyz"),
    ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/pods/self/characters/{}/lora"),
    ("GET", "/pods/self/characters/{}/versions/{}/dataset"), ("POST", "/pods/self/uploads"),
    ("POST", "/pods/self/attempts/{}/progress"), ("GET", "/rentals"), ("POST", "/rentals"), ("GET", "/rentals/{}"),
    ("DELETE", "/rentals/{}"), ("POST", "/rentals/reconcile"), ("GET", "/project"), ("PATCH", "/project"),
}  # fmt: skip

OPERATIONS = [(method, path, operation) for path, ops in DOCUMENT["paths"].items() for method, operation in ops.items()]
NAMES = [f"{method} {path}" for method, path, _ in OPERATIONS]


def test_the_document_is_valid_openapi() -> None:
    errors = [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()]
    assert errors == []


def test_the_document_describes_every_designed_route() -> None:
    described = {(method.upper(), re.sub(r"\{\w+\}", "{}", path)) for method, path, _ in OPERATIONS}
    assert described == DESIGNED


def test_every_operation_has_its_own_id() -> None:
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(ids) == len(set(ids)) == len(ROUTES)


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=NAMES)
def test_every_operation_promises_problem_documents(method: str, path: str, operation: dict[str, Any]) -> None:
    refused = [reply for status, reply in operation["responses"].items() if status == "500"]
    assert refused[0]["content"] == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=NAMES)
def test_every_operation_says_what_it_does(method: str, path: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["description"]


def test_the_calls_of_pods_name_their_credentials() -> None:
    needed = {path: op["security"] for _, path, op in OPERATIONS if "security" in op}
    assert needed["/pods"] == [{"join_token": []}]
    assert {path for path in needed if needed[path] == [{"pod_key": []}]} == {
        path for path in DOCUMENT["paths"] if path.startswith("/pods/self/") or path.endswith("/heartbeat")
    }


def test_the_form_of_a_character_has_repeated_images() -> None:
    body = DOCUMENT["paths"]["/characters"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert body["properties"]["images"]["type"] == "array"


async def test_the_server_serves_this_document(api: Api) -> None:
    served = (await api.get("/openapi.json")).body
    assert served["paths"] == DOCUMENT["paths"]
    assert served["components"] == DOCUMENT["components"]


async def test_the_docs_page_needs_nothing_from_elsewhere(api: Api) -> None:
    page = (await api.get("/docs")).data.decode()
    assert "openapi.json" in page
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
