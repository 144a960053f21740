"""The server itself: health, metrics, origins, request ids, and problem documents for whatever is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from controlplane.api.auth import UnsafeHost
from controlplane.app import build_app
from controlplane.settings import Settings

from .api_seed import ready_character
from .api_server import Api


async def test_the_process_says_that_it_lives(api: Api) -> None:
    assert (await api.get("/healthz")).body["status"] == "ok"


async def test_a_server_whose_pods_are_ready_is_ready(api: Api, pod: dict[str, Any]) -> None:
    answer = await api.get("/readyz")
    assert (answer.status, answer.body["status"]) == (200, "ready")
    assert all(check["ok"] for check in answer.body["checks"].values())


async def test_metrics_count_requests_by_route_pattern(api: Api, pod: dict[str, Any]) -> None:
    await api.get("/jobs/job_nosuch")
    text = (await api.get("/metrics")).data.decode()
    assert 'troupe_http_requests_total{method="GET",route="/jobs/{job_id}",status="404"}' in text
    assert 'troupe_pods{state="ready"} 1' in text


async def test_metrics_count_jobs_while_they_wait_and_when_they_end(api: Api, pod: dict[str, Any]) -> None:
    character = await ready_character(api.server)

    async def numbers() -> tuple[int, int]:
        text = (await api.get("/metrics")).data.decode()
        waiting = re.search(r'troupe_jobs\{status="queued"\} (\d+)', text)
        ended = re.search(r'troupe_jobs_ended_total\{status="cancelled"\} (\d+)', text)
        assert waiting
        assert ended
        return int(waiting[1]), int(ended[1])

    before = await numbers()
    accepted = await api.post("/generate-image", json={"prompt": "a horse", "character_id": character.id})
    while_waiting = await numbers()
    await api.call("DELETE", f"/jobs/{accepted.body['job']['id']}")
    assert while_waiting == (before[0] + 1, before[1])
    assert await numbers() == (before[0], before[1] + 1)


async def test_an_unknown_address_is_a_problem_document(api: Api) -> None:
    answer = await api.get("/nothing-here")
    assert (answer.status, answer.body["code"], answer.body["instance"]) == (404, "not_found", "/nothing-here")


async def test_a_wrong_method_names_the_right_ones(api: Api) -> None:
    answer = await api.call("DELETE", "/jobs")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")


async def test_every_answer_carries_a_request_id(api: Api) -> None:
    answer = await api.get("/nothing-here")
    assert answer.headers["X-Request-Id"] == answer.body["request_id"]


async def test_a_sane_request_id_is_kept(api: Api) -> None:
    assert (await api.get("/healthz", headers={"X-Request-Id": "abc-123"})).headers["X-Request-Id"] == "abc-123"


async def test_a_strange_request_id_is_replaced(api: Api) -> None:
    given = "x" * 500
    assert (await api.get("/healthz", headers={"X-Request-Id": given})).headers["X-Request-Id"] != given


async def test_an_allowed_page_may_read_answers(api: Api) -> None:
    answer = await api.get("/healthz", headers={"Origin": "https://studio.example"})
    assert answer.headers["Access-Control-Allow-Origin"] == "https://studio.example"


async def test_another_page_may_not_read_answers(api: Api) -> None:
    answer = await api.get("/healthz", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_an_allowed_page_may_ask_beforehand(api: Api) -> None:
    headers = {"Origin": "https://studio.example", "Access-Control-Request-Method": "POST"}
    answer = await api.call("OPTIONS", "/generate-image", headers=headers)
    assert answer.status == 204
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]


async def test_a_foreign_page_cannot_change_anything(api: Api) -> None:
    answer = await api.post("/generate-image", json={"prompt": "x"}, headers={"Origin": "https://evil.example"})
    assert (answer.status, answer.body["code"]) == (403, "forbidden")


async def test_a_rebound_name_is_not_served(api: Api) -> None:
    answer = await api.get("/jobs", headers={"Host": "evil.example"})
    assert (answer.status, answer.body["code"]) == (403, "forbidden")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "studio.example"])
def test_a_server_without_keys_does_not_listen_beyond_this_machine(tmp_path: Path, host: str) -> None:
    with pytest.raises(UnsafeHost, match="TROUPE_INSECURE"):
        build_app(Settings(data=tmp_path, host=host))


async def test_workflows_are_listed(api: Api) -> None:
    names = [item["name"] for item in (await api.get("/workflows")).body["items"]]
    assert {"sketch_image", "sketch_video", "train_lora"} <= set(names)


async def test_a_workflow_is_shown_with_its_graph_and_without_internal_inputs(api: Api) -> None:
    body = (await api.get("/workflows/sketch_image")).body
    assert "CharacterLoRALoader" in {node["class_type"] for node in body["graph"].values()}
    assert "lora_sha256" not in body["inputs"]


async def test_an_unknown_workflow_is_not_found(api: Api) -> None:
    assert (await api.get("/workflows/nothing")).status == 404


async def test_base_models_are_listed_with_their_recipes(api: Api) -> None:
    models = {item["id"]: item for item in (await api.get("/models")).body["items"]}
    assert "fast" in models["sketch"]["recipes"]
