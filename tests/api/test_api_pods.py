"""Pods over real HTTP: joining, heartbeats, and what their nodes may ask."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from .api_seed import LORA, ready_character
from .api_server import Answer, Api, pod_body


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def register(api: Api, **changes: Any) -> Answer:
    return await api.post("/pods", json=pod_body(**changes), headers=bearer(api.server.join_token))


async def test_a_pod_gets_an_id_and_a_key(pod: dict[str, Any]) -> None:
    assert pod["pod"]["id"].startswith("pod_")
    assert len(pod["pod_key"]) >= 32


async def test_the_same_instance_stays_the_same_pod(api: Api, pod: dict[str, Any]) -> None:
    assert (await register(api)).body["pod"]["id"] == pod["pod"]["id"]


async def test_the_secrets_of_a_pod_are_never_shown(api: Api, pod: dict[str, Any]) -> None:
    text = (await api.get("/pods")).data.decode()
    assert pod["pod"]["id"] in text
    assert "a pod token" not in text
    assert pod["pod_key"] not in text


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), {"Authorization": "Basic eDp5"}, bearer("ä")])
async def test_without_the_join_token_nobody_joins(api: Api, headers: dict[str, str]) -> None:
    answer = await api.post("/pods", json=pod_body(), headers=headers)
    assert (answer.status, answer.body["code"]) == (401, "bad_join_token")


async def test_an_unknown_protocol_is_refused_with_what_to_upgrade(api: Api) -> None:
    answer = await register(api, protocol=2)
    assert (answer.status, answer.body["code"]) == (422, "unknown_protocol")
    assert "upgrade" in answer.body["detail"]


async def test_a_far_pod_is_refused_while_our_address_is_only_local(api: Api) -> None:
    answer = await register(api, address="https://pod.example:8188", instance_id="far-away-pod")
    assert answer.status == 422
    assert "TROUPE_PUBLIC_URL" in answer.body["detail"]


async def test_a_heartbeat_is_answered(api: Api, pod: dict[str, Any]) -> None:
    answer = await api.post(f"/pods/{pod['pod']['id']}/heartbeat", json={}, headers=bearer(pod["pod_key"]))
    assert (answer.status, answer.body["drain"]) == (200, False)


@pytest.mark.parametrize("key", ["wrong", None])
async def test_a_heartbeat_with_another_key_is_refused(api: Api, pod: dict[str, Any], key: str | None) -> None:
    headers = bearer(key) if key else {}
    assert (await api.post(f"/pods/{pod['pod']['id']}/heartbeat", json={}, headers=headers)).status == 401


async def test_a_heartbeat_of_an_unknown_pod_is_not_found(api: Api, pod: dict[str, Any]) -> None:
    answer = await api.post("/pods/pod_nosuch/heartbeat", json={}, headers=bearer(pod["pod_key"]))
    assert answer.status == 404


async def test_a_drained_pod_is_told_so(api: Api) -> None:
    joined = (await register(api, instance_id="to-be-drained")).body
    assert (await api.call("DELETE", f"/pods/{joined['pod']['id']}")).body["pod"]["state"] == "draining"
    beat = await api.post(f"/pods/{joined['pod']['id']}/heartbeat", json={}, headers=bearer(joined["pod_key"]))
    assert beat.body["drain"] is True


SELF = [
    ("GET", "/pods/self/characters/x/lora"),
    ("GET", "/pods/self/characters/x/versions/1/dataset"),
    ("POST", "/pods/self/uploads"),
    ("POST", "/pods/self/attempts/x/progress"),
]


@pytest.mark.parametrize(("method", "path"), SELF)
@pytest.mark.parametrize("headers", [{}, bearer("wrong")], ids=["no key", "wrong key"])
async def test_nodes_need_their_pods_key(api: Api, method: str, path: str, headers: dict[str, str]) -> None:
    answer = await api.call(method, path, headers=headers)
    assert (answer.status, answer.body["code"]) == (401, "unauthorized")


async def test_a_node_learns_where_the_active_lora_is(api: Api, pod: dict[str, Any]) -> None:
    hero = await ready_character(api.server)
    answer = await api.get(f"/pods/self/characters/{hero.id}/lora", headers=bearer(pod["pod_key"]))
    assert (answer.body["version"], answer.body["sha256"]) == (1, hashlib.sha256(LORA).hexdigest())
    assert (await api.get(answer.body["url"])).data == LORA


async def test_a_node_asking_for_an_unknown_character_is_told_so(api: Api, pod: dict[str, Any]) -> None:
    answer = await api.get("/pods/self/characters/nobody/lora", headers=bearer(pod["pod_key"]))
    assert (answer.status, answer.body["code"]) == (404, "character_not_found")


async def test_an_upload_for_an_attempt_that_is_not_the_pods_is_stale(api: Api, pod: dict[str, Any]) -> None:
    body = {"prompt_id": "nothing", "media_type": "image/png", "bytes": 10, "sha256": "0" * 64}
    answer = await api.post("/pods/self/uploads", json=body, headers=bearer(pod["pod_key"]))
    assert (answer.status, answer.body["code"]) == (409, "stale_attempt")


async def test_progress_of_an_attempt_that_is_not_the_pods_is_not_found(api: Api, pod: dict[str, Any]) -> None:
    body = {"seq": 1, "phase": "training"}
    answer = await api.post("/pods/self/attempts/nothing/progress", json=body, headers=bearer(pod["pod_key"]))
    assert answer.status == 404


async def test_a_rented_pod_that_is_joining_shows_what_it_says_of_itself(api: Api) -> None:
    said = {
        "state": "joining",
        "boot": {"phase": "models", "detail": "svd_xt.safetensors", "percent": 12.5},
        "provider": "runpod",
        "provider_id": "abc123",
        "price_per_hour": 0.34,
        "trainer_obstacles": {"kohya": "SD_SCRIPTS_DIR is not set"},
    }
    shown = (await register(api, instance_id="rented-pod-1", **said)).body["pod"]
    assert {name: shown[name] for name in said} == said


async def test_a_heartbeat_that_counts_restarts_is_shown_with_the_reason(api: Api, pod: dict[str, Any]) -> None:
    body = {"state": "ready", "restarts": 1, "restart_reason": "zombie_worker"}
    await api.post(f"/pods/{pod['pod']['id']}/heartbeat", json=body, headers=bearer(pod["pod_key"]))
    (shown,) = [one for one in (await api.get("/pods")).body["items"] if one["id"] == pod["pod"]["id"]]
    assert (shown["restarts"], shown["restart_reason"]) == (1, "zombie_worker")


async def test_a_boot_phase_that_nobody_knows_is_refused_by_name(api: Api) -> None:
    answer = await register(api, state="joining", boot={"phase": "sleeping"}, instance_id="sleeping-pod")
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (422, "/boot/phase")
