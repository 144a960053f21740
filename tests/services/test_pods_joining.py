"""The pods service: pods that are still loading, that restart ComfyUI, and that somebody rents out."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.db.events import after
from controlplane.domain.pods import Pod
from controlplane.services.pods import Pods
from tests.services.engine import JOIN_TOKEN, PROJECT, Engine

pytestmark = pytest.mark.usefixtures("each_database")

BODY: dict[str, Any] = {
    "protocol": 1,
    "instance_id": "instance-1",
    "address": "http://127.0.0.1:9",
    "token": "pod token",
    "kind": "comfyui",
    "name": "one",
}
BOOT = {"phase": "models", "detail": "sd_xl_base_1.0.safetensors", "percent": 41.7}
JOINING = {**BODY, "state": "joining", "boot": BOOT}
READY = {**BODY, "state": "ready", "node_classes": ["Replay"]}


async def only(room: Engine) -> Pod:
    (pod,) = await room.pods.list(PROJECT)
    return pod


async def told(room: Engine, kind: str) -> list[Any]:
    events = await room.db.read(after, PROJECT, 0)
    return [dict(event.data) for event in events if event.type == kind]


async def placed(room: Engine) -> tuple[bool, str]:
    """Whether a waiting job is claimed now, and else the words of its placement."""
    job = await room.submit()
    claimed = await room.claim(fleet=room.fleet)
    return bool(claimed), ((await room.view(job)).job.placement or {}).get("reason", "")


async def test_a_joining_pod_gets_no_work_and_the_job_says_how_far_it_is(room: Engine) -> None:
    await room.pods.register(JOINING, JOIN_TOKEN)
    assert await placed(room) == (
        False,
        "No pod can do this work yet: one is joining, fetching its models (42 %).",
    )


async def test_a_joining_pod_shows_its_boot(room: Engine) -> None:
    pod, key = await room.pods.register(JOINING, JOIN_TOKEN)
    starting = {"phase": "starting", "detail": "", "percent": None}
    await room.pods.heartbeat(pod.id, key, {"state": "joining", "boot": starting})
    now = await only(room)
    assert (pod.boot, now.state, now.boot) == (BOOT, "joining", starting)


async def test_a_joining_pod_that_registers_as_ready_is_the_same_pod_and_gets_work(room: Engine) -> None:
    joining, _ = await room.pods.register(JOINING, JOIN_TOKEN)
    ready, _ = await room.pods.register(READY, JOIN_TOKEN)
    assert (ready.id, ready.state, ready.boot) == (joining.id, "ready", None)
    assert (await placed(room))[0]


async def test_a_pod_tells_that_it_joins_and_then_that_it_is_ready(room: Engine) -> None:
    await room.pods.register(JOINING, JOIN_TOKEN)
    await room.pods.register(READY, JOIN_TOKEN)
    events = await room.db.read(after, PROJECT, 0)
    assert [event.type for event in events] == ["pod.joining", "pod.ready"]


async def test_a_pod_whose_comfyui_starts_again_gets_no_work_until_it_is_ready(room: Engine) -> None:
    pod, key = await room.pods.register(READY, JOIN_TOKEN)
    states = []
    for state in ("joining", "ready"):
        await room.pods.heartbeat(pod.id, key, {"state": state, "boot": {"phase": "starting"}})
        now = await only(room)
        states.append((now.state, now.boot))
    assert states == [("joining", {"phase": "starting"}), ("ready", None)]


async def test_a_drain_asked_for_while_a_pod_joined_holds_once_it_is_ready(room: Engine) -> None:
    pod, _ = await room.pods.register(JOINING, JOIN_TOKEN)
    await room.pods.drain(pod.id)
    ready, _ = await room.pods.register(READY, JOIN_TOKEN)
    assert (ready.state, ready.draining) == ("draining", True)


async def test_a_pod_that_drained_by_itself_may_be_ready_again(room: Engine) -> None:
    pod, key = await room.pods.register(READY, JOIN_TOKEN)
    seen = []
    for state in ("draining", "ready"):
        answer = await room.pods.heartbeat(pod.id, key, {"state": state})
        seen.append(((await only(room)).state, answer["drain"]))
    assert seen == [("draining", False), ("ready", False)]


async def test_a_restart_is_told_once_with_its_reason(room: Engine) -> None:
    pod, key = await room.pods.register(READY, JOIN_TOKEN)
    for _ in range(2):
        await room.pods.heartbeat(pod.id, key, {"restarts": 1, "restart_reason": "zombie_worker: KSampler"})
    await room.pods.heartbeat(pod.id, key, {"restarts": 1})
    assert await told(room, "pod.restarted") == [
        {"pod_id": pod.id, "name": "one", "restarts": 1, "reason": "zombie_worker: KSampler"}
    ]
    assert (await only(room)).restart_reason == "zombie_worker: KSampler"


async def test_an_agent_that_begins_anew_counts_from_zero_without_an_event(room: Engine) -> None:
    pod, key = await room.pods.register(READY, JOIN_TOKEN)
    await room.pods.heartbeat(pod.id, key, {"restarts": 2, "restart_reason": "hung"})
    await room.pods.heartbeat(pod.id, key, {"restarts": 0})
    now = await only(room)
    assert (now.restarts, now.restart_reason, len(await told(room, "pod.restarted"))) == (0, "", 1)


async def test_a_pod_without_an_agent_says_nothing_of_restarts(room: Engine) -> None:
    pod, key = await room.pods.register(READY, JOIN_TOKEN)
    await room.pods.heartbeat(pod.id, key, {"restarts": 2, "restart_reason": "hung"})
    await room.pods.heartbeat(pod.id, key, {})
    assert (await only(room)).restarts == 2


async def test_a_rented_pod_keeps_who_rents_it_out_and_for_how_much(room: Engine) -> None:
    rent = {"provider": "runpod", "provider_id": "abc123", "price_per_hour": 0.34}
    pod, _ = await room.pods.register({**READY, **rent}, JOIN_TOKEN)
    assert (pod.provider, pod.provider_id, pod.price_per_hour) == ("runpod", "abc123", 0.34)


async def test_why_a_trainer_cannot_train_is_kept(room: Engine) -> None:
    obstacles = {"kohya": "SD_SCRIPTS_DIR is not set"}
    pod, _ = await room.pods.register({**READY, "trainer_obstacles": obstacles}, JOIN_TOKEN)
    assert pod.trainer_obstacles == obstacles


async def test_nobody_is_lost_because_we_were_away(room: Engine) -> None:
    await room.pods.register(READY, JOIN_TOKEN)
    room.clock.ahead = 10 * room.settings.lost_after_seconds
    back = Pods(room.db, room.clock, room.hints, room.settings, JOIN_TOKEN)
    assert (await back.sweep(), (await only(room)).state) == ([], "ready")
