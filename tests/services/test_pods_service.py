"""The pods service: joining, living, leaving, and reporting progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controlplane.domain.jobs import Job
from controlplane.domain.pods import Pod
from controlplane.errors import BadJoinToken, NotFound, Unauthorized, UnknownProtocol, Unprocessable
from controlplane.services.claiming import Claimed
from controlplane.services.reports import reported_progress
from tests.services.engine import JOIN_TOKEN, PROJECT, Engine, engine

pytestmark = pytest.mark.usefixtures("each_database")

BODY: dict[str, Any] = {
    "protocol": 1,
    "instance_id": "instance-1",
    "address": "http://127.0.0.1:9",
    "token": "pod token",
    "kind": "embedded",
    "name": "one",
    "node_classes": ["Replay"],
}


async def claimed(room: Engine) -> tuple[Pod, Claimed]:
    """A pod that has a job's attempt in its hands."""
    pod, _ = await room.pods.register(BODY, JOIN_TOKEN)
    await room.submit(kind="train")
    (claim,) = await room.claim()
    assert claim.attempt is not None
    return pod, claim


async def progress_of(room: Engine, job: Job) -> Any:
    return (await room.view(job)).job.progress


async def test_a_registered_pod_is_ready(room: Engine) -> None:
    pod, _ = await room.pods.register(BODY, JOIN_TOKEN)
    assert (pod.state, pod.address, pod.node_classes) == ("ready", "http://127.0.0.1:9", ("Replay",))


async def test_the_key_authenticates_its_pod(room: Engine) -> None:
    pod, key = await room.pods.register(BODY, JOIN_TOKEN)
    assert (await room.pods.authenticate(key)).id == pod.id


async def test_the_key_itself_is_not_stored(room: Engine) -> None:
    pod, key = await room.pods.register(BODY, JOIN_TOKEN)
    assert key not in (pod.key_hash, pod.token)


async def test_registering_again_updates_the_same_pod(room: Engine) -> None:
    first, _ = await room.pods.register(BODY, JOIN_TOKEN)
    second, _ = await room.pods.register({**BODY, "address": "http://127.0.0.1:10"}, JOIN_TOKEN)
    assert (second.id, second.address, len(await room.pods.list(PROJECT))) == (first.id, "http://127.0.0.1:10", 1)


async def test_an_older_key_ends_with_the_next_registration(room: Engine) -> None:
    _, old = await room.pods.register(BODY, JOIN_TOKEN)
    await room.pods.register(BODY, JOIN_TOKEN)
    with pytest.raises(Unauthorized):
        await room.pods.authenticate(old)


async def test_a_wrong_join_token_is_refused(room: Engine) -> None:
    with pytest.raises(BadJoinToken):
        await room.pods.register(BODY, "wrong")


@pytest.mark.parametrize(("protocol", "older"), [(0, "pod"), (2, "control plane")])
async def test_another_protocol_is_refused_naming_the_side_to_upgrade(room: Engine, protocol: int, older: str) -> None:
    with pytest.raises(UnknownProtocol, match=f"upgrade the {older}"):
        await room.pods.register({**BODY, "protocol": protocol}, JOIN_TOKEN)


async def test_a_pod_elsewhere_is_refused_while_it_could_not_reach_us(room: Engine) -> None:
    with pytest.raises(Unprocessable, match="TROUPE_PUBLIC_URL"):
        await room.pods.register({**BODY, "address": "https://pod.example:8188"}, JOIN_TOKEN)


async def test_a_pod_elsewhere_is_welcome_when_we_have_a_public_address(tmp_path: Path) -> None:
    async with engine(tmp_path, public_url="https://troupe.example") as room:
        pod, _ = await room.pods.register({**BODY, "address": "https://pod.example:8188"}, JOIN_TOKEN)
    assert pod.state == "ready"


async def test_a_silent_pod_becomes_suspect_and_then_lost(room: Engine) -> None:
    await room.pods.register(BODY, JOIN_TOKEN)
    states = []
    for seconds in (room.settings.suspect_after_seconds + 1, room.settings.lost_after_seconds + 1):
        room.clock.ahead = seconds
        await room.pods.sweep()
        states.append((await room.pods.list(PROJECT))[0].state)
    assert states == ["suspect", "lost"]


async def test_a_heartbeat_brings_a_lost_pod_back(room: Engine) -> None:
    pod, key = await room.pods.register(BODY, JOIN_TOKEN)
    room.clock.ahead = room.settings.lost_after_seconds + 1
    await room.pods.sweep()
    await room.pods.heartbeat(pod.id, key, {"state": "ready"})
    assert (await room.pods.list(PROJECT))[0].state == "ready"


async def test_a_heartbeat_keeps_what_the_pod_reports(room: Engine) -> None:
    pod, key = await room.pods.register(BODY, JOIN_TOKEN)
    await room.pods.heartbeat(pod.id, key, {"state": "ready", "queue_running": 1, "queue_pending": 2, "loras": ["x"]})
    kept = (await room.pods.list(PROJECT))[0]
    assert (kept.queue_length, kept.loras) == (3, ("x",))


async def test_a_heartbeat_with_another_pods_key_is_refused(room: Engine) -> None:
    pod, _ = await room.pods.register(BODY, JOIN_TOKEN)
    _, other = await room.pods.register({**BODY, "instance_id": "instance-2"}, JOIN_TOKEN)
    with pytest.raises(Unauthorized):
        await room.pods.heartbeat(pod.id, other, {"state": "ready"})


async def test_a_heartbeat_of_an_unknown_pod_tells_it_to_register(room: Engine) -> None:
    with pytest.raises(NotFound):
        await room.pods.heartbeat("pod_nobody", "key", {"state": "ready"})


async def test_a_drained_pod_is_told_so_at_its_next_heartbeat(room: Engine) -> None:
    pod, key = await room.pods.register(BODY, JOIN_TOKEN)
    drained = await room.pods.drain(pod.id)
    answer = await room.pods.heartbeat(pod.id, key, {"state": "ready"})
    assert (drained.state, answer["drain"]) == ("draining", True)


async def test_progress_of_a_training_is_shown_on_its_job(room: Engine) -> None:
    pod, claim = await claimed(room)
    body = {"seq": 1, "phase": "training", "step": 50, "total_steps": 100, "loss": 0.1, "eta_seconds": 9.0}
    await room.pods.attempt_progress(pod, claim.attempt.id, body)  # type: ignore[union-attr]
    shown = await progress_of(room, claim.job)
    assert (shown["phase"], shown["step"], shown["loss"], shown["percent"]) == ("training", 50, 0.1, 47.5)


async def test_an_older_report_that_comes_late_changes_nothing(room: Engine) -> None:
    pod, claim = await claimed(room)
    for seq, step in ((2, 60), (1, 50)):
        body = {"seq": seq, "phase": "training", "step": step, "total_steps": 100}
        await room.pods.attempt_progress(pod, claim.attempt.id, body)  # type: ignore[union-attr]
    assert (await progress_of(room, claim.job))["step"] == 60


async def test_a_report_is_answered_with_cancel_once_the_job_is_cancelled(room: Engine) -> None:
    pod, claim = await claimed(room)
    body = {"seq": 1, "phase": "training", "step": 1, "total_steps": 100}
    before = await room.pods.attempt_progress(pod, claim.attempt.id, body)  # type: ignore[union-attr]
    await room.jobs.cancel(PROJECT, claim.job.id)
    after = await room.pods.attempt_progress(pod, claim.attempt.id, {**body, "seq": 2})  # type: ignore[union-attr]
    assert (before, after) == ({"cancel": False}, {"cancel": True})


async def test_a_report_of_another_pods_attempt_is_not_found(room: Engine) -> None:
    _, claim = await claimed(room)
    other, _ = await room.pods.register({**BODY, "instance_id": "instance-2"}, JOIN_TOKEN)
    with pytest.raises(NotFound):
        await room.pods.attempt_progress(other, claim.attempt.id, {"seq": 1, "phase": "training"})  # type: ignore[union-attr]


def test_the_percentage_never_goes_back() -> None:
    before = {"percent": 80.0, "step": 200, "total_steps": 250, "loss": 0.1}
    assert reported_progress(before, {"phase": "preparing"})["percent"] == 80.0
